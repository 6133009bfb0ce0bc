"""Read the texts of pages, line by line, and of images of lines with a beam or a language model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime.answers import Answer, AnswerDocument
from mdlstm_tk.runtime.batching import MAX_STOPS, Result, read_ahead
from mdlstm_tk.runtime.io.npy import STDIO, Array, open_input, open_output, read_capped
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.jobs import ANSWER_FORMATS, LABELS_ONLY, Job, is_page_file
from mdlstm_tk.runtime.line_cutting import cut_line
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.pages import Page, read_page, write_page
from mdlstm_tk.runtime.preprocessing import decode_image
from mdlstm_tk.runtime.session import Session

if TYPE_CHECKING:
    from mdlstm_tk.runtime.character_model import CharacterModel
    from mdlstm_tk.runtime.ctc import Transcription


class _Lines(NamedTuple):
    """What is read of a file: images of lines by their IDs, None for that of an image; or an error."""

    job: Job
    images: dict[str | None, Array]
    page: Page | None = None
    error: str | None = None


def infer_pages(
    session: Session, jobs: Sequence[Job], max_bytes: int, beam: int = 1, lm: CharacterModel | None = None
) -> Iterator[Result]:
    """Read pages and images of lines, and write the results; yields the result of each job.

    The next file is decoded and cut while the model reads the current one. Lines that have no place on
    their page stay as they are, with a warning.

    Args:
        session, jobs: of the inference.
        max_bytes: maximum size in bytes of an image, see `decode_image`.
        beam, lm: see `Session.transcribe`.

    Raises:
        MDLSTMError: the next file would fail, too: a result cannot be written, a package is missing, the
            model fails, or was stopped several times in a row.
    """
    stops = 0
    for job, images, page, error in read_ahead(map(partial(_read, max_bytes=max_bytes), jobs), Event()):
        if error is not None:
            yield Result(job, error)
            continue
        by_width = sorted(images, key=lambda name: images[name].shape[1])
        try:
            texts = (
                session.transcribe([images[name] for name in by_width], beam=beam, lm=lm) if images else []
            )
            found = dict(zip(by_width, texts, strict=True))
            answers = _write(job, page, {name: found[name] for name in images}, session.metadata)
        except (InputError, StoppedError) as reason:
            stops = stops + 1 if isinstance(reason, StoppedError) else 0
            if stops == MAX_STOPS:
                raise
            yield Result(job, f"{job.source}: {reason}")
        else:
            stops = 0
            yield Result(job, answers=answers)


def _read(job: Job, max_bytes: int) -> _Lines:
    try:
        if not is_page_file(job.source):
            file = read_input(job.source, max_bytes)
            if not file.is_image:
                raise InputError(f"{job.source} holds arrays; beam=... and lm=... read images and pages")
            return _Lines(job, {None: file.arrays[None]})
        page = read_page(job.source)
        with open_input(page.image) as content:
            data = read_capped(content, str(page.image), max_bytes)
        pixels = decode_image(data, str(page.image), max_bytes)
    except InputError as error:
        return _Lines(job, {}, error=str(error))
    images: dict[str | None, Array] = {}
    unread = []
    for line in page.lines:
        try:
            images[line.id] = cut_line(pixels, line)
        except InputError:
            unread.append(line.id)
    if unread:
        warnings.warn(
            f"{job.source}: {len(unread)} of {len(page.lines)} lines have no place on the page and are not "
            f"read: {', '.join(unread[:3])}{', …' if len(unread) > 3 else ''}",
            stacklevel=2,
        )
    return _Lines(job, images, page)


def _write(
    job: Job, page: Page | None, transcriptions: dict[str | None, Transcription], metadata: Metadata
) -> tuple[Answer, ...]:
    if job.format == "xml" and page is not None:
        write_page(page, {str(name): text for name, text in transcriptions.items()}, job.target)
    elif job.format not in ANSWER_FORMATS:
        raise InputError(
            f"{job.format} holds no texts; give one of the formats {', '.join(ANSWER_FORMATS)}"
        )
    answers = tuple(Answer(each.text, name) for name, each in transcriptions.items())
    if job.format in ANSWER_FORMATS and job.target != STDIO:
        document = AnswerDocument(job.format, metadata, LABELS_ONLY, folder=Path(job.target).parent)
        with open_output(job.target) as file:
            file.write(document.render([(job.source, answers)]).encode())
    return answers
