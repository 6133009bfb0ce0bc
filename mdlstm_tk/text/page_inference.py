"""Read the lines of pages, and write the pages again or the texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError, Message, StoppedError
from mdlstm_tk.runtime.answers import write_answers
from mdlstm_tk.runtime.batching import MAX_STOPS, Result, read_ahead
from mdlstm_tk.runtime.io.npy import STDIO, Array, label_of, open_input, read_capped
from mdlstm_tk.runtime.jobs import Job, ResultOptions
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.preprocessing import decode_image
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.text.kind import Text
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.pages import Page, read_page, write_page

if TYPE_CHECKING:
    from mdlstm_tk.text.ctc import Transcription


class _CutPage(NamedTuple):
    """A page and the images of its lines by their IDs; or why it cannot be used."""

    job: Job
    page: Page | None
    images: dict[str, Array]
    error: str | None = None


def infer_pages(
    session: Session,
    jobs: Sequence[Job],
    max_bytes: int,
    options: ResultOptions,
    stdin: bytes | None = None,
) -> Iterator[Result]:
    """Read pages and write the results; yields the result of each job.

    The next page is decoded and cut while the model reads the current one. Lines that have no place on
    their page stay as they are, with a warning.

    Args:
        session, jobs, options: of the inference.
        max_bytes: maximum size in bytes of an image, see `decode_image`.
        stdin: the page of a job that reads standard input.

    Raises:
        MDLSTMError: the next page would fail, too: a result cannot be written, a package is missing, the
            model fails, or was stopped several times in a row.
    """
    stops = 0
    cut = partial(_cut_page, max_bytes=max_bytes, stdin=stdin)
    for job, page, images, error in read_ahead(map(cut, jobs), Event()):
        if page is None:
            yield Result(job, error)
            continue
        try:
            texts = session.transcribe([*images.values()], **options.of_kind) if images else []
            answers = _write(job, page, dict(zip(images, texts, strict=True)), session.metadata, options)
        except (InputError, StoppedError) as reason:
            stops = stops + 1 if isinstance(reason, StoppedError) else 0
            if stops == MAX_STOPS:
                raise
            yield Result(job, Message(f"{job.source}: ", reason))
        else:
            stops = 0
            yield Result(job, answers=answers)


def _cut_page(job: Job, max_bytes: int, stdin: bytes | None) -> _CutPage:
    try:
        is_stdin = job.source == STDIO  # its image lies in the current folder
        page = read_page(label_of(STDIO), stdin) if is_stdin else read_page(job.source)
        with open_input(page.image) as content:
            data = read_capped(content, str(page.image), max_bytes)
        pixels = decode_image(data, str(page.image), max_bytes)
    except InputError as error:
        return _CutPage(job, None, {}, str(error))
    except MemoryError:
        return _CutPage(job, None, {}, f"{job.source} is too large for the memory that is left")
    images: dict[str, Array] = {}
    unread = []
    for line in page.lines:
        try:
            images[line.id] = cut_line(pixels, line)
        except InputError:
            unread.append(line.id)
    if unread:
        warnings.warn(
            f"{job.source}: {len(unread)} of {counted(len(page.lines), 'line')} without a place on the "
            f"page, not read: {', '.join(unread[:3])}{', …' if len(unread) > 3 else ''}",
            stacklevel=2,
        )
    return _CutPage(job, page, images)


def _write(
    job: Job,
    page: Page,
    transcriptions: Mapping[str, Transcription],
    metadata: Metadata,
    options: ResultOptions,
) -> tuple[Text, ...]:
    """Write a page or its texts, if they go to a file, and return the texts."""
    answers = tuple(Text(line.text, name, None, line) for name, line in transcriptions.items())
    if job.format == "xml":
        write_page(page, transcriptions, job.target, replace=job.replace)
    else:
        write_answers(job, answers, metadata, options)
    return answers
