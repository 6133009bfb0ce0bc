"""Lines of text, and pages, from folders: what is trained on.

texts         images and labels.tsv, each line of which is: file, tab, text
pages         images with ALTO or PAGE XML, at any depth; the samples are the lines with a text
transcripts   an image of a line, and its text in a file of the same name that ends in .gt.txt
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from mdlstm_tk.data.files import Sample, files_below, given, image_sample, images_below, read_pixels
from mdlstm_tk.data.scan import MAX_THREADS, is_grey
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES, Array
from mdlstm_tk.io.images import to_grey
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.pages import SIZE, SUFFIX, Page, PageLine, head_of, read_page

log = logging.getLogger("mdlstm_tk.data")
TRANSCRIPT = ".gt.txt"
OCROPUS = (".bin", ".nrm", ".dew", ".raw")  # OCRopus calls the image of 0001.gt.txt 0001.bin.png


def texts_of_table(path: Path, table: str) -> list[Sample]:
    """The images that a table of file, tab, text names.

    Raises:
        InputError: the table cannot be read.
    """
    samples: dict[str, Sample] = {}
    for number, line in enumerate(_text_lines(path / table), 1):
        if not line.strip():
            continue
        name, *texts = line.split("\t")
        key = os.path.realpath(path / name)
        if len(texts) != 1 or key in samples:
            place, reason = f"line {number} of {table}", f"expected file, tab, text, and {name} once"
            samples[place] = _unusable(place, reason)
        else:
            samples[key] = image_sample(path, path / name, partial(given, texts[0]))
    if others := [image for image in images_below(path) if os.path.realpath(image) not in samples]:
        log.info("images that %s does not name, left out: %d", table, len(others))
    return [*samples.values()]


def texts_of_pages(path: Path) -> list[Sample]:
    """The lines with a text of all pages below a folder, and the images of lines with a transcript."""
    samples, files, of_pages = list[Sample](), files_below(path), set[Path | None]()
    for name, page in _pages(path, files, lambda page: any(line.text for line in page.lines)):
        if isinstance(page, str):
            samples.append(_unusable(name, page))
            of_pages.add(head_of(path / name)[1])
            continue
        of_pages.add(page.image)
        for line in page.lines:
            if line.text:
                samples.append(Sample(f"{name} {line.id}", partial(_read_line, page.image, line), name))
    images = defaultdict[str, list[Path]](list)
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES and file not in of_pages:
            images[str(file.with_suffix(""))].append(file)
    samples += [_of_transcript(path, each, images) for each in files if each.name.endswith(TRANSCRIPT)]
    if untold := sum(map(len, images.values())):
        log.info("images without a text or a page, left out: %d", untold)
    return samples


def _of_transcript(path: Path, file: Path, images: dict[str, list[Path]]) -> Sample:
    """The image that has its text in a file beside it, which is taken out of `images` by their names."""
    stem = str(file).removesuffix(TRANSCRIPT)
    found = images.pop(stem, []) or [image for form in OCROPUS for image in images.pop(stem + form, [])]
    if len(found) != 1:
        names = " and ".join(image.name for image in found) or "no image of a line"
        return _unusable(os.path.relpath(file, path), f"{names} beside it, expected one image")
    return image_sample(path, found[0], partial(_read_transcript, file))


def whole_pages(path: Path) -> list[Sample]:
    """All pages below a folder, each with its baselines."""
    samples, lines_without = list[Sample](), 0
    for name, page in _pages(path, files_below(path), lambda page: bool(baselines_of(page))):
        if isinstance(page, str):
            samples.append(_unusable(name, page))
        elif lines := baselines_of(page):
            target = replace(page, xml=None)  # so that processes can share it
            samples.append(Sample(name, partial(_read_page, target), name))
            lines_without += len(page.lines) - len(lines)
        else:
            samples.append(_unusable(name, "it has no baselines"))
    if lines_without:
        log.warning("lines without a baseline on their page, learned as no lines: %d", lines_without)
    return samples


def _pages(
    path: Path, files: Sequence[Path], is_used: Callable[[Page], bool]
) -> Iterator[tuple[str, Page | str]]:
    """The pages among files, with their names, or why one cannot be used.

    Of two pages with one image that are used, the second cannot be: an image would lie in two splits where
    its page is there as ALTO and as PAGE.
    """
    of_image: dict[Path, str] = {}
    for file in files:  # also those that break before they tell what they hold
        if file.suffix.lower() != SUFFIX or head_of(file)[0] not in (*SIZE, ""):
            continue
        name = os.path.relpath(file, path)
        try:
            page = read_page(file)
        except InputError as error:
            yield name, str(error).removeprefix(f"{file}").lstrip(" :")
            continue
        first = of_image.setdefault(page.image.resolve(), name) if is_used(page) else name
        yield name, page if first == name else f"it is for the image of {first}; delete one of them"


def baselines_of(page: Page) -> list[Array]:
    """The baselines of the lines that have one."""
    return [line.baseline for line in page.lines if line.baseline is not None]


def _unusable(name: str, reason: str) -> Sample:
    """A sample that is named in the log and left out."""
    return Sample(name, partial(_refuse, reason), name)


def _refuse(reason: str) -> tuple[Array, Any]:
    raise InputError(reason)


def _read_page(page: Page) -> tuple[Array, Page]:
    pixels = read_pixels(page.image, page.image.name)
    return to_grey(pixels) if pixels.ndim == 3 else pixels, page


_lock = Lock()  # so that threads that come to the next page do not all decode it


def _read_line(image: Path, line: PageLine) -> tuple[Array, str]:
    with _lock:
        pixels = page_pixels(image, image.stat().st_mtime_ns if image.exists() else 0)
    return cut_line(pixels, line), line.text


@lru_cache(maxsize=MAX_THREADS)
def page_pixels(image: Path, version: int = 0) -> Array:
    """The pixels of a page, with one channel if it is grey; `version` is the time of the file, which may be
    replaced by another one."""
    pixels = read_pixels(image, image.name)
    return pixels[..., 0] if pixels.ndim == 3 and is_grey(pixels) else pixels


def _read_transcript(file: Path) -> str:
    lines = [line.strip() for line in _text_lines(file) if line.strip()]
    if len(lines) > 1:
        raise InputError(f"{file.name} has {len(lines)} lines, expected one")
    return "".join(lines)


def _text_lines(file: Path) -> list[str]:
    """The lines of a text in UTF-8; a separator of Unicode, such as U+2028, does not end one."""
    try:
        return file.read_text(encoding="utf-8-sig").split("\n")  # with Python's universal ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no text in UTF-8: {error}") from None
