"""`mdlstm read`: from photographs or XML to texts, in XML, tables and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm
from helpers.pages import PAGE, alto, draw_bars, draw_page, transcription, write_noise
from helpers.pages import read as read_task
from helpers.small_models import classifier, finder, recogniser
from lxml import etree
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.text import cut_line, find_lines, read_page, read_pages
from mdlstm_tk.text.layout import find_page
from mdlstm_tk.text.pages import write_page
from mdlstm_tk.text.read import draw_overlay

TEXTS = ("ab", "ba", "aab")
ROWS = ((20, 60, 280), (20, 100, 280), (150, 140, 280))
FOUND = ("long", "long", "short")  # as `read_marks` reads these rows
BOTH = ("-m", "reader.onnx", "--line-model", "baselines.onnx")


def read_marks(session: Session, images: Sequence[np.ndarray], **_: Any) -> list[Any]:
    """Read the lines that `draw_page` draws, an upright as "a" and a bar as "b", and bars by length."""
    texts = []
    for image in images:
        dark = image < 128
        columns = np.flatnonzero(np.diff(np.concatenate([[0], dark.any(axis=0).astype(int)])) == 1)
        heights = dark[:, np.minimum(columns + 1, dark.shape[1] - 1)].sum(axis=0)
        marks = "".join("a" if height > 8 else "b" for height in heights)
        bar = "long" if image.shape[1] > 200 else "short"
        texts.append(transcription(bar if image.shape[1] > 110 else marks, 0.5))
    return texts


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with both models, a folder of pages without texts, and one of photographs."""
    monkeypatch.chdir(tmp_path)
    finder(Path("baselines.onnx"))
    recogniser(Path("reader.onnx"))
    monkeypatch.setattr("mdlstm_tk.text.read.read_lines", read_marks)
    for name in ("p1", "sub/p2"):
        xml = draw_page(Path("pages") / name, TEXTS)
        xml.write_text(re.sub("<String.*?/>", "", xml.read_text()))
    Path("pages/mets.xml").write_text("<mets/>")
    for name in ("in/a.png", "in/sub/b.png"):
        draw_bars(Path(name), ROWS)


def read(*arguments: object) -> Result:
    return mdlstm("read", *arguments)


def files(folder: str, pattern: str = "*.*") -> list[str]:
    return sorted(path.as_posix() for path in Path(folder).rglob(pattern))


def check_page_xml(path: str) -> list[str]:
    """Check what the schema of PAGE wants of our files, and return the texts of the lines."""
    order = {"TextLine": ["Coords", "Baseline", "TextEquiv"], "PcGts": ["Metadata", "Page"]}
    order |= {"Page": ["ReadingOrder", "TextRegion"], "TextRegion": ["Coords", "TextLine"]}
    root = etree.fromstring(Path(path).read_bytes())
    page = root.find(f"{{{PAGE}}}Page")
    extents = int(page.get("imageWidth")), int(page.get("imageHeight"))
    for element in root.iter():
        tags = [etree.QName(child).localname for child in element]
        if known := order.get(etree.QName(element).localname):
            assert [known.index(tag) for tag in tags] == sorted(known.index(tag) for tag in tags)
        for point in element.get("points", "").split():
            assert all(0 <= int(x) <= most for x, most in zip(point.split(","), extents, strict=True))
    names = [element.get("id") for element in root.iter() if "id" in element.attrib]
    assert len({*names}) == len(names)
    assert {*names} >= {each.get("regionRef") for each in root.iter("{*}RegionRefIndexed")}
    return [each.text or "" for each in root.iter("{*}Unicode")]


def test_pages_with_xml_become_xml_or_tables_with_texts_and_confidences() -> None:
    before = Path("pages/p1.xml").read_bytes()
    done = read("pages", "-m", "reader.onnx", "-o", "pages/read")
    assert (done.code, done.out) == (0, "") and "2 done, 0 failed" in done.err
    assert files("pages/read") == ["pages/read/p1.xml", "pages/read/sub/p2.xml"]
    assert re.findall(r'CONTENT="(.*?)" WC="0.5000"', Path("pages/read/p1.xml").read_text()) == [*TEXTS]
    assert Path("pages/p1.xml").read_bytes() == before
    assert read("pages", "-m", "reader.onnx", "-o", "pages/read").code == 2  # the results exist
    assert (
        len(read_pages(["pages"], "reader.onnx", "pages/read", force=True).jobs) == 2
    )  # which are no pages
    pages = ["pages/p1.xml", "pages/sub/p2.xml"]
    lines = [f"{page}\tl{k}\t{text}\t0.5" for page in pages for k, text in enumerate(TEXTS)]
    assert read(*pages, "-m", "reader.onnx").out.splitlines() == lines
    assert read(*pages, "-m", "reader.onnx", "-o", "lines.json").code == 0
    rows = json.loads(Path("lines.json").read_text())
    assert [f"{row['file']}\t{row['line']}\t{row['text']}\t0.5" for row in rows] == lines
    assert [each["character"] for each in rows[0]["characters"]] == ["a", "b"]
    told = json.loads(read(*pages, "-m", "reader.onnx", "--json").out)["files"]
    assert [row["text"] for file in told for row in file["answers"]] == 2 * [*TEXTS]


def test_photographs_become_xml_with_texts_and_pictures_that_are_data_once_corrected() -> None:
    draw_page(Path("in/known.xml"), ("ab",))
    done = read("in", *BOTH, "-o", "read", "--overlay")
    assert done.code == 0 and "3 done" in done.err and "warning" not in done.err
    assert check_page_xml("read/a.xml") == [*FOUND]
    assert b"<alto" in Path("read/known.xml").read_bytes()  # its own lines, as without a model for lines
    assert files("read", "*.png") == ["read/a.out.png", "read/known.out.png", "read/sub/b.out.png"]
    assert np.ptp(np.asarray(Image.open("read/a.out.png")).astype(int), axis=-1).max() > 100  # in colours
    corrected = Path("read/a.xml").read_text().replace("short", "shirt")
    Path("in/a.xml").write_text(corrected)
    task = read_task(Path("in"))
    assert len(task.names["train"]) == 1 + 3 and "i" in task.spec.classes


def test_lines_alone_are_found_and_cut_as_from_their_file() -> None:
    assert read("in/a.png", "-m", "baselines.onnx", "-o", "in").code == 0
    assert check_page_xml("in/a.xml") == []
    pixels = np.asarray(Image.open("in/a.png"))
    found, known = find_lines(Session("baselines.onnx"), pixels), read_page("in/a.xml").lines
    for one, other, (left, height, right) in zip(found, known, ROWS, strict=True):
        assert one.reach == other.reach and other.baseline is not None
        np.testing.assert_array_equal(cut_line(pixels, one), cut_line(pixels, other))
        np.testing.assert_allclose(other.baseline[[0, -1]], [(left, height), (right, height)], atol=4)
    assert read("in/a.xml", "-m", "reader.onnx").out.count("long") == 2
    rows = [row.split("\t") for row in read("in/a.png", "-m", "baselines.onnx").out.splitlines()]
    assert [row[0] for row in rows] == ["l1", "l2", "l3"] or [row[1] for row in rows] == ["l1", "l2", "l3"]
    assert {len(row[-2].split()) >= 2 and len(row[-1].split()) >= 4 for row in rows} == {True}


def test_columns_are_read_from_where_the_texts_of_the_reader_begin() -> None:
    draw_bars(Path("columns.png"), ((10, 60, 230), (245, 100, 295)))
    for direction, first in (("ltr", "long"), ("rtl", "b")):
        recogniser(Path(f"{direction}.onnx"), text_direction=direction)
        run = read_pages(["columns.png"], f"{direction}.onnx", line_model="baselines.onnx")
        assert next(row["text"] for result in run for row in result.rows) == first


def test_bad_pages_and_lines_are_named_and_the_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pages/bad.xml").write_text(alto("", "p1.png", size='WIDTH="9" HEIGHT="99"'))
    text = Path("pages/p1.xml").read_text().replace("<TextLine", '<TextLine ID="lost"/><TextLine', 1)
    Path("pages/p1.xml").write_text(text)
    done = read("pages", "-m", "reader.onnx")
    assert "pages/p1.xml: 1 of 4 lines are not read, such as lost" in done.err
    assert done.code == 1 and len(done.out.splitlines()) == 6
    assert re.search(r"^failed: pages/bad\.xml .*shape", done.err, re.MULTILINE)
    Path("pages/none.xml").write_text(alto("", image="p1.png"))
    done = read("pages/none.xml", "-m", "reader.onnx", "-o", "none")
    assert done.code == 0 and "no lines" in done.err and Path("none/none.xml").exists()
    Path("pages/lost.xml").write_text(alto('<TextLine ID="lost"/>', image="p1.png"))
    assert "line lost: nothing of the line" in read("pages/lost.xml", "-m", "reader.onnx").err
    monkeypatch.setattr("mdlstm_tk.text.read.draw_overlay", lambda *_: [][0])  # before the XML is written
    with pytest.raises(IndexError):
        list(read_pages(["pages/p1.xml"], "reader.onnx", "no", overlay=True))
    assert not Path("no").exists()


def test_images_of_pages_are_no_photographs() -> None:
    write_noise(Path("pages/other.png"))

    def sources(*pages: str, **options: Any) -> list[str]:
        return [job.source for job in read_pages(pages, "reader.onnx", **options).jobs]

    pages = ["pages/p1.xml", "pages/sub/p2.xml"]
    with pytest.warns(UserWarning, match=r"other\.png.*line_model"):
        assert sources("pages") == pages
    assert sources("pages/p1.xml", "pages/p1.png") == pages[:1]  # as a shell gives them for pages/*
    assert sources("pages", line_model="baselines.onnx") == ["pages/other.png", *pages]


REFUSED: dict[str, tuple[Sequence[str], str]] = {
    "no recogniser": (("read", "pages", "-m", "classes.onnx"), "transcribe"),
    "no model for lines": (("read", "in", "-m", "reader.onnx"), "--line-model"),
    "no finder": (("read", "in", "-m", "reader.onnx", "--line-model", "reader.onnx"), "baselines"),
    "a search for lines": (("read", "in", "-m", "baselines.onnx", "--beam", "2"), "beam"),
    "no page": (("read", "empty", "-m", "reader.onnx"), "empty"),
    "beside the input": (("read", "pages", "-m", "reader.onnx", "-o", "pages"), "replace a page"),
    "a file for a page": (("read", "pages", "-m", "reader.onnx", "-o", "one.xml"), "folder"),
    "pictures without a folder": (("read", "pages", "-m", "reader.onnx", "--overlay"), "folder"),
    "two of a name": (("read", "pages/p1.xml", "sub/p1.xml", "-m", "reader.onnx", "-o", "o"), "one file"),
    "a page for a line": (("infer", "photograph.png", "-m", "reader.onnx"), "mdlstm read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(case: str) -> None:
    session = Session(classifier(Path("classes.onnx")), device="cpu")
    Path("empty").mkdir()
    draw_page(Path("sub/p1"))
    write_noise(Path("photograph.png"), 400, 600)
    words, message = REFUSED[case]
    done = mdlstm(*words)
    assert done.code == 2 and message in done.err.splitlines()[-1]
    with pytest.raises(InputError, match="classify"):
        find_lines(session, np.zeros((99, 99), np.uint8))
    with pytest.raises(InputError, match="mdlstm read"):
        decode(np.zeros((4, 4, 3), np.float32), Session("baselines.onnx", device="cpu").metadata)


class AnyMaps:
    """Stands for a session: whatever the page is, its output are maps at random: noise of any scale, blobs,
    stripes, tiny and long grids."""

    def __init__(self, session: Session, rng: np.random.Generator) -> None:
        self.metadata, self._rng = session.metadata, rng

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rng = self._rng
        shape = tuple(rng.integers(1, (1, 60, 200)[rng.integers(3)] + 1, 2).tolist())
        y = rng.standard_normal((*shape, 3)) * 10 ** rng.uniform(-2, 3)
        if rng.uniform() < 0.5:
            y = y.cumsum(rng.integers(2))
        if rng.uniform() < 0.3:
            y[:: rng.integers(1, 9), :: rng.integers(1, 9)] = 100
        return y.astype(np.float32)


def test_no_image_and_no_map_makes_the_search_or_the_picture_fail() -> None:
    rng, session = np.random.default_rng(0), Session("baselines.onnx", device="cpu")
    counts = []
    for _ in range(80):
        extents, level = rng.integers(1, 300, 2), int(rng.integers(1, 256))
        Image.fromarray(rng.integers(0, level, extents).astype(np.uint8)).save("any.png")
        pixels = decode_image(Path("any.png").read_bytes(), "")
        try:
            found = find_page(AnyMaps(session, rng), pixels, Path("any.png"))
        except InputError:
            continue
        write_page(found, {}, "any.xml")
        assert check_page_xml("any.xml") == []
        assert len(read_page("any.xml").lines) == len(found.lines)
        draw_overlay(pixels, found.lines, {0: "é\u05d0\u05d1"})
        counts.append(len(found.lines))
    assert 0 in counts and max(counts) > 3
    for pixels in (np.zeros((30, 40), np.uint16), np.full((2500, 20, 3), 0.5, np.float32)):
        assert max(draw_overlay(pixels, (), {}).size) <= 2000
