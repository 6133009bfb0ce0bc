"""Pages of text lines: ALTO 2 to 4, and PAGE XML from 2013 on.

>>> page = read_page("0001.xml")                     # the image lies beside it
>>> page.lines[0].text, page.lines[0].baseline
>>> write_page(page, {0: reading}, "read/0001.xml")  # a `ReadLine` for the first line

Lines come in the order of the file, those of nested regions included. Coordinates are pixels of the image
as `decode_image` returns it, upright: if the file counts in other extents, they are scaled. Texts are
composed (NFC), without blanks at their ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk._util.text import composed, printable
from mdlstm_tk._util.text_order import is_right_to_left
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import IMAGE_SUFFIXES, Array
from mdlstm_tk.io.files import open_output, read_bytes
from mdlstm_tk.io.images import read_extents
from mdlstm_tk.text.ctc import ReadLine
from mdlstm_tk.text.geometry import spacing_of, typical_reach

SUFFIX = ".xml"
SUBFOLDERS = ("page", "alto")  # where Transkribus puts the XML; images lie in the folder above
ALTO, PAGE = "alto", "PcGts"  # the outermost elements
SIZE = {ALTO: ("WIDTH", "HEIGHT"), PAGE: ("imageWidth", "imageHeight")}
# What a stranger's file names is neither read nor fetched.
SAFELY = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
NAMESPACE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"  # of the pages that we make
REACH = {"above": 0.7, "below": 0.35}  # line spacings that lines reach from their baselines, where unknown
MAX_STRETCH = 0.05  # by which the shape of the image may differ from that in the file
BEFORE_TEXT = ("Coords", "Baseline", "TextLine", "TextRegion")  # children, in the schema of PAGE
OFFSETS = re.compile(r"[\w.-]+\s*\{[^{}]*\boffset\s*:[^{}]*\}\s*")  # of `custom`: places in the former text


class PageLine(NamedTuple):
    """A line of text on a page.

    Attributes:
        id: its ID in the file, else its number in the file, from 1.
        text: the text; "" if there is none.
        baseline: (K, 2), K > 1: x and y in pixels, from the left end of a line that stands upright; None if
            there is none.
        polygon: (K, 2), K > 2: its outline, else its box; None if there is none.
        reach: pixels that a typical line of the page reaches above and below its baseline; None on a page
            without baselines.
    """

    id: str
    text: str
    baseline: Array | None
    polygon: Array | None
    reach: tuple[float, float] | None = None


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        image: the image file.
        width, height: of the upright image in pixels.
        lines: in the order of the file.
        xml: the file, a tree of lxml.
    """

    image: Path
    width: int
    height: int
    lines: tuple[PageLine, ...]
    xml: Any


def read_page(path: str | Path) -> Page:
    """Read a page.

    Its image is the file that it names, in the folder of the XML, else the image of the same name as the
    XML. In a folder "page" or "alto", the folder above is searched, too.

    Raises:
        InputError: the file cannot be read or is neither ALTO nor PAGE, there is no image or one of another
            shape, or coordinates are not pixels.
        MissingExtraError: lxml or Pillow is not installed.
    """
    path, etree = Path(path), require("lxml.etree", "image")
    try:  # bytes, as lxml would fetch addresses and unpack archives
        root = etree.fromstring(read_bytes(path), etree.XMLParser(**SAFELY))
    except etree.XMLSyntaxError as error:
        raise InputError(f"{path} is not well-formed XML: {error}; export it again") from None
    if root.getroottree().docinfo.doctype:  # whose entities would be missing in texts
        raise InputError(f"{path} has a document type (DOCTYPE), which is not read; remove it")
    sheets, form = [*root.iter("{*}Page")], _tag(root)
    if form not in SIZE or len(sheets) != 1:
        found = f"<{printable(form[:40])}> with {len(sheets)} pages"
        raise InputError(f"{path} holds {found}, expected ALTO or PAGE XML of one page")
    if not (image := _find_image(path, _image_name(sheets[0]))):
        raise InputError(
            f"{path} has no image beside it; expected the one that it names, or {path.stem}.jpg"
        )
    extents = np.array(read_extents(image)[::-1])
    size = np.array([_number(sheets[0].get(key)) for key in SIZE[form]])
    if not (size >= 1).all():
        unit = root.findtext("{*}Description/{*}MeasurementUnit", "pixel").strip()
        if unit.lower() != "pixel":
            raise InputError(f"{path} counts in {printable(unit[:40])}, and tells no extents of the page")
        size = extents
    scale = extents / size
    if abs(scale[0] / scale[1] - 1) > MAX_STRETCH:
        raise InputError(
            f"{path} is for an image of {size[0]:g}x{size[1]:g} pixels, but {image.name} has "
            f"{extents[0]}x{extents[1]}, which is another shape; put the right image beside it, upright"
        )
    elements = [*root.iter("{*}TextLine")]
    texts = [_text(element) for element in elements]
    places = _upright([_place(element, scale, extents) for element in elements], "".join(texts))
    reach = typical_reach(places)
    if reach is None and (baselines := [baseline for baseline, _ in places if baseline is not None]):
        spacing = spacing_of(baselines, float(extents[1]))
        reach = REACH["above"] * spacing, REACH["below"] * spacing
    lines = tuple(
        PageLine(element.get("ID") or element.get("id") or str(k), text, *place, reach)
        for k, (element, text, place) in enumerate(zip(elements, texts, places, strict=True), 1)
    )
    return Page(image, int(extents[0]), int(extents[1]), lines, root.getroottree())


def head_of(path: Path) -> tuple[str, Path | None]:
    """What stands before the lines of a file: the name of the outermost element, "" if it is no XML; and
    the image of the page, which may be there even if the file cannot be read."""
    etree = require("lxml.etree", "image")
    tag = name = ""
    with suppress(OSError, etree.XMLSyntaxError), path.open("rb") as file:
        for _, element in etree.iterparse(file, events=("start",), **SAFELY):
            tag = tag or _tag(element)
            if tag not in SIZE:
                return tag, None
            if _tag(element) == "Page":
                name = _image_name(element)
                break
    return tag, _find_image(path, name)


def _image_name(sheet: Any) -> str:
    """The name of the image that the Page of a file has; it may be a path or an address."""
    files = sheet.getroottree().iterfind("{*}Description/{*}sourceImageInformation/{*}fileName")
    name = sheet.get("imageFilename") or next(files, sheet).text or ""
    return re.split(r"[/\\]", name.strip())[-1]


def _find_image(path: Path, name: str) -> Path | None:
    folders = [path.parent, *([path.parent.parent] if path.parent.name.lower() in SUBFOLDERS else [])]
    names = [name, *(path.stem + form for suffix in IMAGE_SUFFIXES for form in (suffix, suffix.upper()))]
    for image in (folder / name for folder in folders for name in names if name):
        if image.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(image):
            return image
    return None


def _numbers(text: str | None) -> Array:
    """The numbers (K,) in a text like "x,y x,y"; none if it holds anything else."""
    try:
        numbers = np.array(re.findall(r"[^\s,()]+", text or ""), float)
    except ValueError:
        return np.zeros(0)
    return np.zeros(0) if np.isnan(numbers).any() else numbers


def _number(text: str | None) -> float:
    return float(next(iter(_numbers(text)), np.nan))


def _place(element: Any, scale: Array, extents: Array) -> tuple[Array | None, Array | None]:
    """Baseline and outline of a line of either format, in pixels of the image, inside it."""

    def points(text: str | None, least: int) -> Array | None:
        numbers = _numbers(text)
        chain = np.clip(numbers[: len(numbers) // 2 * 2].reshape(-1, 2) * scale, 0, extents)
        return chain if len(np.unique(chain, axis=0)) >= least else None

    coords, shape = element.find("{*}Coords"), element.find("{*}Shape/{*}Polygon")
    drawn = element.find("{*}Baseline")
    text = element.get("BASELINE") if drawn is None else drawn.get("points")
    left, top, width, height = (_number(element.get(key)) for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    right, bottom = left + width, top + height
    if text and len(_numbers(text)) == 1:  # ALTO before 4: the y of a level line
        text = f"{left} {text} {right} {text}"
    baseline = points(text, 2)
    if coords is not None or shape is not None:
        return baseline, points(shape.get("POINTS") if coords is None else coords.get("points"), 3)
    box = points(f"{left} {top} {right} {top} {right} {bottom} {left} {bottom}", 3)
    # The box of a sloping line holds its neighbours, and that of a baseline alone, as eScriptorium writes
    # it, says nothing about the line.
    if baseline is not None and box is not None and np.ptp(box[:, 1]) <= 2 * np.ptp(baseline[:, 1]) + 2:
        box = None
    return baseline, box


def _upright(
    places: Sequence[tuple[Array | None, Array | None]], text: str
) -> list[tuple[Array | None, Array | None]]:
    """Baselines and outlines of a page with this text, each baseline from the left end of a line that
    stands upright.

    Right to left is only the order in which a baseline was drawn where letters stand above it; and where
    the page has right-to-left texts, or no texts yet and most lines run so. Else the line is upside down.
    """
    leftwards = [
        line is not None and line[0, 0] - line[-1, 0] > abs(line[-1, 1] - line[0, 1]) for line, _ in places
    ]
    is_usual = is_right_to_left(text) if text else sum(leftwards) > max(len(places) / 2, 1)
    ordered = []
    for (line, polygon), is_leftwards in zip(places, leftwards, strict=True):
        if line is not None and is_leftwards:
            is_above = polygon is None or polygon[:, 1].min() + polygon[:, 1].max() < 2 * line[:, 1].mean()
            line = line[::-1] if is_usual or is_above else line
        ordered.append((line, polygon))
    return ordered


def _text(element: Any) -> str:
    """The text of a line. In ALTO, the CONTENT of its Strings, joined by blanks, with the hyphen of a HYP
    at its end, unless the last String has it, too. In PAGE, that of its TextEquiv with the lowest index,
    else of its words, joined by blanks."""
    words = [string.get("CONTENT", "").strip() for string in element.iterfind("{*}String")]
    if words:
        text = " ".join(filter(None, words))
        hyphen = "".join(each.get("CONTENT", "") for each in element.iterfind("{*}HYP"))
        text = text.removesuffix(hyphen) + hyphen
    else:
        text = _unicode(element) or " ".join(filter(None, map(_unicode, element.iterfind("{*}Word"))))
    return composed(re.sub(r"(?<!\s)\s*[\t\r\n]\s*", " ", text).strip())


def _unicode(element: Any) -> str:
    """The text of the TextEquiv of a PAGE element with the lowest index; one without comes first."""
    equivs = sorted(element.iterfind("{*}TextEquiv"), key=lambda each: _number(each.get("index") or "-1"))
    return (equivs[0].findtext("{*}Unicode") or "").strip() if equivs else ""


def write_page(
    page: Page, readings: Mapping[int, ReadLine], target: str | Path, *, replace: bool = True
) -> None:
    """Write the XML of a page with other texts and their confidences.

    Words, glyphs and alternatives of the former texts, and what pointed into them, are removed; all else
    stays. The text of a PAGE region that has one is that of its lines.

    Args:
        page: what `read_page` or `new_page` returned.
        readings: by the number of the line in `page.lines`; other lines stay as they are.
        target: the file, which appears whole or not at all; "-" is standard output.
        replace: the file may exist.

    Raises:
        InputError: `target` may not be replaced.
        MDLSTMError: the file cannot be written.
    """
    xml = deepcopy(page.xml)
    for number, line in enumerate(xml.iter("{*}TextLine")):
        if number in readings:
            text, confidence, _ = readings[number]
            write = _write_alto if _tag(xml.getroot()) == ALTO else _write_equiv
            write(line, text, f"{confidence:.4f}")
    for region in xml.iter("{*}TextRegion", "{*}TableCell") if readings else ():
        if _remove(region, "TextEquiv"):
            _write_equiv(region, "\n".join(_text(line) for line in region.iter("{*}TextLine")))
    with open_output(target, replace) as file:
        xml.write(file, xml_declaration=True, encoding=xml.docinfo.encoding or "UTF-8")


def _write_alto(line: Any, text: str, confidence: str) -> None:
    _remove(line, "String", "SP", "HYP")
    box = {key: line.get(key) for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT") if line.get(key)}
    line.append(_child(line, "String", CONTENT=text, WC=confidence, **box))


def _write_equiv(element: Any, text: str, confidence: str | None = None) -> None:
    """Write the TextEquiv of a line or region of PAGE, where the schema wants it."""
    _remove(element, "TextEquiv", "Word")
    if custom := element.get("custom"):
        element.set("custom", OFFSETS.sub("", custom).strip())
    equiv = _child(element, "TextEquiv", **({"conf": confidence} if confidence else {}))
    equiv.append(unicode := _child(equiv, "Unicode"))
    unicode.text = text
    before = [k for k, child in enumerate(element, 1) if _tag(child) in BEFORE_TEXT]
    element.insert(max(before, default=0), equiv)


def _tag(element: Any) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _child(parent: Any, tag: str, **attributes: str) -> Any:
    """An element that is yet to be added, in the namespace of its parent."""
    return parent.makeelement(f"{parent.tag.removesuffix(_tag(parent))}{tag}", attributes)


def _remove(element: Any, *tags: str) -> bool:
    """Remove the children with these names; True if there was one."""
    found = [child for child in element if _tag(child) in tags]
    for child in found:
        element.remove(child)
    return bool(found)


def new_page(image: Path, width: int, height: int, regions: Sequence[Sequence[PageLine]]) -> Page:
    """A page as PAGE XML of 2019, with lines that were found, in regions.

    Args:
        image: the image file.
        width, height: of the upright image.
        regions: the lines of each, in the order of reading, with baselines and outlines.
    """
    etree = require("lxml.etree", "image")
    root = etree.Element(f"{{{NAMESPACE}}}{PAGE}", nsmap={None: NAMESPACE})

    def add(parent: Any, tag: str, **attributes: str) -> Any:
        return etree.SubElement(parent, f"{{{NAMESPACE}}}{tag}", attributes)

    metadata, now = add(root, "Metadata"), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for tag, text in (("Creator", f"mdlstm-tk {__version__}"), ("Created", now), ("LastChange", now)):
        add(metadata, tag).text = text
    sheet = add(root, "Page", imageFilename=image.name, imageWidth=str(width), imageHeight=str(height))
    order = add(add(sheet, "ReadingOrder"), "OrderedGroup", id="order") if regions else None
    for k, lines in enumerate(regions):
        add(order, "RegionRefIndexed", index=str(k), regionRef=f"r{k + 1}")
        region = add(sheet, "TextRegion", id=f"r{k + 1}")
        corners = np.concatenate([line.polygon for line in lines if line.polygon is not None])
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        add(region, "Coords", points=points_text(box))
        for line in lines:
            element = add(region, "TextLine", id=line.id)
            add(element, "Coords", points=points_text(line.polygon))
            add(element, "Baseline", points=points_text(line.baseline))
    etree.indent(root)
    return Page(image, width, height, tuple(line for each in regions for line in each), root.getroottree())


def points_text(points: Array | None) -> str:
    """Points as both formats have them."""
    return " ".join(f"{x:g},{y:g}" for x, y in (() if points is None else points.tolist()))
