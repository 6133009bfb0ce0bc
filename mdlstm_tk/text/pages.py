"""Pages of text lines: ALTO 2 to 4, and PAGE XML 2013 to 2019.

>>> page = read_page("0001.xml")                     # the image lies beside it
>>> page.lines[0].text, page.lines[0].baseline
>>> write_page(page, {page.lines[0].id: transcription}, "read/0001.xml")

Lines come in the order of the file, those of nested regions included. Coordinates are pixels of the image
as `decode_image` returns it, turned upright by its EXIF data: if the file counts in other extents, they are
scaled, and turned if only the image as it is stored has their shape.

The text of a line is, in ALTO, the CONTENT of its Strings, each a word or more, joined by blanks, with the
hyphen of a HYP at its end, unless the last String has it, too. In PAGE it is that of the TextEquiv of the
line with the lowest index, else of its words, joined by blanks. Texts are composed (NFC), without blanks at
their ends.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf
from pathlib import Path

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import composed, printable
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES, Array
from mdlstm_tk.io.files import open_output
from mdlstm_tk.text.baselines import REACH
from mdlstm_tk.text.ctc import ReadLine
from mdlstm_tk.text.markup import Document, Element, escaped, quoted, root_tag
from mdlstm_tk.text.page_geometry import (
    BOX,
    Frame,
    Place,
    baselines_from_left,
    box_around,
    read_number,
    typical_reach,
)
from mdlstm_tk.text.polylines import spacing_of

SUFFIX = ".xml"
SUBFOLDERS = ("page", "alto")  # where Transkribus puts the XML; images lie in the folder above
ALTO, PAGE = "alto", "PcGts"
HYPHENS = ("-", "¬", "=", "⸗", "­", "‐")
BEFORE_TEXT = ("AlternativeImage", "Coords", "Baseline", "Word", "Glyph")  # in the schema of PAGE
OFFSETS = re.compile(r"(?<![\s\w.-])\s*[\w.-]+\s*\{[^{}]*\boffset\s*:[^{}]*\}")  # of `custom`


@dataclass(frozen=True)
class PageLine:
    """A line of text on a page.

    Attributes:
        id: its ID in the file, else its number in the file, from 1.
        text: the text, None if there is none.
        baseline: (K, 2), K > 1: x and y in pixels of the image, from the left end of a line that stands
            upright; None if there is none.
        polygon: (K, 2), K > 2: its outline; None if there is none.
        box: left, top, right and bottom: of the outline, else as the file says, else around the baseline.
            Empty, with zeros, if the file says nothing about its position.
        reach: pixels that a typical line of the page reaches above and below its baseline; None if no
            line has an outline and a baseline.
    """

    id: str
    text: str | None
    baseline: Array | None
    polygon: Array | None
    box: tuple[int, int, int, int]
    reach: tuple[float, float] | None = None


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        path: the ALTO or PAGE file.
        image: the image file.
        width, height: of the upright image in pixels.
        lines: in the order of the file.
        content: the bytes of the file, if `read_page` was given them.
    """

    path: Path
    image: Path
    width: int
    height: int
    lines: tuple[PageLine, ...]
    content: bytes | None = None


def is_page(path: str | Path) -> bool:
    """True if a path names an `.xml` file with ALTO or PAGE in it."""
    path = Path(path)
    return path.suffix.lower() == SUFFIX and root_tag(path) in (ALTO, PAGE)


@checked
def read_page(path: str | Path, content: bytes | None = None) -> Page:
    """Read a page.

    Its image is the file that it names, in the folder of the XML, else the image of the same name as the
    XML. In a folder "page" or "alto", the folder above is searched, too.

    Args:
        path: the file.
        content: its bytes, if they came by another way; `path` is then their name beside the image.

    Raises:
        InputError: the file cannot be read or is neither ALTO nor PAGE, there is no image or one of another
            shape, or coordinates are not pixels.
        MissingExtraError: Pillow is not installed.
    """
    path = Path(path)
    root, elements = _open(path, content)[1:]
    if root.tag == ALTO:
        measure = root.first("Description", "MeasurementUnit")
        unit = measure.text.strip() if measure else ""
        if unit.lower() not in ("", "pixel"):
            raise InputError(
                f"{path} gives coordinates in {printable(unit[:40])}, expected pixels; export it with "
                "MeasurementUnit pixel"
            )
    image = _find_image(path, root)
    keys = ("WIDTH", "HEIGHT") if root.tag == ALTO else ("imageWidth", "imageHeight")
    sheet = next(root.descendants("Page"))
    width, height = (read_number(sheet.attributes.get(key)) or 0.0 for key in keys)
    frame = Frame.of(path, image, (width, height))
    width, height = frame.extents.astype(int).tolist()
    return Page(path, image, width, height, tuple(_lines(elements, frame)), content)


def image_of(path: str) -> Path | None:
    """The image that `read_page` finds for a page; None if the page cannot be read, or has none."""
    try:
        return _find_image(Path(path), _open(Path(path), None)[1])
    except InputError:
        return None


def images_of_pages(pages: Sequence[str], images: Sequence[str]) -> set[str]:
    """The images that belong to pages: those that `read_page` finds, and those of the name of a page that
    cannot be read."""
    found, names = set[str](), set[tuple[str, str]]()
    for page in map(Path, pages):
        if image := image_of(str(page)):
            found.add(os.path.realpath(image))
        else:
            names |= {(os.path.normpath(folder), page.stem) for folder in _folders(page)}
    places = {image: (os.path.normpath(Path(image).parent), Path(image).stem) for image in images}
    return {image for image in images if os.path.realpath(image) in found or places[image] in names}


def _folders(page: Path) -> list[Path]:
    """The folders in which the image of a page may lie."""
    return [page.parent, *([page.parent.parent] if page.parent.name.lower() in SUBFOLDERS else [])]


@checked
def write_page(
    page: Page, transcriptions: Mapping[str, ReadLine], target: str | Path, *, replace: bool = True
) -> None:
    """Write the XML of a page again with other texts and confidences, and nothing else changed.

    ALTO gets String/@CONTENT and @WC, PAGE TextEquiv/Unicode and @conf. Where a line has as many words as
    the text, without blank ones, each gets its own; else one String gets the whole text and the others go,
    and words of PAGE keep their positions without texts. What describes the former text is removed as well:
    alternatives of ALTO, glyphs, the division of words, and places in it. A PAGE region that has a text of
    its own gets that of its lines.

    Args:
        page: what `read_page` returned; the file is read again.
        transcriptions: by the `id` of the line; other lines stay as they are.
        target: the file to write, which appears whole or not at all; "-" is standard output.
        replace: the file may exist.

    Raises:
        InputError: the file has changed and has no such line any more, or `target` may not be replaced.
        MDLSTMError: the file cannot be written.
    """
    document, root, elements = _open(page.path, page.content)
    for name, transcription in transcriptions.items():
        if name not in elements:
            raise InputError(f"{page.path} has no line {name}; it has changed since it was read")
        write = _write_alto if root.tag == ALTO else _write_text
        write(document, elements[name], transcription)
    if root.tag == PAGE:
        texts = {elements[name]: transcription.text for name, transcription in transcriptions.items()}
        for region in (each for tag in ("TextRegion", "TableCell") for each in root.descendants(tag)):
            equiv, lines = _main_equiv(region), list(region.descendants("TextLine"))
            if equiv and not texts.keys().isdisjoint(lines):
                joined = "\n".join(texts.get(line, _text(line) or "") for line in lines)
                _write_equiv(document, region, equiv, joined, None)
    with open_output(target, replace) as file:
        file.write(document.render())


def _open(path: Path, content: bytes | None) -> tuple[Document, Element, dict[str, Element]]:
    """Parse a file: the document, its root, and its lines by their IDs."""
    document = Document(path, content)
    root = document.root
    if root.tag not in (ALTO, PAGE):
        raise InputError(f"{path} holds <{root.tag[:40]}>, expected ALTO (<alto>) or PAGE XML (<{PAGE}>)")
    if (count := sum(1 for _ in root.descendants("Page"))) != 1:
        raise InputError(f"{path} holds {count} pages, expected one in each file")
    if any(root.descendants("Point")):
        raise InputError(f"{path} holds <Point>, as PAGE XML before 2013; convert it to 2013 or later")
    lines = [*root.descendants("TextLine")]
    names = [line.attributes.get("ID") or line.attributes.get("id") or "" for line in lines]
    taken, elements = {*names}, dict[str, Element]()
    for k, (name, line) in enumerate(zip(names, lines, strict=True)):
        if not name or name in elements:  # the file should name it, and name no other so
            numbers = range(k + 1, k + 2 + len(names))
            others = (f"{name}:{number}" if name else str(number) for number in numbers)
            name = next(other for other in others if other not in taken and other not in elements)
        elements[name] = line
    return document, root, elements


def _find_image(path: Path, root: Element) -> Path:
    """The image of a page; only the last part of the name counts, which may be a path or an address."""
    if root.tag == ALTO:
        file_name = root.first("Description", "sourceImageInformation", "fileName")
        name = file_name.text if file_name else ""
    else:
        name = next(root.descendants("Page")).attributes.get("imageFilename", "")
    name = re.split(r"[/\\]", name.strip())[-1]
    names = [name, *(path.stem + form for suffix in IMAGE_SUFFIXES for form in (suffix, suffix.upper()))]
    for candidate in (folder / name for folder in _folders(path) for name in names if name):
        if candidate.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(candidate):
            return candidate
    hint = f"{printable(name[:80])}, which it names, or " if name else ""
    raise InputError(f"{path} has no image; expected {hint}{path.stem}.jpg or .png beside it")


def _lines(elements: Mapping[str, Element], frame: Frame) -> Iterator[PageLine]:
    texts = [_text(element) for element in elements.values()]
    places = [Place.read(element, frame) for element in elements.values()]
    baselines = baselines_from_left(places, "".join(texts))
    reach = typical_reach((line, place.polygon) for line, place in zip(baselines, places, strict=True))
    spacing = spacing_of([line for line in baselines if line is not None], float(frame.extents[1]))
    above, below = reach or (REACH["above"] * spacing, REACH["below"] * spacing)
    for name, text, (_, polygon, corners), baseline in zip(elements, texts, places, baselines, strict=True):
        if corners is None:
            corners = np.zeros((1, 2))
            if baseline is not None:
                corners = frame.clipped(box_around(baseline, above, below))
        left, top = np.floor(corners.min(axis=0)).astype(int).tolist()
        right, bottom = np.ceil(corners.max(axis=0)).astype(int).tolist()
        yield PageLine(name, text or None, baseline, polygon, (left, top, right, bottom), reach)


def _text(element: Element) -> str:
    """The text of a line of either format, or of a PAGE word; "" if there is none."""
    strings = element.all("String")
    if strings:
        text = " ".join(filter(None, (string.attributes.get("CONTENT", "").strip() for string in strings)))
        if not text.endswith(HYPHENS):  # BnF has the hyphen in the String and in the HYP
            text += "".join(hyphen.attributes.get("CONTENT", "") for hyphen in element.all("HYP"))
    else:
        text = _unicode(element) or " ".join(filter(None, map(_unicode, element.all("Word"))))
    return composed(re.sub(r"(?<!\s)\s*[\t\r\n]\s*", " ", text).strip())


def _unicode(element: Element) -> str:
    """The text of the main TextEquiv of a PAGE element; "" if there is none."""
    equiv = _main_equiv(element)
    unicode = equiv.first("Unicode") if equiv else None
    return unicode.text.strip() if unicode else ""


def _main_equiv(element: Element) -> Element | None:
    """The TextEquiv with the lowest index; one without comes first."""
    equivs = element.all("TextEquiv")
    indices = [read_number(equiv.attributes.get("index")) for equiv in equivs]
    keys = [-inf if index is None else index for index in indices]
    return equivs[keys.index(min(keys))] if equivs else None


def _words(transcription: ReadLine) -> list[tuple[str, str]]:
    """The words of a text, each with the mean confidence of its characters."""
    words = []
    for is_blank, group in groupby(transcription.characters, lambda c: c.character.isspace()):
        if not is_blank:
            texts, _, _, confidences = zip(*group, strict=True)
            words.append(("".join(texts), f"{np.mean(confidences):.4f}"))
    return words


def _write_alto(document: Document, line: Element, transcription: ReadLine) -> None:
    strings, hyphens, words = line.all("String"), line.all("HYP"), _words(transcription)
    written = _written(strings)
    text, confidence = transcription.text, f"{transcription.confidence:.4f}"
    box = {key: line.attributes.get(key) for key in BOX}
    if not strings:
        values = {"CONTENT": text, "WC": confidence, **box}
        markup = "".join(f" {key}={quoted(value)}" for key, value in values.items() if value is not None)
        document.insert(line, line.first("Shape"), f"<{line.prefix}String{markup}/>")
        _remove_all(document, hyphens)
    elif len(strings) == 1 and not hyphens:
        _write_string(document, strings[0], text, confidence, {})
    elif text == " ".join(word for word, _ in words) and len(written) == len(words) and not hyphens:
        for string, word in zip(written, words, strict=True):
            _write_string(document, string, *word, {})
    else:
        _write_string(document, strings[0], text, confidence, box)
        _remove_all(document, strings[0].all("Shape"))
        _remove_all(document, [*strings[1:], *line.all("SP"), *hyphens])


def _write_string(
    document: Document, string: Element, text: str, confidence: str, box: Mapping[str, str | None]
) -> None:
    values = {"CONTENT": text, "WC": confidence, **box}
    if text != string.attributes.get("CONTENT"):
        values |= dict.fromkeys(("CC", "SUBS_TYPE", "SUBS_CONTENT"))
        _remove_all(document, [*string.all("ALTERNATIVE"), *string.all("Glyph")])
    document.set_attributes(string, values)


def _write_text(document: Document, line: Element, transcription: ReadLine) -> None:
    """Write the text of a PAGE line, and of its words."""
    confidence = f"{transcription.confidence:.4f}"
    _write_equiv(document, line, _main_equiv(line), transcription.text, confidence)
    words, texts = line.all("Word"), _words(transcription)
    written = _written(words)
    is_paired = len(written) == len(texts)
    for k, word in enumerate(written if is_paired else words):
        if is_paired:
            _write_equiv(document, word, _main_equiv(word), *texts[k])
        else:
            _remove_all(document, word.all("TextEquiv"))
            _remove_offsets(document, word)
        if _text(word) != (texts[k][0] if is_paired else ""):
            _remove_all(document, word.all("Glyph"))


def _written(words: Sequence[Element]) -> Sequence[Element]:
    """The Strings or Words that get the words of a text: if any has a text, those without whose text is
    blank, which kraken writes for the blanks between words."""
    texts = [word.attributes.get("CONTENT", _text(word) if _main_equiv(word) else None) for word in words]
    if not any(text and text.strip() for text in texts):
        return words
    return [word for word, text in zip(words, texts, strict=True) if text is None or text.strip()]


def _remove_offsets(document: Document, element: Element) -> None:
    """Remove the groups of a `custom` that point into the former text, as Transkribus has them."""
    custom = element.attributes.get("custom", "")
    remaining = OFFSETS.sub("", custom).strip()
    if remaining != custom.strip():
        document.set_attributes(element, {"custom": remaining or None})


def _remove_all(document: Document, elements: Iterable[Element]) -> None:
    for element in elements:
        document.remove(element)


def _write_equiv(
    document: Document, parent: Element, equiv: Element | None, text: str, conf: str | None
) -> None:
    """Write a TextEquiv of a region, line or word, or add one where the schema wants it."""
    prefix = parent.prefix
    unicode = equiv.first("Unicode") if equiv else None
    if unicode is None or text != unicode.text:
        _remove_offsets(document, parent)
    content = f"<{prefix}Unicode>{escaped(text)}</{prefix}Unicode>"
    if equiv is None:
        before = [child for child in parent.children if child.tag in BEFORE_TEXT]
        markup = f'<{prefix}TextEquiv conf="{conf}">{content}</{prefix}TextEquiv>'
        document.insert(parent, before[-1] if before else None, markup)
        return
    document.set_attributes(equiv, {"conf": conf})
    if unicode is None:
        document.set_content(equiv, content)
    elif text != unicode.text:
        document.set_content(unicode, escaped(text))
        _remove_all(document, equiv.all("PlainText"))
