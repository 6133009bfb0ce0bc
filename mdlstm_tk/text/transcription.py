"""Read lines of text from images; see `Session.transcribe`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import Width
from mdlstm_tk.runtime.batching import run_batches
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.io.readers import check_scaled, preprocessing_for
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import as_image, covered_width, grid_of
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import Transcription, check_search, transcribe_logits, warn_of_lacking
from mdlstm_tk.text.transcribe import RecogniserMetadata, Transcribe


@checked
def transcribe(
    session: Session, images: Sequence[Array], beam: int | None = None, lm: CharacterModel | None = None
) -> list[Transcription]:
    """Read the text of images; see `Session.transcribe`."""
    metadata = session.metadata
    if not isinstance(kind_named(metadata.kind), Transcribe):
        raise InputError(
            f"transcribe() needs a model of kind transcribe, which reads texts; this one is of kind "
            f"{metadata.kind}"
        )
    assert isinstance(metadata, RecogniserMetadata)
    search = metadata.classes or (), metadata.text_direction
    check_search(beam, lm, *search)
    warn_of_lacking(lm, *search)
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) == 3 and shape[2] in (1, 3):
        raise InputError(f"images is one image of shape {shape}; give a list, as [image]")
    lines = []
    all_pixels = [as_image(image, f"images[{k}]") for k, image in enumerate(images)]
    for k, line in enumerate(read_images(session, all_pixels, beam, lm)):
        if isinstance(line, InputError):
            raise InputError(f"images[{k}]: ", line)
        lines.append(line)
    return lines


def read_images(
    session: Session, images: Sequence[Array], beam: int | None = None, lm: CharacterModel | None = None
) -> list[Transcription | InputError]:
    """The text of each image, or why the model does not take it. See `transcribe`, which has checked the
    arguments."""
    metadata = session.metadata
    preprocessing = preprocessing_for(metadata, "images[0]")
    arrays, lines = dict[int, Array](), dict[int, Transcription | InputError]()
    for k, pixels in enumerate(images):
        try:
            check_scaled(metadata, pixels.dtype, "it")
            x = preprocessing(pixels)
        except InputError as error:
            lines[k] = error
        else:
            arrays[k] = x if metadata.channels_last else np.moveaxis(x, -1, 0)
    for k, logits in run_batches(session, arrays.items()):
        if isinstance(logits, InputError):
            lines[k] = logits
            continue
        if isinstance(logits, Exception):
            raise logits
        if isinstance(logits, dict):  # the first output is the one that metadata describe
            logits = logits[metadata.output_names[0]]
        columns = grid_of(arrays[k].shape, metadata)[1]
        width = covered_width(len(logits), columns, np.shape(images[k])[1], metadata.columns_per_step)
        lines[k] = read_logits(logits, metadata, width, beam, lm)
    return [lines[k] for k in range(len(images))]


def read_logits(
    logits: Array,
    metadata: Metadata,
    width: Width | None,
    beam: int | None = None,
    lm: CharacterModel | None = None,
) -> Transcription:
    """Read the outputs (T, 1 + characters) of a recogniser; see `transcribe_logits`."""
    assert isinstance(metadata, RecogniserMetadata)
    covered, end = (None, None) if width is None else width
    return transcribe_logits(
        logits,
        metadata.classes or (),
        decoding=metadata.decoding,
        direction=metadata.text_direction,
        beam=beam,
        lm=lm,
        width=covered,
        end=end,
    )
