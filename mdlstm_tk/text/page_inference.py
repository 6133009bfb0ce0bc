"""Read pages: find their lines if nobody has, read them, and write the pages again or the texts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES, STDIO, Array
from mdlstm_tk.io.files import check_free, find_files, open_output, read_bytes, suffix_of
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import Row
from mdlstm_tk.runtime.answers import TABLES
from mdlstm_tk.runtime.infer import Inference, Job, Result, failed, open_model
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.text.baselines import Baselines
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import ReadLine
from mdlstm_tk.text.found_pages import FoundPage, check_finder, find_page, page_xml
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.overlay import draw_overlay
from mdlstm_tk.text.pages import SUFFIX, Page, PageLine, images_of_pages, is_page, read_page, write_page
from mdlstm_tk.text.transcribe import check_reader, read_images, row_of


class _OpenPage(NamedTuple):
    """A page and what is needed of it, or why it cannot be used.

    Attributes:
        job: its job.
        image, pixels: the file of its image, and its pixels.
        page: as its XML tells it; None where its lines are to be found.
        cuts: images of its lines by their IDs, if they are to be read.
        error: the reason why it cannot be used.
    """

    job: Job
    image: Path = Path()
    pixels: Array | None = None
    page: Page | None = None
    cuts: Mapping[str, Array] = {}
    error: Exception | None = None


@dataclass
class PageReading(Inference):
    """A planned reading; see `Inference`.

    Attributes:
        finder: the model that finds lines in images; None: images are single lines.
        overlay: draw what was found and read.
    """

    finder: Any = None
    overlay: bool = False
    finds_only: bool = field(init=False)

    def __post_init__(self) -> None:
        self.finds_only = self.finder is self.session

    def _results(self) -> Iterator[Result]:
        if self.finder is None and not any(suffix_of(job.source) == SUFFIX for job in self.jobs):
            yield from self.run(self.jobs)  # images of lines
            return
        pages = map(self._open, self.jobs)
        with ThreadPoolExecutor(1) as executor:  # the next page is decoded while the model works
            following = executor.submit(next, pages, None)
            while page := following.result():
                following = executor.submit(next, pages, None)
                yield failed(page.job, page.error) if page.error else self._read_page(page)

    def _open(self, job: Job) -> _OpenPage:
        try:
            page = read_page(job.source) if suffix_of(job.source) == SUFFIX else None
            image = page.image if page else Path(job.source)
            pixels = decode_image(read_bytes(image), str(image))
            cuts = _cut(page.lines, pixels, job.source) if page and not self.finds_only else {}
            return _OpenPage(job, image, pixels, page, cuts)
        except (InputError, MemoryError) as error:
            return _OpenPage(job, error=error)

    def _read_page(self, opened: _OpenPage) -> Result:
        job, image, pixels, page, cuts, _ = opened
        assert pixels is not None
        try:
            if self.finder is not None and (page is None or self.finds_only):
                direction = self.session.metadata.more.get("text_direction")
                page = _page_of(find_page(self.finder, pixels, direction), image)
                cuts = {} if self.finds_only else _cut(page.lines, pixels, job.source)
            if page is None:
                raise InputError("nothing tells where its lines are; give a line_model (--line-model)")
            if not page.lines:
                warnings.warn(f"{job.source} has no lines, so nothing of it is read", stacklevel=2)
            read = self._read_lines(cuts, job.source) if cuts else {}
            if self.overlay:
                picture = draw_overlay(pixels, page.lines, {name: line.text for name, line in read.items()})
                with open_output(_picture_path(job), self.force) as file:
                    picture.save(file, "PNG")
            if job.form == SUFFIX[1:]:
                write_page(page, read, job.target, replace=self.force)
        except (InputError, MemoryError) as error:
            return failed(job, error)
        rows = [{"file": job.source, "line": name, **row_of(line)} for name, line in read.items()]
        return Result(job, rows=_found_rows(job, page.lines) if self.finds_only else rows)

    def _read_lines(self, cuts: Mapping[str, Array], source: str) -> dict[str, ReadLine]:
        """The lines that the model reads, by their IDs.

        Raises:
            InputError: it takes none of them.
        """
        lines = dict(zip(cuts, read_images(self.session, [*cuts.values()], **self.options), strict=True))
        read = {name: line for name, line in lines.items() if not isinstance(line, InputError)}
        refused = {name: line for name, line in lines.items() if isinstance(line, InputError)}
        if refused:
            name, error = next(iter(refused.items()))
            if not read:
                raise InputError(f"line {name}: {error}")
            _warn_of([*refused], len(lines), source, f"for which the model is not made ({error})")
        return read


def read_pages(
    pages: Sequence[str | Path],
    reader: Session | str | Path,
    output: str | Path | None = None,
    *,
    line_model: Any = None,
    beam: int | None = None,
    lm: CharacterModel | str | Path | None = None,
    overlay: bool = False,
    force: bool = False,
) -> PageReading:
    """Plan the reading of pages: images with ALTO or PAGE XML, photographs whose lines are found, or images
    of lines.

        >>> for result in read_pages(["scans/"], "lines.onnx", "read/", line_model="baselines.onnx"):
        ...     print(result.job.target, result.error or "ok")

    Args:
        pages: XML files, images, and folders of them. An image that belongs to an XML is read with it.
        reader: a model of kind "transcribe", or of kind "baselines", which only finds lines.
        output: a folder for the XML of each page, with the texts; or a file for all texts, .tsv, .csv or
            .json; None, or "-": they are written to standard output.
        line_model: a model of kind "baselines", which finds the lines of images. None: an image is a line.
        beam, lm: see `read_lines`.
        overlay: draw what was found and read into the folder, as NAME.out.png.
        force: replace what exists.

    Returns:
        The plan. Iterating over it does the work, and yields a `Result` for each page.

    Raises:
        InputError: there is nothing to read, a result exists, or a model or an argument does not fit.
    """
    session = reader if isinstance(reader, Session) else open_model(Path(reader))
    is_path = isinstance(line_model, str | Path)
    finder = open_model(Path(line_model)) if is_path else line_model
    if isinstance(kind_named(session.metadata.kind), Baselines):
        without_effect = {"line_model": line_model, "beam": beam, "lm": lm}
        for name in (name for name, value in without_effect.items() if value is not None):
            raise InputError(f"the model is of kind baselines and reads no texts; leave out {name}")
        finder = session
    else:
        if not isinstance(session, Session):
            raise InputError(f"{reader} is tiled, but lines are read whole; run: mdlstm export --form scan")
        lm = CharacterModel.load(lm) if isinstance(lm, str | Path) else lm
        check_reader(session.metadata, beam, lm)
    if finder is not None:
        check_finder(finder)
    target = None if output is None else os.fspath(output)
    is_file = target is not None and suffix_of(target)[1:] in TABLES and not os.path.isdir(target)
    table = STDIO if target is None else target if is_file or target == STDIO else None
    form = SUFFIX[1:] if table is None else suffix_of(table)[1:] or "tsv"
    if suffix_of(target or "") == SUFFIX and not os.path.isdir(str(target)):
        raise InputError(
            f"pages are written into a folder; give one with -o, in place of the file {target}"
        )
    if overlay and table is not None:
        raise InputError("overlay=True (--overlay) draws into a folder; name one as output (-o)")
    jobs = []
    for source, relative in _inputs(
        [os.fspath(page) for page in pages], target if table is None else None, finder
    ):
        place = STDIO if table else os.path.join(target or "", os.path.splitext(relative)[0] + SUFFIX)
        jobs.append(Job(source, place, form))
    if not table and finder is None and not any(suffix_of(job.source) == SUFFIX for job in jobs):
        raise InputError("images of lines have no XML; give a file .tsv, .csv or .json with -o")
    targets = [table] if table else [job.target for job in jobs]
    if not table and len({*targets}) < len(jobs):
        raise InputError("two pages would become one file; read them separately, each into its own folder")
    if {*map(os.path.realpath, targets)} & {os.path.realpath(job.source) for job in jobs}:
        raise InputError("a result would replace a page; give another folder with -o")
    for each in [*targets, *(_picture_path(job) for job in jobs if overlay)]:
        if each != STDIO:
            check_free(each, force)
    options = {} if finder is session else {"beam": beam, "lm": lm}
    path = Path(reader) if isinstance(reader, str | Path) else Path()
    return PageReading(
        session, path, jobs, table, options=options, force=force, finder=finder, overlay=overlay
    )


def _inputs(named: Sequence[str], output: str | None, finder: Any) -> list[tuple[str, str]]:
    """The pages, and the images that belong to none, with their paths below the folders that were named."""
    found = find_files(named, (SUFFIX, *IMAGE_SUFFIXES))
    results = "" if output is None else os.path.realpath(output)
    if any(results.startswith(os.path.realpath(folder) + os.sep) for folder in named):
        below = results + os.sep
        found = [
            each for each in found if each[0] in named or not os.path.realpath(each[0]).startswith(below)
        ]
    pages = [
        each for each in found if suffix_of(each[0]) == SUFFIX and (each[0] in named or is_page(each[0]))
    ]
    images = [each for each in found if suffix_of(each[0]) != SUFFIX]
    own = images_of_pages([path for path, _ in pages], [path for path, _ in images])
    images = [each for each in images if each[0] not in own]
    if pages and images and finder is None:
        images = [each for each in images if each[0] in named]
        warnings.warn(
            "images without a page are left out; a line_model (--line-model) reads them", stacklevel=3
        )
    if not pages and not images:
        raise InputError(f"there is no page in {', '.join(named)}; expected ALTO or PAGE XML, or images")
    return sorted(pages + images)


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


def _warn_of(unread: Sequence[str], count: int, source: str, reason: str) -> None:
    names = f"{', '.join(unread[:3])}{', …' if len(unread) > 3 else ''}"
    warnings.warn(f"{source}: {len(unread)} of {count} lines {reason}, not read: {names}", stacklevel=3)


def _page_of(found: FoundPage, image: Path) -> Page:
    """A page whose lines were found, as if it had been read from XML."""
    xml = page_xml(found, image.name)
    return Page(image.with_suffix(SUFFIX), image, found.width, found.height, tuple(found.lines), xml)


def _found_rows(job: Job, lines: Sequence[PageLine]) -> list[Row]:
    rows = []
    for line in lines:
        assert line.baseline is not None
        points = line.baseline.round(1).tolist()
        polygon = [] if line.polygon is None else line.polygon.round(1).tolist()
        baseline = " ".join(f"{x:g},{y:g}" for x, y in points)
        rows.append({"file": job.source, "line": line.id, "baseline": baseline, "polygon": polygon})
    return rows


def _picture_path(job: Job) -> str:
    return os.path.splitext(job.target)[0] + ".out.png"
