"""The kind `transcribe`: one text for each sample. The loss is CTC (Graves et al. 2006)."""

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
from mdlstm_tk.kinds.kind import COMMON, PROBABILITY_DIGITS, Kind, Labels, Predict, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, Task, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel
    from mdlstm_tk.text.character_model import CharacterModel
    from mdlstm_tk.text.ctc import Transcription

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

    def summary(self, target: str) -> str:
        from mdlstm_tk.text.encoding import normalise

        text = normalise(target)
        if not text:
            raise InputError("its text is empty")
        if not is_plain_text(text):
            raise InputError("its text holds a control character, such as a tab")
        return text

    def fit(
        self, train: Sequence[str], every: Sequence[str], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        from mdlstm_tk.text.encoding import fit_texts

        if config.crop:
            raise InputError("crop would cut texts off; leave it out")
        return fit_texts(train, every)

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        from mdlstm_tk.data.task import pad

        return pad(targets, 0, np.int64)

    def distort(self, samples: Sequence[Any], rngs: Sequence[Any], strength: float) -> list[Any]:
        from mdlstm_tk.text.distortion import distort_line

        pairs = zip(samples, rngs, strict=True)
        return [(distort_line(x, rng, strength), y) for (x, y), rng in pairs]

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        """CTC, divided by the length of the text; samples without room for their text are left out."""
        from mdlstm_tk.text.ctc_loss import ctc_loss

        return ctc_loss(prediction, batch, spec.decoding.get("columns_per_step"))

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """(3, 2) the edits and the lengths of all texts in each of `UNITS`; and the texts with room."""
        from torch import tensor

        from mdlstm_tk.text.ctc_loss import has_room, line_steps
        from mdlstm_tk.text.measures import count_edits, predicted_texts, target_texts

        columns, steps = spec.decoding.get("columns_per_step"), prediction.shape[1]
        counts = line_steps(batch, steps, columns).tolist()  # the steps after them see padding
        logits = [y[:n] for y, n in zip(prediction.cpu().numpy(), counts, strict=True)]
        truths = target_texts(batch.y.tolist(), spec)
        edits = [*map(count_edits, predicted_texts(logits, spec), truths)]
        texts = [[each.character_edits > 0, 1] for each in edits]
        each = np.array([[each[:2], each[2:], of_text] for each, of_text in zip(edits, texts, strict=True)])
        return {"edits": tensor(each.sum(0)), "room": has_room(batch, steps, columns).sum()}

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
        `widths` of x and of the image are known.

        Args:
            y, metadata: of the model.
            beam: texts that a search keeps; None: 1, or 64 with a language model.
            lm: language model that the search follows.
            widths: columns of x, and pixels of its image.
        """
        from mdlstm_tk.text.transcription import check_reader, read_logits

        check_reader(metadata, beam, lm)
        return [row_of(read_logits(logits, metadata, widths, beam, lm)) for logits in y]

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.kinds.panels import answer_panel
        from mdlstm_tk.text.measures import predicted_texts, target_texts

        (reading,), (truth,) = predicted_texts(prediction, spec), target_texts(batch.y, spec)
        return [answer_panel(batch, reading, truth, reading == truth)]

    def sections(self, network: nn.Module, task: Task, folder: Path) -> str:
        from mdlstm_tk.text.sections import text_sections

        return text_sections(network, task)


def row_of(line: Transcription) -> Row:
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
