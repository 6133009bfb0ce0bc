"""Read pages: find their lines if nobody has, read them, and write the pages again or the texts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdlstm_tk._util.text_order import is_right_to_left, reorder
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import IMAGE_SUFFIXES, STDIO, Array
from mdlstm_tk.io.files import check_free, find_files, open_output, read_bytes, suffix_of
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.io.images import scale as scale_pixels
from mdlstm_tk.kinds.kind import Row
from mdlstm_tk.kinds.panels import draw_input
from mdlstm_tk.runtime.answers import TABLES
from mdlstm_tk.runtime.infer import Inference, Job, Result, failed, open_model
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import Batch as Feeds
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.layout import check_finder, find_page
from mdlstm_tk.text.pages import SIZE, SUFFIX, Page, PageLine, head_of, points_text, read_page, write_page
from mdlstm_tk.text.transcribe import check_reader, prepare_line, read_prepared, row_of

MAX_SIDE = 2000  # pixels of a picture; larger pages are scaled down
BASELINE, OUTLINE, TEXT = (214, 40, 57), (31, 119, 180), (0, 70, 140)
# Fonts with many letters, of Linux, Windows and macOS; the one that Pillow brings has no accents.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf")
FADE = 0.35  # by which the page becomes paler
Cuts = tuple[dict[int, Feeds], list[str]]
"""The prepared images of lines by their numbers on the page; and why others cannot be read."""


@dataclass
class PageReading(Inference):
    """A planned reading of pages, one after the other; see `Inference`.

    Attributes:
        finder: the model that finds lines in photographs; None: there are none. The session itself, if
            lines are found and not read.
        overlay: draw what was found and read.
    """

    finder: Any = None
    overlay: bool = False

    def _results(self) -> Iterator[Result]:
        with ThreadPoolExecutor(1) as executor:  # the next page is decoded and cut while the model works
            opened = [executor.submit(self._open, job) for job in self.jobs[:1]]
            for k, job in enumerate(self.jobs, 1):
                opened += [executor.submit(self._open, each) for each in self.jobs[k : k + 1]]
                try:
                    yield Result(job, rows=self._read_page(job, *opened.pop(0).result()))
                except Exception as error:  # of all kinds, as of a damaged page
                    yield failed(job, error)

    def _open(self, job: Job) -> tuple[Array, Page | None, Cuts]:
        """The pixels of a page, the page if it tells its lines, and their cuts."""
        page = read_page(job.source) if suffix_of(job.source) == SUFFIX else None
        image = str(page.image) if page else job.source
        pixels = decode_image(read_bytes(image), image)
        return pixels, page, self._cut(page, pixels) if page else ({}, [])

    def _cut(self, page: Page, pixels: Array) -> Cuts:
        cuts, lost = dict[int, Feeds](), list[str]()
        for k, line in enumerate(() if self.finder is self.session else page.lines):
            try:
                cuts[k] = prepare_line(self.session, cut_line(pixels, line), "it")
            except InputError as error:
                lost.append(f"{line.id}: {error}")
        return cuts, lost

    def _read_page(self, job: Job, pixels: Array, page: Page | None, cuts: Cuts) -> list[Row]:
        """Find the lines of a page unless it tells them, read them, and write what is asked for."""
        finds_only = self.finder is self.session
        if page is None or finds_only:
            image = Path(job.source) if page is None else page.image
            page = find_page(self.finder, pixels, image, self.session.metadata.more.get("text_direction"))
            cuts = self._cut(page, pixels)
        images, lost = cuts
        lines = read_prepared(self.session, [*images.values()], **self.options) if images else []
        read = dict(zip(images, lines, strict=True))
        if lost and not read:
            raise InputError(f"line {lost[0]}")
        if lost:
            text = f"{len(lost)} of {len(page.lines)} lines are not read, such as {lost[0]}"
            warnings.warn(f"{job.source}: {text}", stacklevel=2)
        if not page.lines:
            warnings.warn(f"{job.source} has no lines", stacklevel=2)
        if self.overlay:  # before the XML, which says that the page is done
            picture = draw_overlay(pixels, page.lines, {k: line.text for k, line in read.items()})
            with open_output(_picture_path(job), self.force) as file:
                picture.save(file, "PNG")
        if job.form == SUFFIX[1:]:
            write_page(page, read, job.target, replace=self.force)
        if finds_only:
            places = [{"baseline": each.baseline, "polygon": each.polygon} for each in page.lines]
            rows = {k: {key: points_text(p) for key, p in each.items()} for k, each in enumerate(places)}
        else:
            rows = {k: row_of(line) for k, line in read.items()}
        return [{"file": job.source, "line": page.lines[k].id, **row} for k, row in rows.items()]


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
    """Plan the reading of pages: images with ALTO or PAGE XML, and photographs whose lines are found.

        >>> for result in read_pages(["scans/"], "lines.onnx", "read/", line_model="baselines.onnx"):
        ...     print(result.job.target, result.error or "ok")

    Args:
        pages: XML files, images, and folders of them. An image that belongs to an XML is read with it.
        reader: a model of kind "transcribe", or of kind "baselines", which only finds lines.
        output: a folder for the XML of each page, with the texts; or a file for all texts, .tsv, .csv or
            .json; None, or "-": they are written to standard output.
        line_model: a model of kind "baselines", which finds the lines of photographs.
        beam, lm: see `read_lines`.
        overlay: draw what was found and read into the folder, as NAME.out.png.
        force: replace what exists.

    Returns:
        The plan. Iterating over it does the work, and yields a `Result` for each page.

    Raises:
        InputError: there is nothing to read, a result exists, or a model or an argument does not fit.
    """
    session = reader if isinstance(reader, Session) else open_model(Path(reader))
    finder = open_model(Path(line_model)) if isinstance(line_model, str | Path) else line_model
    options: dict[str, Any] = {}
    if session.metadata.kind == "baselines":
        if (line_model, beam, lm) != (None, None, None):
            raise InputError("a model of kind baselines reads no texts; leave out line_model, beam and lm")
        finder = session
    elif not isinstance(session, Session):
        raise InputError(f"{reader} is tiled, but lines are read whole; run: mdlstm export --form scan")
    else:
        options = {"beam": beam, "lm": CharacterModel.load(lm) if isinstance(lm, str | Path) else lm}
        check_reader(session.metadata, **options)
    if finder is not None:
        check_finder(finder.metadata)
    target = STDIO if output is None else os.fspath(output)
    form = "tsv" if target == STDIO else suffix_of(target)[1:]
    is_table = form in TABLES and not os.path.isdir(target)
    if not os.path.isdir(target) and (form == SUFFIX[1:] or (is_table and overlay)):
        raise InputError(f"pages and pictures are written into a folder; give one with -o, not {target}")
    jobs = []
    for source, relative in _inputs(
        [os.fspath(page) for page in pages], "" if is_table else target, finder
    ):
        place = os.path.join(target, os.path.splitext(relative)[0] + SUFFIX)
        jobs.append(Job(source, STDIO, form) if is_table else Job(source, place, SUFFIX[1:]))
    targets = [target] if is_table else [job.target for job in jobs]
    if len({*targets}) < len(targets):
        raise InputError("two pages would become one file; read them separately, each into its own folder")
    if {*map(os.path.realpath, targets)} & {os.path.realpath(job.source) for job in jobs}:
        raise InputError("a result would replace a page; give another folder with -o")
    for each in [*targets, *(_picture_path(job) for job in jobs if overlay)]:
        if each != STDIO:
            check_free(each, force)
    path = Path(reader) if isinstance(reader, str | Path) else Path()
    table = target if is_table else None
    return PageReading(
        session, path, jobs, table, options=options, force=force, finder=finder, overlay=overlay
    )


def _inputs(named: Sequence[str], folder: str, finder: Any) -> list[tuple[str, str]]:
    """The pages, and the photographs that belong to none, with their paths below the folders that were
    named; without earlier results, where their folder lies in one of these."""
    found, results = find_files(named, (SUFFIX, *IMAGE_SUFFIXES)), os.path.realpath(folder)
    if folder and any(results.startswith(os.path.realpath(each) + os.sep) for each in named):
        inside = results + os.sep
        found = [each for each in found if not os.path.realpath(each[0]).startswith(inside)]
    heads = {path: head_of(Path(path)) for path, _ in found if suffix_of(path) == SUFFIX}
    pages = [each for each in found if each[0] in heads and (each[0] in named or heads[each[0]][0] in SIZE)]
    own = {os.path.realpath(image) for path, _ in pages if (image := heads[path][1])}
    images = [each for each in found if each[0] not in heads and os.path.realpath(each[0]) not in own]
    if images and finder is None:
        text = f"nothing tells where the lines of {images[0][0]} are; give a line_model (--line-model)"
        if not pages or images[0][0] in named:
            raise InputError(f"{text}, or read images of lines with mdlstm infer")
        warnings.warn(f"{text}; it is left out", stacklevel=3)
        images = []
    if not pages and not images:
        raise InputError(f"there is no page in {', '.join(named)}; expected ALTO or PAGE XML, or images")
    return sorted(pages + images)


def _picture_path(job: Job) -> str:
    return os.path.splitext(job.target)[0] + ".out.png"


def draw_overlay(pixels: Array, lines: Sequence[PageLine], texts: Mapping[int, str]) -> Any:
    """Draw the baselines, outlines and texts of lines on their page.

    Args:
        pixels: (H, W) or (H, W, 3), the page as `decode_image` returns it.
        lines: of the page, in pixels of it.
        texts: by the number of a line; each is written above its baseline.

    Returns:
        A picture of Pillow, at most `MAX_SIDE` wide and high.
    """
    module: Any = require("PIL.Image", "image")
    drawing, fonts = (require(f"PIL.{name}", "image") for name in ("ImageDraw", "ImageFont"))
    scale = min(1.0, MAX_SIDE / max(pixels.shape[:2]))
    small = scale_pixels(pixels[:: int(1 / scale), :: int(1 / scale)])
    extents = tuple(max(round(extent * scale), 1) for extent in pixels.shape[1::-1])
    image = module.fromarray(draw_input(small.reshape(*small.shape[:2], -1), FADE)).resize(extents)
    draw = drawing.Draw(image)
    for k, line in enumerate(lines):
        if line.polygon is not None:
            outline = [tuple(point) for point in (line.polygon * scale).tolist()]
            draw.line([*outline, outline[0]], OUTLINE, 1)
        if line.baseline is None:
            continue
        baseline = [tuple(point) for point in (line.baseline * scale).tolist()]
        draw.line(baseline, BASELINE, 2)
        if text := texts.get(k):
            if not require("PIL.features", "image").check("raqm"):  # which orders right-to-left texts
                text = reorder(text, "rtl" if is_right_to_left(text) else "ltr")
            font = _font(fonts, max(round(0.4 * sum(line.reach or (10, 10)) * scale), 8))
            draw.text(baseline[0], text, TEXT, font, anchor="ls", stroke_width=2, stroke_fill=(255,) * 3)
    return image


def _font(fonts: Any, size: int) -> Any:
    """The first of `FONTS` that this machine has, or else Pillow's own."""
    for name in FONTS:
        with suppress(OSError):
            return fonts.truetype(name, size)
    return fonts.load_default(size)
