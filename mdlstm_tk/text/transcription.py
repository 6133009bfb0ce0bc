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
from mdlstm_tk.runtime.io.readers import preprocessing_for
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import as_image, covered_width, grid_of
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import Transcription, check_search, transcribe_logits
from mdlstm_tk.text.metadata import RecogniserMetadata
from mdlstm_tk.text.transcribe import Transcribe


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
    check_search(beam, lm, metadata.classes or ())
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) == 3 and shape[2] in (1, 3):
        raise InputError(f"images is one image of shape {shape}; give a list, as [image]")
    preprocessing = preprocessing_for(metadata, "images[0]")
    arrays = []
    for k, image in enumerate(images):
        pixels = as_image(image, f"images[{k}]")
        try:
            x = preprocessing(pixels)
        except InputError as error:
            raise InputError(f"images[{k}]: ", error) from None
        arrays.append(x if metadata.channels_last else np.moveaxis(x, -1, 0))
    lines: dict[int, Transcription] = {}
    for k, logits in run_batches(session, enumerate(arrays)):
        if isinstance(logits, InputError):
            raise InputError(f"images[{k}]: ", logits)
        if isinstance(logits, Exception):
            raise logits
        if isinstance(logits, dict):  # the first output is the one that metadata describe
            logits = logits[metadata.output_names[0]]
        columns = grid_of(arrays[k].shape, metadata)[1]
        width = covered_width(len(logits), columns, np.shape(images[k])[1], metadata.columns_per_step)
        lines[k] = read_logits(logits, metadata, width, beam, lm)
    return [lines[k] for k in range(len(arrays))]


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
