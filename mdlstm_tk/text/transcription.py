"""Read lines of text from images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mdlstm_tk._util.checks import check_unmasked
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.inputs import image_for
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import Batch, step_width
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import Transcription, check_search, transcribe_logits, warn_of_lacking
from mdlstm_tk.text.decoding import Decoding


def read_lines(
    session: Session, images: Sequence[Array], beam: int | None = None, lm: CharacterModel | None = None
) -> list[Transcription]:
    """Read the text of lines with a recogniser.

        >>> lm = CharacterModel.load("fr.arpa.gz")
        >>> for line in read_lines(Session("lines.onnx"), images, beam=16, lm=lm):
        ...     print(line.text, line.confidence)

    Images of equal extents share batches; all do, sorted by width, if the model takes `sizes`.

    Args:
        session: a model of kind "transcribe".
        images: a list with one for each line, as `decode_image` returns them: (H, W), (H, W, 1) or
            (H, W, 3).
        beam, lm: how many texts a search keeps, and a language model that it follows; see
            `mdlstm_tk.text.ctc.transcribe_logits`. By default the best path is read.

    Returns:
        A text for each image, with confidences, and with places in pixels of the image.

    Raises:
        InputError: the model does not read texts, or does not take an image, beam is below 1, or lm is none
            of its characters.
        MDLSTMError: ONNX Runtime fails.
    """
    check_reader(session.metadata, beam, lm)
    if hasattr(images, "shape"):  # of an array, whose rows would be read
        raise InputError(f"images must be a list of images, got an array of shape {images.shape}")
    lines = []
    for k, line in enumerate(read_images(session, [_as_image(image) for image in images], beam, lm)):
        if isinstance(line, InputError):
            raise InputError(f"images[{k}]: {line}")
        lines.append(line)
    return lines


def _as_image(value: Any) -> Array:
    """The pixels of an image that a user gave, (H, W) or (H, W, 3)."""
    check_unmasked("an image", value)
    pixels: Array = np.asanyarray(value)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not fits or not pixels.size or (pixels.dtype.kind != "f" and pixels.dtype not in ("u1", "u2")):
        raise InputError(f"an image is {pixels.dtype} {pixels.shape}, expected (H, W) or (H, W, 3)")
    return pixels


def check_reader(metadata: Metadata, beam: int | None, lm: CharacterModel | None) -> None:
    """Check that a model reads texts, by a search with these arguments.

    Raises:
        InputError: it does not.
    """
    if not kind_named(metadata.kind).reads_lines:
        raise InputError(
            f"this needs a model of kind transcribe, which reads texts; this one is of {metadata.kind}"
        )
    check_search(beam, lm, metadata.classes or (), metadata.more.get("text_direction"))
    warn_of_lacking(lm, metadata.classes or (), metadata.more.get("text_direction"))


def read_images(
    session: Session, images: Sequence[Array], beam: int | None = None, lm: CharacterModel | None = None
) -> list[Transcription | InputError]:
    """The text of each image, or why the model does not take it. See `read_lines`, which has checked the
    arguments."""
    metadata, batches, lines = session.metadata, dict[int, Batch](), dict[int, Transcription | InputError]()
    for k, pixels in enumerate(images):
        try:
            batches[k] = session.prepare(image_for(pixels, metadata, "it"))
        except InputError as error:
            lines[k] = error
    for (k, batch), outputs in zip(batches.items(), session.run([*batches.values()]), strict=True):
        widths = metadata.grid_of(batch.feeds["x"].shape)[-1], np.shape(images[k])[1]
        lines[k] = read_logits(outputs[metadata.output_names[0]][0], metadata, widths, beam, lm)
    return [lines[k] for k in range(len(images))]


def read_logits(
    logits: Array,
    metadata: Metadata,
    widths: tuple[int, int] | None,
    beam: int | None = None,
    lm: CharacterModel | None = None,
) -> Transcription:
    """Read the outputs (T, 1 + characters) of a recogniser for one line; see `Transcribe.decode`."""
    covered, end = None, None
    if widths is not None:
        columns, end = widths  # the last step may cover columns beyond the end
        steps = len(logits)
        covered = end / columns * steps * step_width(steps, columns, metadata.columns_per_step)
    return transcribe_logits(
        logits,
        metadata.classes or (),
        decoding=Decoding.of(metadata),
        direction=metadata.more.get("text_direction"),
        beam=beam,
        lm=lm,
        width=covered,
        end=end,
    )
