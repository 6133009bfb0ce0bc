"""`mdlstm read` reads pages: which files, in which order, and what it writes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm
from helpers.pages import alto, draw_page, transcription, write_noise
from helpers.small_models import classifier, finder, recogniser
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import ReadLine, read_page, read_pages
from mdlstm_tk.text.pages import SUBFOLDERS, images_of_pages

TEXTS = ("ab", "ba", "aab")
LINES = [f"in/{name}.xml\tl{k}\t{text}\t0.5" for name in ("p1", "sub/p2") for k, text in enumerate(TEXTS)]


def read_marks(
    session: Session, images: Sequence[np.ndarray], beam: int | None = None, lm: Any = None
) -> list[ReadLine]:
    """Read the lines that `draw_page` draws: an upright is "a", a bar "b"."""
    texts = []
    for image in images:
        assert image.dtype == np.uint8
        dark = image < 128
        columns = np.flatnonzero(np.diff(np.concatenate([[0], dark.any(axis=0).astype(int)])) == 1)
        heights = (dark[:, columns + 1]).sum(axis=0)
        texts.append(transcription("".join("a" if height > 8 else "b" for height in heights), 0.5))
    return texts


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with a recogniser and a folder of two pages without texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", read_marks)
    recogniser(tmp_path / "lines.onnx")
    for name in ("p1", "sub/p2"):
        xml = draw_page(tmp_path / "in" / name, TEXTS)
        xml.write_text(re.sub("<String.*?/>", "", xml.read_text()))
    write_noise(tmp_path / "in/unreferenced.png")
    (tmp_path / "in/mets.xml").write_text("<mets/>")


def read(*arguments: object) -> Result:
    return mdlstm("read", *arguments, "-m", "lines.onnx")


def sources(*pages: str, **options: Any) -> list[str]:
    return [job.source for job in read_pages(pages, "lines.onnx", **options).jobs]


def test_pages_are_written_again_with_texts_and_confidences() -> None:
    before = Path("in/p1.xml").read_bytes()
    done = read("in", "-o", "read")
    assert (done.code, done.out) == (0, "")
    assert "2 done, 0 failed" in done.err
    written = sorted(path.as_posix() for path in Path("read").rglob("*.*"))
    assert written == ["read/p1.xml", "read/sub/p2.xml"]
    for name in ("p1", "sub/p2"):
        text = Path(f"read/{name}.xml").read_text()
        assert re.findall(r'<String CONTENT="(.*?)" WC="0.5000"/>', text) == list(TEXTS)
        assert re.sub("<String.*?/>", "", text) == Path(f"in/{name}.xml").read_text()
    assert Path("in/p1.xml").read_bytes() == before
    assert read("in", "-o", "read").code == 2  # the results exist
    assert read("in", "-o", "read", "--force").code == 0
    assert read("in", "-o", "in/read").code == 0
    assert len(sources("in", output="in/read", force=True)) == 2  # earlier results are no pages


def test_lines_are_printed_or_collected() -> None:
    assert read("in").out.splitlines() == LINES
    assert read("in/p1.xml").out.splitlines() == LINES[:3]
    assert read("in", "-o", "lines.tsv").code == 0
    assert Path("lines.tsv").read_text().splitlines() == LINES
    assert read("in", "-o", "lines.json").code == 0
    rows = json.loads(Path("lines.json").read_text())
    assert [f"{row['file']}\t{row['line']}\t{row['text']}\t0.5" for row in rows] == LINES
    assert [each["character"] for each in rows[0]["characters"]] == ["a", "b"]
    assert read("in", "-o", "lines.csv").code == 0
    assert Path("lines.csv").read_text().splitlines()[:2] == [
        "file,line,text,confidence",
        LINES[0].replace("\t", ","),
    ]
    files = json.loads(read("in", "--json").out)["files"]
    assert [row["text"] for file in files for row in file["answers"]] == 2 * [*TEXTS]


def test_bad_pages_and_lines_are_named_and_the_others_read() -> None:
    Path("in/bad.xml").write_text(alto("", unit="mm10"))
    lost = '<TextLine ID="lost"/>'
    Path("in/p1.xml").write_text(Path("in/p1.xml").read_text().replace("<TextLine", f"{lost}<TextLine", 1))
    done = read("in")
    assert "in/p1.xml: 1 of 4 lines without a place on the page, not read: lost" in done.err
    assert (done.code, done.out.splitlines()) == (1, LINES)
    assert re.search(r"^failed: in/bad\.xml gives coordinates in mm10", done.err, re.MULTILINE)
    done = read("in/bad.xml")
    assert done.code == 2 and "mm10" in done.err
    Path("in/none.xml").write_text(alto("", image="p1.png"))
    assert read("in/none.xml", "-o", "none").code == 0
    assert Path("none/none.xml").read_bytes() == Path("in/none.xml").read_bytes()


def test_images_of_pages_are_no_inputs_of_their_own() -> None:
    with pytest.warns(UserWarning, match="images without a page are left out"):
        assert sources("in") == ["in/p1.xml", "in/sub/p2.xml"]
    assert sources("in/p1.xml", "in/p1.png") == ["in/p1.xml"]  # as a shell gives them for in/*
    finder(Path("baselines.onnx"))
    found = sources("in", line_model="baselines.onnx")
    assert found == ["in/p1.xml", "in/sub/p2.xml", "in/unreferenced.png"]
    for folder in (*SUBFOLDERS, "PAGE"):
        assert images_of_pages([f"{folder}/a.xml"], ["a.png", "b.png"]) == {"a.png"}
    Path("in/q.xml").write_text(alto("", image="q-bin.png"))
    for name in ("q.png", "q-bin.png"):  # the image that a page names belongs to it, not that of its name
        Image.new("L", (9, 9)).save(f"in/{name}")
    assert images_of_pages(["in/q.xml"], ["in/q.png", "in/q-bin.png"]) == {"in/q-bin.png"}


def test_images_of_lines_are_read_in_batches() -> None:
    for name, darks in (("a", 1), ("b", 2)):
        pixels = np.full((20, 30), 255, np.uint8)
        for k in range(darks):
            pixels[:, 5 + 10 * k : 9 + 10 * k] = 0
        Path("lines").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"lines/{name}.png")
    recogniser(Path("lines.onnx"), {"weights": np.float32([[9, -9, -9]]), "start": np.float32([-4, 4, 0])})
    done = read("lines")
    assert [line.split("\t")[:2] for line in done.out.splitlines()] == [
        ["lines/a.png", "a"],
        ["lines/b.png", "aa"],
    ]
    assert read("lines/b.png").out.split("\t")[0] == "aa"
    assert read("lines", "-o", "texts.csv").code == 0
    done = read("lines", "-o", "folder")  # which nothing would be written into
    assert done.code == 2 and ".tsv" in done.err
    write_noise(Path("photograph.png"), 400, 600)
    done = read("photograph.png")
    assert done.code == 2 and "--line-model" in done.err


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no recogniser": ({"reader": "classes.onnx"}, "kind transcribe"),
    "no page": ({"pages": ["empty"]}, "empty"),
    "beside the input": ({"output": "in"}, "would replace a page"),
    "a file for a page": ({"output": "one.xml"}, "folder"),
    "pictures without a folder": ({"overlay": True}, "overlay"),
    "two pages of one name": ({"pages": ["in/p1.xml", "in/sub/p1.xml"], "output": "o"}, "one file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    classifier(Path("classes.onnx"))
    Path("empty").mkdir()
    draw_page(Path("in/sub/p1"))
    with pytest.raises(InputError, match=message):
        read_pages(**{"pages": ["in"], "reader": "lines.onnx", **options})


def test_lines_that_a_model_refuses_are_named_and_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = InputError("x has a grid which does not fit")

    def refuse(session: Session, images: Sequence[np.ndarray], **_: Any) -> list[Any]:
        return [refused, *read_marks(session, images[1:])]

    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", refuse)
    with pytest.warns(UserWarning, match=r"p1\.xml: 1 of 3 lines for which .* \(x has a grid .*: l0$"):
        (result,) = read_pages(["in/p1.xml"], "lines.onnx", "read")
    assert [row["line"] for row in result.rows] == ["l1", "l2"]
    assert "<String" not in Path("read/p1.xml").read_text().partition('ID="l1"')[0]
    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", lambda *_, **__: 3 * [refused])
    (result,) = read_pages(["in/p1.xml"], "lines.onnx", "no")
    assert str(result.error).startswith("in/p1.xml: line l0: x has a grid")
    assert not Path("no").exists()


def test_pages_are_read_with_a_language_model() -> None:
    Path("lm.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 a\n\n\\end\\\n")
    done = read("in/p1.xml", "in/sub/p2.xml", "--lm", "lm.arpa", "--beam", "2")
    assert done.err.count("lm lacks") == 1
    assert done.out.splitlines() == LINES


def test_a_page_that_was_read_can_be_read_again() -> None:
    read("in/p1.xml", "-o", "in/read")
    Path("in/p1.xml").write_bytes(Path("in/read/p1.xml").read_bytes())
    assert [line.text for line in read_page("in/p1.xml").lines] == [*TEXTS]
    assert read("in/p1.xml").out.splitlines() == LINES[:3]
