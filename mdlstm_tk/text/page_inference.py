"""Find the lines of pages, or read them, and write the pages again or the answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError, Message, StoppedError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.answer import Answer
from mdlstm_tk.runtime.answers import write_answers
from mdlstm_tk.runtime.batching import MAX_STOPS, Result, read_ahead
from mdlstm_tk.runtime.io import IMAGE_SUFFIXES, suffix_of
from mdlstm_tk.runtime.io.npy import STDIO, Array, label_of, open_input, open_output, read_capped
from mdlstm_tk.runtime.jobs import Job, ResultOptions
from mdlstm_tk.runtime.preprocessing import decode_image
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.text.baselines import Baselines, FoundLine
from mdlstm_tk.text.ctc import Transcription
from mdlstm_tk.text.documents import SUFFIX
from mdlstm_tk.text.found_pages import FoundPage, find_page, page_xml
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.overlay import draw_overlay, picture_paths
from mdlstm_tk.text.pages import Page, PageLine, read_page, write_page
from mdlstm_tk.text.transcribe import Text
from mdlstm_tk.text.transcription import read_images


@dataclass(frozen=True)
class _OpenPage:
    """A page and what is needed of it; or why it cannot be used.

    Attributes:
        job: its job.
        image: the file of its image.
        pixels: of the image.
        page: as its XML tells it; None where its lines are to be found.
        images: those of its lines by their IDs, if they are to be read.
        error: the reason why it cannot be used, or "".
    """

    job: Job
    image: Path = Path()
    pixels: Array | None = None
    page: Page | None = None
    images: dict[str, Array] = field(default_factory=dict)
    error: str = ""


def infer_pages(
    session: Session,
    jobs: Sequence[Job],
    max_bytes: int,
    options: ResultOptions,
    stdin: bytes | None = None,
) -> Iterator[Result]:
    """Find the lines of pages, or read pages, and write the results; yields the result of each job.

    A model of kind "baselines" finds the lines of every page. A recogniser reads the lines of pages in XML,
    and those that the option `line_model` finds in images.

    The next page is decoded, and cut if its lines are known, while the model works on the current one.
    Lines that have no place on their page stay as they are, with a warning.

    Args:
        session, jobs, options: of the inference.
        max_bytes: maximum size in bytes of an image, see `decode_image`, and of an XML, see `read_page`.
        stdin: the page of a job that reads standard input.

    Raises:
        MDLSTMError: the next page would fail, too: a result cannot be written, a package is missing, the
            model fails, or was stopped several times in a row.
    """
    stops = 0
    finds = isinstance(kind_named(session.metadata.kind), Baselines)
    finder = session if finds else options.of_kind.get("line_model")
    pictures = picture_paths(jobs, options.of_kind.get("overlay"))
    search = {name: options.of_kind.get(name) for name in ("beam", "lm")}
    opened = partial(_open_page, max_bytes=max_bytes, stdin=stdin, cuts=not finds)
    for item in read_ahead(map(opened, jobs), Event()):
        job, pixels = item.job, item.pixels
        if pixels is None:
            yield Result(job, item.error)
            continue
        try:
            page, images = item.page, item.images
            if finder is not None and (finds or page is None):
                direction = getattr(session.metadata, "text_direction", None)
                page = _page_of(find_page(finder, pixels, direction), item.image)
                images = {} if finds else _cut(page.lines, pixels, job.source)
            elif page is not None and not page.lines:
                warnings.warn(f"{job.source} has no lines, so nothing of it is read", stacklevel=2)
            assert page is not None
            read, answers = dict[str, Transcription](), tuple[Answer, ...]()
            if finds:
                answers = tuple(map(_found, page.lines))
            else:
                read = _read(session, images, search, job.source)
                answers = tuple(Text(line.text, name, transcription=line) for name, line in read.items())
            if job.format == SUFFIX[1:]:
                write_page(page, read, job.target, replace=job.replace)
            else:
                write_answers(job, answers, session.metadata, options)
            if job.source in pictures:
                texts_of = {str(each.array): each.text for each in answers if isinstance(each, Text)}
                with open_output(pictures[job.source], replace=job.replace) as file:
                    draw_overlay(pixels, page.lines, texts_of).save(file, "PNG")
        except (InputError, StoppedError) as reason:
            stops = stops + 1 if isinstance(reason, StoppedError) else 0
            if stops == MAX_STOPS:
                raise
            error = Message(f"{job.source}: ", reason)
            yield Result(job, error, stopped=getattr(reason, "cause", None))
        except MemoryError:
            stops = 0
            yield Result(job, f"{job.source} is too large for the memory that is left")
        else:
            stops = 0
            yield Result(job, answers=answers)


def _open_page(job: Job, max_bytes: int, stdin: bytes | None, cuts: bool) -> _OpenPage:
    """Decode the image of a page, and cut its lines if they are known and `cuts` is true."""
    is_stdin = job.source == STDIO  # its image lies in the current folder
    try:
        page, image = None, Path(job.source)
        if is_stdin or suffix_of(job.source) not in IMAGE_SUFFIXES:
            page = read_page(label_of(STDIO) if is_stdin else job.source, stdin, max_bytes)
            image = page.image
        with open_input(image) as content:
            data = read_capped(content, str(image), max_bytes)
        pixels = decode_image(data, str(image), max_bytes)
        images = _cut(page.lines, pixels, job.source) if page is not None and cuts else {}
        return _OpenPage(job, image, pixels, page, images)
    except InputError as error:
        return _OpenPage(job, error=str(error))
    except MemoryError:
        return _OpenPage(job, error=f"{job.source} is too large for the memory that is left")


def _cut(lines: Sequence[PageLine], pixels: Array, source: str) -> dict[str, Array]:
    """The images of lines by their IDs, without those that have no place on the page."""
    images: dict[str, Array] = {}
    unread = []
    for line in lines:
        try:
            images[line.id] = cut_line(pixels, line)
        except InputError:
            unread.append(line.id)
    if unread:
        _warn_of(unread, len(lines), source, "without a place on the page")
    return images


def _read(
    session: Session, images: Mapping[str, Array], search: Mapping[str, Any], source: str
) -> dict[str, Transcription]:
    """The lines that the model reads, by their IDs.

    Raises:
        InputError: it takes none of them.
    """
    lines = dict(zip(images, read_images(session, [*images.values()], **search), strict=True))
    read = {name: line for name, line in lines.items() if not isinstance(line, InputError)}
    refused = {name: line for name, line in lines.items() if isinstance(line, InputError)}
    if refused:
        name, error = next(iter(refused.items()))
        if not read:
            raise InputError(f"line {name}: ", error)
        _warn_of([*refused], len(lines), source, "for which the model is not made (", error, ")")
    return read


def _warn_of(unread: Sequence[str], count: int, source: str, *reason: object) -> None:
    lines = f"{source}: {len(unread)} of {counted(count, 'line')} "
    names = f", not read: {', '.join(unread[:3])}{', …' if len(unread) > 3 else ''}"
    warnings.warn(Message(lines, *reason, names), stacklevel=3)


def _page_of(found: FoundPage, image: Path) -> Page:
    """A page whose lines were found, as if it had been read from XML."""
    lines, xml = tuple(found.lines), page_xml(found, image.name)
    return Page(image.with_suffix(SUFFIX), image, found.width, found.height, lines, xml)


def _found(line: PageLine) -> FoundLine:
    assert line.baseline is not None
    return FoundLine.of(line.id, None, line.baseline, *([] if line.polygon is None else [line.polygon]))
