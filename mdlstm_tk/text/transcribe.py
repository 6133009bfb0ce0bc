"""The kind `transcribe`, one text for each sample, and `read_lines`. The loss is CTC."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import COMMON, PROBABILITY_DIGITS, Kind, Labels, Predict, Row
from mdlstm_tk.runtime.inputs import image_for
from mdlstm_tk.runtime.shapes import Batch as Feeds
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import Decoding, ReadLine, names_in_model, read_logits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, Task, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel
    from mdlstm_tk.runtime.session import Session

log = logging.getLogger("mdlstm_tk.training")
EDGE_DIGITS = 1  # of pixels
UNITS = ("character", "word", "string")  # of errors


class Transcribe(Kind):
    name = "transcribe"
    layout = (
        "a folder with page images and their ALTO or PAGE XML, with images of lines and their NAME.gt.txt, "
        "or with images and a labels.tsv of file, tab, text; or an .npz file with x and texts y (N,)"
    )
    defaults = COMMON | {
        "model": "lines",
        "resize": "64x*",
        "hidden": 48,
        "dropout": 0.2,
        "steps": 20000,
        "batch_size": 8,
        "lr": 0.003,
        "warmup": 300,
        "average": 0.998,
        "augment": 1.0,
        "evaluate_every": 1000,
        "patience": 0,
    }
    answers = "rows"
    axes = "N, T"
    targets = "labels.tsv"
    reads_lines = True

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz, of_arrays, read_name

        if is_npz(path):
            return of_arrays(path, read_name, "US")
        from mdlstm_tk.text.folders import texts_of_pages, texts_of_table

        is_table = (path / self.targets).exists()
        return texts_of_table(path, self.targets) if is_table else texts_of_pages(path)

    @property
    def training(self) -> Any:
        """What training needs, which imports torch."""
        from mdlstm_tk.text import transcribe_training

        return transcribe_training

    def summary(self, target: str) -> str:
        text: str = self.training.normalise(target)
        if not text or not is_plain_text(text):
            raise InputError("its text is empty, or holds a control character, such as a tab")
        return text

    def fit(
        self, train: Sequence[str], every: Sequence[str], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        if config.crop:
            raise InputError("crop would cut texts off; leave it out")
        labels: Labels = self.training.fit_texts(every)
        return labels

    def encoder(self, spec: TaskSpec) -> Any:
        return self.training.encoder(spec)

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        from mdlstm_tk.data.task import pad

        return pad(targets, 0, np.int64)

    def distort(self, samples: Sequence[Any], rngs: Sequence[Any], strength: float) -> list[Any]:
        from mdlstm_tk.text.distortion import distort_line

        pairs = zip(samples, rngs, strict=True)
        return [(distort_line(x, rng, strength), y) for (x, y), rng in pairs]

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        loss: Tensor = self.training.ctc_loss(prediction, batch, spec.decoding.get("columns_per_step"))
        return loss

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = self.training.sums_of(prediction, batch, spec)
        return sums

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The shares of characters, words and texts that are wrong."""
        edits, lengths = sums["edits"].T
        if lengths[2] > 1 and not sums["room"]:
            log.warning(
                "all texts need more steps than the network makes of their images, so nothing can be "
                "learned; try smaller windows, or a larger resize"
            )
        return {f"{unit}_error": float(e / n) for unit, e, n in zip(UNITS, edits, lengths, strict=True)}

    def calibrate(self, predict: Predict, task: Task, folder: Path) -> Mapping[str, Any]:
        from mdlstm_tk.text.calibration import calibrate

        return calibrate(predict, task, folder)

    def name_count(self, outputs: int) -> int:
        return outputs - 1  # output 0 is the blank

    def decode(  # type: ignore[override]
        self,
        y: Array,
        metadata: Metadata,
        *,
        beam: int | None = None,
        lm: CharacterModel | None = None,
        widths: tuple[int, int] | None = None,
    ) -> list[Row]:
        """The texts, with confidences, and with places in columns of x, or in pixels of the image if the
        `widths` of x and of the image are known. See `read_lines` for `beam` and `lm`."""
        check_reader(metadata, beam, lm)
        return [row_of(_read(logits, metadata, widths, beam=beam, lm=lm)) for logits in y]

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.kinds.panels import answer_panel

        (reading,) = self.training.predicted_texts(prediction, spec)
        (truth,) = self.training.target_texts(batch.y, spec)
        return [answer_panel(batch, reading, truth, reading == truth)]

    def sections(self, network: nn.Module, task: Task, folder: Path) -> str:
        from mdlstm_tk.text.measures import text_sections

        return text_sections(network, task)


def read_lines(
    session: Session, images: Sequence[Array], beam: int | None = None, lm: CharacterModel | None = None
) -> list[ReadLine]:
    """Read the text of lines with a recogniser.

        >>> lm = CharacterModel.load("fr.arpa.gz")
        >>> for line in read_lines(Session("lines.onnx"), images, beam=16, lm=lm):
        ...     print(line.text, line.confidence)

    Images of equal extents share batches; all do, sorted by width, if the model takes `sizes`.

    Args:
        session: a model of kind "transcribe".
        images: one for each line, as `decode_image` returns them: (H, W), (H, W, 1) or (H, W, 3).
        beam: texts that a search keeps; 1 reads the most likely path, without a language model. None: 1,
            or 64 with a language model.
        lm: a language model that the search follows.

    Returns:
        A text for each image, with confidences, and with places in pixels of the image.

    Raises:
        InputError: the model does not read texts or take an image, or see `check_reader`.
    """
    check_reader(session.metadata, beam, lm)
    prepared = [prepare_line(session, image, f"images[{k}]") for k, image in enumerate(images)]
    return read_prepared(session, prepared, beam=beam, lm=lm)


def prepare_line(session: Session, image: Array, label: str) -> Feeds:
    """The image of a line as a recogniser takes it; see `read_lines`. `label` names it in errors.

    Raises:
        InputError: the model does not take it.
    """
    grey = image[..., 0] if image.shape[2:] == (1,) else image
    return session.prepare(image_for(grey, session.metadata, label))._replace(width=image.shape[1])


def read_prepared(session: Session, batches: Sequence[Feeds], **search: Any) -> list[ReadLine]:
    """Read lines that `prepare_line` returned; `search` are the other arguments of `read_lines`."""
    metadata, lines = session.metadata, list[ReadLine]()
    for batch, outputs in zip(batches, session.run(batches), strict=True):
        widths: Any = metadata.grid_of(batch.feeds["x"].shape)[-1], batch.width
        lines.append(_read(outputs[metadata.output_names[0]][0], metadata, widths, **search))
    return lines


def check_reader(metadata: Metadata, beam: int | None, lm: CharacterModel | None) -> None:
    """Check that a model reads texts, and that a language model knows some of its characters and the space.

    Raises:
        InputError: it does not, or `beam` is below 1.
    """
    if not kind_named(metadata.kind).reads_lines:
        raise InputError(f"this needs a model of kind transcribe, which reads texts, not {metadata.kind}")
    if beam is not None and beam < 1:
        raise InputError(f"beam must be 1 or more, got {beam}; 16 is usual")
    if lm is None:
        return
    names = names_in_model(metadata.classes or (), metadata.more.get("text_direction"))
    lacking = [name for name in names if name not in lm.tokens]
    if " " in lacking or len(lacking) == len(names):
        advice = "fit it to lines of such texts, or call the space <space> in its ARPA file"
        raise InputError(f"lm lacks {''.join(lacking)!r:.40}, which the model reads; {advice}")


def _read(logits: Array, metadata: Metadata, widths: tuple[int, int] | None, **search: Any) -> ReadLine:
    """Read the outputs (T, 1 + characters) of a recogniser for one line; see `Transcribe.decode`."""
    if widths is not None:
        columns, width = widths  # the last step may cover columns beyond the end
        step = width / columns * step_width(len(logits), columns, metadata.columns_per_step)
        search |= {"step": step, "end": width}
    more = metadata.more
    return read_logits(
        logits, metadata.classes or (), Decoding.of(more), more.get("text_direction"), **search
    )


def row_of(line: ReadLine) -> Row:
    """The answer for a line."""
    characters = [
        {
            "character": each.character,
            "left": round(each.left, EDGE_DIGITS),
            "right": round(each.right, EDGE_DIGITS),
            "confidence": round(each.confidence, PROBABILITY_DIGITS),
        }
        for each in line.characters
    ]
    confidence = round(line.confidence, PROBABILITY_DIGITS)
    return {"text": line.text, "confidence": confidence, "characters": characters}


KIND = Transcribe()
