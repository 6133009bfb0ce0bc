"""Lines are found in images of pages, and read: what is written, and that no image makes it fail."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm
from helpers.pages import PAGE, draw_bars, draw_page, page, transcription
from helpers.small_models import classifier, finder, recogniser
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.text import ReadLine, cut_line, find_lines, overlay, read_page, read_pages
from mdlstm_tk.text.found_pages import FoundPage, find_page, page_xml

ROWS = ((20, 60, 280), (20, 100, 280), (150, 140, 280))
DEGENERATE = ("black", "white", "noise", "one pixel", "wide", "high", "huge aspect", "two rows", "grid")


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with both models and a folder of photographs."""
    monkeypatch.chdir(tmp_path)
    finder(Path("baselines.onnx"))
    recogniser(Path("reader.onnx"))
    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", read_widths)
    for name in ("in/a.png", "in/sub/b.png"):
        draw_bars(Path(name), ROWS)


def read_widths(self: Session, images: Sequence[np.ndarray], **_: Any) -> list[ReadLine]:
    """Read a line as "long" or "short", by its width."""
    return [transcription("long" if image.shape[1] > 200 else "short", 0.5) for image in images]


def read(*arguments: object) -> Result:
    return mdlstm("read", *arguments)


def check_page_xml(content: bytes, lines: int) -> list[str]:
    """Check a file as the schema of PAGE 2019 does, and return the texts of its lines.

    The parts of the schema that the file uses: which children an element has and in which order, points
    of whole numbers on the page, and IDs that differ.
    """
    children = {
        "PcGts": ("Metadata", "Page"),
        "Metadata": ("Creator", "Created", "LastChange"),
        "Page": ("ReadingOrder", "TextRegion"),
        "ReadingOrder": ("OrderedGroup",),
        "OrderedGroup": ("RegionRefIndexed",),
        "TextRegion": ("Coords", "TextLine"),
        "TextLine": ("Coords", "Baseline", "TextEquiv"),
        "TextEquiv": ("Unicode",),
    }
    root = ET.fromstring(content)
    page = root.find(f"{{{PAGE}}}Page")
    assert page is not None
    extents = int(page.attrib["imageWidth"]), int(page.attrib["imageHeight"])
    names: list[str] = []
    for element in root.iter():
        tag = element.tag.removeprefix(f"{{{PAGE}}}")
        order = [child.tag.removeprefix(f"{{{PAGE}}}") for child in element]
        known = children.get(tag, ())
        assert [known.index(each) for each in order] == sorted(known.index(each) for each in order), tag
        names += [element.attrib["id"]] if "id" in element.attrib else []
        if "points" in element.attrib:
            points = [tuple(map(int, point.split(","))) for point in element.attrib["points"].split()]
            assert len(set(points)) >= (2 if tag == "Baseline" else 3)
            assert all(0 <= x <= extents[0] and 0 <= y <= extents[1] for x, y in points)
    assert len(set(names)) == len(names)
    regions = [each.attrib["id"] for each in root.iter(f"{{{PAGE}}}TextRegion")]
    assert regions == [each.attrib["regionRef"] for each in root.iter(f"{{{PAGE}}}RegionRefIndexed")]
    assert len(list(root.iter(f"{{{PAGE}}}TextLine"))) == lines
    return [each.text or "" for each in root.iter(f"{{{PAGE}}}Unicode")]


def test_lines_are_found_and_written_beside_nothing_but_the_image() -> None:
    done = read("in", "-m", "baselines.onnx", "-o", "found")
    assert done.code == 0 and "2 done, 0 failed" in done.err
    written = sorted(path.as_posix() for path in Path("found").rglob("*.*"))
    assert written == ["found/a.xml", "found/sub/b.xml"]
    assert check_page_xml(Path("found/a.xml").read_bytes(), 3) == []
    Path("in/a.xml").write_bytes(Path("found/a.xml").read_bytes())
    page = read_page("in/a.xml")
    for line, (left, height, right) in zip(page.lines, ROWS, strict=True):
        assert line.baseline is not None and line.polygon is not None
        np.testing.assert_allclose(line.baseline[[0, -1]], [(left, height), (right, height)], atol=4)
        assert line.polygon[:, 1].min() < height - 10 < height + 5 < line.polygon[:, 1].max()
        assert cut_line(np.asarray(Image.open("in/a.png")), line).shape[1] > 100
    assert read("in", "-m", "baselines.onnx", "-o", "found").code == 2  # the results exist


def test_photographs_are_read_in_one_call() -> None:
    draw_page(Path("in/known.xml"), ("ab",))
    models = ("-m", "reader.onnx", "--line-model", "baselines.onnx")
    done = read("in", *models, "-o", "read", "--overlay")
    assert done.code == 0 and "3 done" in done.err and "warning" not in done.err
    assert check_page_xml(Path("read/a.xml").read_bytes(), 3) == ["long", "long", "short"]
    assert b'conf="0.5000"' in Path("read/a.xml").read_bytes()
    assert b"<alto" in Path("read/known.xml").read_bytes()  # its own lines, as without a model for lines
    pictures = sorted(path.as_posix() for path in Path("read").rglob("*.png"))
    assert pictures == ["read/a.out.png", "read/known.out.png", "read/sub/b.out.png"]
    assert np.ptp(np.asarray(Image.open("read/a.out.png")).astype(int), axis=-1).max() > 100  # in colours
    printed = read("in/a.png", *models).out.splitlines()
    texts = zip(("l1", "l2", "l3"), ("long", "long", "short"), strict=True)
    assert printed == [f"in/a.png\t{name}\t{text}\t0.5" for name, text in texts]
    run = read_pages(["in/a.png"], "reader.onnx", line_model=Session("baselines.onnx"))
    assert [row["text"] for result in run for row in result.rows] == ["long", "long", "short"]


def test_a_page_that_was_found_can_be_corrected_and_read() -> None:
    read("in/a.png", "-m", "baselines.onnx", "-o", "found")
    Path("in/a.xml").write_bytes(Path("found/a.xml").read_bytes())
    assert read("in/a.xml", "-m", "reader.onnx").out.count("long") == 2


def test_lines_are_cut_alike_in_one_call_and_from_the_file() -> None:
    read("in/a.png", "-m", "baselines.onnx", "-o", "found")
    Path("in/a.xml").write_bytes(Path("found/a.xml").read_bytes())
    pixels = np.asarray(Image.open("in/a.png"))
    found, known = find_lines(Session("baselines.onnx"), pixels), read_page("in/a.xml").lines
    assert [line.reach for line in found] == [line.reach for line in known]
    for one, other in zip(found, known, strict=True):
        np.testing.assert_array_equal(cut_line(pixels, one), cut_line(pixels, other))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_are_drawn_in_their_own_brightness(dtype: type[np.generic]) -> None:
    largest = 1 if dtype is np.float32 else np.iinfo(dtype).max  # type: ignore[arg-type]
    pixels = np.full((30, 40), largest, dtype)
    if dtype is not np.float32:  # whose range is not known
        assert np.asarray(overlay.draw_overlay(pixels, [])).min() == 255
    pixels[10:20] = 0
    drawn = np.asarray(overlay.draw_overlay(pixels, []))[..., 0]
    assert drawn[0, 0] == 255 and drawn[15, 0] == int(255 * overlay.FADE)


def test_columns_are_read_from_where_the_texts_of_the_reader_begin() -> None:
    draw_bars(Path("columns.png"), ((10, 60, 215), (235, 100, 295)))
    for direction, texts in (("ltr", ["long", "short"]), ("rtl", ["short", "long"])):
        recogniser(Path(f"{direction}.onnx"), text_direction=direction)
        run = read_pages(["columns.png"], f"{direction}.onnx", line_model="baselines.onnx")
        assert [row["text"] for result in run for row in result.rows] == texts


def test_lines_in_tables() -> None:
    read("in", "-m", "baselines.onnx", "-o", "lines.json")
    rows = json.loads(Path("lines.json").read_text())
    assert [row["line"] for row in rows] == ["l1", "l2", "l3"] * 2
    assert len(rows[0]["baseline"].split()) >= 2 and len(rows[0]["polygon"]) >= 3
    assert read("in/a.png", "-m", "baselines.onnx").out.count("\n") == 3
    read("in", "-m", "baselines.onnx", "-o", "lines.csv")
    heading, first, *_ = Path("lines.csv").read_text().splitlines()
    assert heading == "file,line,baseline" and first.startswith('in/a.png,l1,"')


def test_what_does_not_go_together_is_refused() -> None:
    for words, message in (
        (("in", "-m", "reader.onnx", "--line-model", "reader.onnx"), "baselines"),
        (("in", "-m", "baselines.onnx", "--line-model", "baselines.onnx"), "line_model"),
        (("in", "-m", "reader.onnx", "--line-model", "no.onnx"), "no.onnx"),
        (("in/a.png", "-m", "baselines.onnx", "--overlay"), "folder"),
        (("in/a.png", "-m", "baselines.onnx", "--beam", "2"), "beam"),
    ):
        done = read(*words)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1, words
    session = Session("baselines.onnx", device="cpu")
    with pytest.raises(InputError, match="mdlstm read"):
        decode(np.zeros((4, 4, 3), np.float32), session.metadata)
    for pixels in (np.zeros((99, 99), int), np.zeros((99, 99, 4), np.uint8)):
        with pytest.raises(InputError, match="image"):
            find_lines(session, pixels)
    with pytest.raises(InputError, match="classify"):
        find_lines(Session(classifier(Path("c.onnx")), device="cpu"), np.zeros((9, 9), np.uint8))


def test_pictures_are_kept_unless_they_may_be_replaced() -> None:
    call = ("in/a.png", "-m", "baselines.onnx", "--overlay", "-o", "drawn")
    assert read(*call).code == 0
    before = Path("drawn/a.out.png").read_bytes()
    Path("drawn/a.xml").unlink()
    assert read(*call).code == 2 and Path("drawn/a.out.png").read_bytes() == before
    assert not Path("drawn/a.xml").exists()
    assert read(*call, "--force").code == 0


def test_pages_without_lines_are_named() -> None:
    Path("in/a.xml").write_text(page("", "a.png"))
    done = read("in/a.xml", "-m", "reader.onnx", "-o", "read")
    assert done.code == 0 and "in/a.xml has no lines, so nothing of it is read" in done.err


def degenerate(name: str, rng: np.random.Generator) -> np.ndarray:
    """An image without lines, or hardly one."""
    shapes = {
        "one pixel": (1, 1),
        "wide": (3, 50),
        "high": (50, 3),
        "huge aspect": (2, 900),
        "two rows": (2, 20),
    }
    pixels = np.zeros(shapes.get(name, (40, 60)), np.uint8)
    if name in ("noise", "wide", "high"):
        pixels = rng.integers(0, 256, pixels.shape, np.uint8)
    if name == "grid":
        pixels = np.full((60, 60), 230, np.uint8)
        pixels[::8], pixels[:, ::8] = 20, 20
    return np.full_like(pixels, 255) if name == "white" else pixels


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_page_without_lines_is_valid_xml_or_one_line(name: str) -> None:
    image = degenerate(name, np.random.default_rng(0))
    Image.fromarray(image).save("page.png")
    done = read("page.png", "-m", "baselines.onnx", "-o", "found")
    if done.code == 0:
        content = Path("found/page.xml").read_bytes()
        Path("page.xml").write_bytes(content)
        check_page_xml(content, content.count(b"<TextLine"))
        assert name not in ("white", "one pixel") or b"<TextRegion" not in content
        assert len(read_page("page.xml").lines) == content.count(b"<TextLine")
    else:
        assert done.code == 2 and done.err.splitlines()[-1].startswith("error: page.png: ")
        assert not Path("found/page.xml").exists()


def damaged(rng: np.random.Generator) -> bytes:
    """The file of an image with some bytes changed, left out or cut off."""
    pixels = degenerate(DEGENERATE[rng.integers(len(DEGENERATE))], rng)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, ("PNG", "JPEG", "TIFF", "BMP")[rng.integers(4)])
    data = bytearray(buffer.getvalue())
    for _ in range(rng.integers(0, 6)):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data[: rng.integers(1, len(data) + 1) if rng.uniform() < 0.3 else len(data)])


def find_in(session: Session, data: bytes) -> int:
    """The number of lines of a page; −1 if it is refused in one line. Anything else fails."""
    try:
        page = find_page(session, decode_image(data, "page.png"))
    except InputError as error:
        return -1 if len(str(error).splitlines()) == 1 else -2
    check_page_xml(page_xml(page, "page.png"), len(page.lines))
    return len(page.lines)


def random_maps(rng: np.random.Generator) -> np.ndarray:
    """Logits of maps as no page gives them: noise of any scale, blobs, stripes, tiny and long grids."""
    shape = tuple(rng.integers(1, (1, 60, 200)[rng.integers(3)] + 1, 2).tolist())
    y = rng.standard_normal((*shape, 3)) * 10 ** rng.uniform(-2, 3)
    if rng.uniform() < 0.5:
        y = y.cumsum(rng.integers(2))
    if rng.uniform() < 0.3:
        y[:: rng.integers(1, 9), :: rng.integers(1, 9)] = 100
    if rng.uniform() < 0.1:
        y[0, 0, 0] = np.nan
    return y.astype(np.float32)


class AnyMaps:
    """Stands for a session: whatever the page is, its output are maps at random."""

    def __init__(self, session: Session, rng: np.random.Generator) -> None:
        self.metadata, self._rng = session.metadata, rng

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return random_maps(self._rng)


def fuzz(cases: int, seed: int) -> list[int]:
    """The numbers of lines of damaged images, and of any image with any maps."""
    rng, session = np.random.default_rng(seed), Session("baselines.onnx", device="cpu")
    counts = []
    for case in range(cases):
        if case % 2:
            counts.append(find_in(session, damaged(rng)))
        else:
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, rng.integers(1, 300, 2), np.uint8)).save(buffer, "PNG")
            counts.append(find_in(AnyMaps(session, rng), buffer.getvalue()))  # type: ignore[arg-type]
    return counts


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
def test_no_image_makes_the_search_fail() -> None:
    counts = fuzz(100, 0)
    assert min(counts) == -1 and 0 in counts and max(counts) > 3


def test_a_page_without_lines() -> None:
    assert check_page_xml(page_xml(FoundPage(30, 20, ()), 'a"&.png'), 0) == []


@pytest.mark.parametrize(("has_raqm", "drawn"), [(True, "\u05d0\u05d1 12"), (False, "12 \u05d1\u05d0")])
def test_right_to_left_texts_are_drawn_in_their_order(
    has_raqm: bool, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFont, features

    monkeypatch.setattr(features, "check", lambda _: has_raqm)
    assert overlay._drawable("\u05d0\u05d1 12", overlay._font(ImageFont, 20)) == drawn


@pytest.mark.parametrize("has_fonts", [True, False])
def test_letters_that_the_font_lacks_are_drawn_without_accents(
    has_fonts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFont

    if not has_fonts:
        monkeypatch.setattr(overlay, "FONTS", ())
    font = overlay._font(ImageFont, 20)
    drawn = overlay._drawable("né à Paris, œuvre", font)
    lacking = bytes(font.getmask("\uffff"))
    assert drawn.replace("é", "e").replace("à", "a") == "ne a Paris, œuvre"
    assert all(bytes(font.getmask(c)) != lacking for c in drawn if c not in " œ")
