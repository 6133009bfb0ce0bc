"""Lines of text, and pages, from folders.

texts         images and labels.tsv, each line of which is: file, tab, text
pages         images with ALTO or PAGE XML, at any depth; the samples are the lines with a text
transcripts   an image of a line, and its text in a file of the same name that ends in .gt.txt
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mdlstm_tk._util.text import counted
from mdlstm_tk.data import folders
from mdlstm_tk.data.images import is_grey, read_pixels
from mdlstm_tk.data.samples import MAX_THREADS, MemoryBudget
from mdlstm_tk.data.spec import Array, RawSample
from mdlstm_tk.data.tables import Row, list_rows
from mdlstm_tk.data.targets import unchanged
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES
from mdlstm_tk.io.images import to_grey
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.markup import root_tag
from mdlstm_tk.text.pages import ALTO, PAGE, SUFFIX, Page, PageLine, images_of_pages, read_page
from mdlstm_tk.text.transcribe import KIND

TRANSCRIPT = ".gt.txt"
OCROPUS = (".bin", ".nrm", ".dew", ".raw")  # OCRopus calls the image of 0001.gt.txt 0001.bin.png


Found = TypeVar("Found")


def list_pages(path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
    """List the lines of all pages below a folder.

    Each page is decoded once, and its cut lines are kept in memory as they are, if `budget` has room. The
    others are cut again whenever they are read.

    Returns:
        The samples, among them one that cannot be used for each bad page or line; and notes for the user.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    samples: list[RawSample] = []
    pages = with_text = without_text = 0
    for name, page, cuts in _read_pages(path, _cut_lines):
        pages += 1
        if isinstance(page, str):
            samples.append(RawSample.unusable(name, page))
            continue
        with_text, without_text = with_text + len(cuts), without_text + len(page.lines) - len(cuts)
        image = page.image.resolve()
        for line, cut in cuts:
            line_name = f"{name} {line.id}"
            if isinstance(cut, str):
                samples.append(RawSample.unusable(line_name, cut))
                continue
            in_memory = budget.take(cut.nbytes)
            read: Callable[[], Array] = (
                partial(np.asarray, cut) if in_memory else partial(_read_line, image, line)
            )
            samples.append(RawSample(line_name, read, partial(str, line.text), True, name, in_memory))
    notes = []
    if pages:
        counts = f"{counted(with_text, 'line')} with a text and {without_text} without, which are left out"
        notes.append(f"pages: {pages}, with {counts}")
    if cut_again := sum(bool(sample.whole) and not sample.in_memory for sample in samples):
        lines = counted(cut_again, "line of pages is", "lines of pages are")
        notes.append(f"{lines} cut again in every epoch, which is slow; a larger --cache keeps them")
    return samples, notes


class PageTarget(NamedTuple):
    """The lines of a page, as a finder of lines learns them.

    Attributes:
        width, height: of the page in pixels.
        lines: baselines (K, 2) in pixels, each from the left end of a line that stands upright.
        reach: pixels that its outlines reach above and below; None if it has none.
    """

    width: int
    height: int
    lines: tuple[Array, ...]
    reach: tuple[float, float] | None


def list_whole_pages(path: Path) -> tuple[list[RawSample], list[str]]:
    """List all pages below a folder, each with its baselines, and notes for the user.

    Pages without any are left out; a bad page is a sample that cannot be used.
    """
    samples: list[RawSample] = []
    without = lines_without = 0
    for name, page, lines in _read_pages(path, _baselines):
        if isinstance(page, str):
            samples.append(RawSample.unusable(name, page))
        elif lines:
            target = PageTarget(page.width, page.height, tuple(lines), page.lines[0].reach)
            lines_without += len(page.lines) - len(lines)
            read_x, read_y = partial(_grey_pixels, page.image), partial(unchanged, target)
            samples.append(RawSample(name, read_x, read_y, is_image=True))
        else:
            without += 1
    notes = folders.left_out("pages without a baseline", without)
    if lines_without:
        notes.append(f"lines without a baseline on their page, learned as no lines: {lines_without}")
    return samples, notes


def _read_pages(
    path: Path, find: Callable[[Page], Sequence[Found]]
) -> Iterator[tuple[str, Page | str, Sequence[Found]]]:
    """Read all pages below a folder, with a few threads.

    Yields for each its name, the page or the reason why it cannot be used, and what `find` returned. Of two
    pages with an image, in which something was found, the second cannot be used: an image would lie in two
    splits where its page is there as ALTO and as PAGE.
    """

    def read(file: Path) -> tuple[Page | str, Sequence[Found]]:
        try:
            page = read_page(file)
            return page, find(page)
        except InputError as error:
            return str(error).removeprefix(f"{file}").lstrip(" :"), ()

    files = _page_files(path)
    of_image: dict[Path, str] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for file, (page, found) in zip(files, pool.map(read, files), strict=True):
            name = os.path.relpath(file, path)
            if found and isinstance(page, Page):
                first = of_image.setdefault(page.image.resolve(), name)
                if first != name:
                    page, found = f"it is for the image of {first}; delete one of them", ()
            yield name, page, found


def _page_files(path: Path) -> list[Path]:
    """The files below a folder that hold a page, or that break before they tell what they hold."""
    files = [file for file in folders.find_files(path) if file.suffix.lower() == SUFFIX]
    return [file for file in files if root_tag(file) in (ALTO, PAGE, None)]


def _baselines(page: Page) -> list[Array]:
    return [line.baseline for line in page.lines if line.baseline is not None]


def _cut_lines(page: Page) -> list[tuple[PageLine, Array | str]]:
    """The lines of a page with a text, and for each its pixels or the reason why it cannot be cut."""
    pixels = _pixels(page.image)
    cuts: list[tuple[PageLine, Array | str]] = []
    for line in page.lines:
        if line.text:
            try:
                cuts.append((line, cut_line(pixels, line)))
            except InputError as error:
                cuts.append((line, str(error)))
    return cuts


def _grey_pixels(image: Path) -> Array:
    pixels = read_pixels(image, image.name)
    return to_grey(pixels) if pixels.ndim == 3 else pixels


def list_texts(path: Path) -> tuple[list[RawSample], list[str]]:
    """List the images and texts of labels.tsv, and notes for the user; a bad line is a sample that cannot
    be used."""
    rows = []
    for number, line in enumerate(folders.read_lines(path / KIND.table), 1):
        if line.strip():
            name, *texts = line.split("\t")
            has = f"{counted(len(texts) + 1, 'column')}" if texts else "no tab"
            reason = "" if len(texts) == 1 else f"it has {has}; expected file, tab, text"
            rows.append(Row(number, name, reason, partial(str, *texts[:1])))
    return list_rows(path, KIND.table, rows)


def list_transcripts(path: Path) -> tuple[list[RawSample], list[str]]:
    """List the images below a folder that have a text in a file beside them, and notes for the user, also
    of images that have neither that nor a page."""
    files = folders.find_files(path)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    of_pages = images_of_pages([*map(str, _page_files(path))], [*map(str, images)])
    images_of = folders.by_stem(path, images)
    texts = {
        file.with_name(file.name.removesuffix(TRANSCRIPT)).relative_to(path): file
        for file in files
        if file.name.endswith(TRANSCRIPT)
    }
    without_image = texts.keys() - images_of.keys()
    for stem in images_of.keys() - texts.keys():
        name = stem.with_suffix("")
        if stem.suffix in OCROPUS and name in without_image:
            images_of[name] = sorted([*images_of.get(name, ()), *images_of.pop(stem)])
    samples = []
    for stem, file in texts.items():
        images = images_of.pop(stem, [path / stem.with_name(f"{stem.name}.png")])
        reason = folders.refuse_twins(images)
        if str(images[0]) in of_pages:
            reason = (
                "it is the image of a page in ALTO or PAGE XML, of which only the lines count; delete the "
                f"page or {file.name}"
            )
        samples.append(folders.image_sample(path, images[0], partial(_read_transcript, file), reason))
    untold = [image for images in images_of.values() for image in images]
    others = [image for image in untold if str(image) not in of_pages]
    return samples, folders.left_out_of("images without a text or a page", others, path)


def _pixels(image: Path) -> Array:
    """The pixels of a page, with one channel if it is grey."""
    pixels = read_pixels(image, image.name)
    return pixels[..., 0] if pixels.ndim == 3 and is_grey(pixels) else pixels


@lru_cache(maxsize=MAX_THREADS)
def _page_pixels(image: Path, version: tuple[int, int]) -> Array:
    """The pixels of a page; `version` is that of the file, which may be replaced by another one."""
    return _pixels(image)


def _read_line(image: Path, line: PageLine) -> Array:
    try:
        status = image.stat()
    except OSError:
        raise InputError(f"{image.name}: there is no such file") from None
    return cut_line(_page_pixels(image, (status.st_mtime_ns, status.st_size)), line)


def _read_transcript(file: Path) -> str:
    lines = [line.strip() for line in folders.read_lines(file) if line.strip()]
    if len(lines) > 1:
        raise InputError(f"{file.name} has {len(lines)} lines, expected one")
    return "".join(lines)
