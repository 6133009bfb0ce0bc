"""`mdlstm infer` reads pages: which files, in which order, and what it writes of them."""

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
from helpers.small_models import classifier, recogniser
from PIL import Image

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.jobs import InputPath, files_for, find_files
from mdlstm_tk.text import Transcription, read_page
from mdlstm_tk.text.documents import SUBFOLDERS

TEXTS = ("ab", "ba", "aab")
LINES = [f"in/{name}.xml\tl{k}\t{text}" for name in ("p1", "sub/p2") for k, text in enumerate(TEXTS)]


def read_marks(
    self: Session, images: Sequence[np.ndarray], beam: int = 1, lm: Any = None
) -> list[Transcription]:
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


def infer(*arguments: object) -> Result:
    return mdlstm("infer", *arguments, "-m", "lines.onnx", "--device", "cpu")


def test_pages_are_written_again_with_texts_and_confidences() -> None:
    before = Path("in/p1.xml").read_bytes()
    done = infer("in", "-o", "read")
    assert (done.code, done.out) == (0, "")
    assert "2 done, 0 skipped, 0 failed" in done.err and "no inputs of this model, left out: 2" in done.err
    assert sorted(path.as_posix() for path in Path("read").rglob("*.*")) == [
        "read/p1.xml",
        "read/sub/p2.xml",
    ]
    for name in ("p1", "sub/p2"):
        written = Path(f"read/{name}.xml").read_text()
        assert re.findall(r'<String CONTENT="(.*?)" WC="0.5000"/>', written) == list(TEXTS)
        assert re.sub("<String.*?/>|<.mdlstm-tk.*?>\n", "", written) == Path(f"in/{name}.xml").read_text()
    assert Path("in/p1.xml").read_bytes() == before
    assert infer("in", "-o", "read").code == 2  # the results exist
    assert "all 2 results exist" in infer("in", "-o", "read", "--skip-existing").err


def test_lines_are_printed_or_collected() -> None:
    assert infer("in").out.splitlines() == LINES
    assert infer("in/p1.xml").out.splitlines() == [line.split("\t", 1)[1] for line in LINES[:3]]
    assert infer("in", "-o", "lines.tsv").code == 0
    assert Path("lines.tsv").read_text().splitlines() == LINES
    rows = json.loads(infer("in", "--format", "json").out)
    assert [f"{row['file']}\t{row['array']}\t{row['text']}" for row in rows] == LINES
    assert infer("in", "-o", "tables", "--format", "tsv").code == 0
    assert Path("tables/sub/p2.out.tsv").read_text().splitlines()[1] == "../../in/sub/p2.xml\tl1\tba"
    assert infer("in/p1.xml", "-o", "in/one.xml").code == 0  # beside the image of the page
    assert [line.text for line in read_page(Path("in/one.xml")).lines] == list(TEXTS)
    assert infer("in/p1.xml", "-o", "-", "--format", "xml").out == Path("in/one.xml").read_text()


def test_bad_pages_and_lines_are_named_and_the_others_read() -> None:
    Path("in/bad.xml").write_text(alto("", unit="mm10"))
    lost = '<TextLine ID="lost"/>'
    Path("in/p1.xml").write_text(Path("in/p1.xml").read_text().replace("<TextLine", f"{lost}<TextLine", 1))
    done = infer("in")
    assert "in/p1.xml: 1 of 4 lines without a place on the page, not read: lost" in done.err
    assert (done.code, done.out.splitlines()) == (1, LINES)
    assert re.search(r"^failed: in/bad\.xml gives coordinates in mm10", done.err, re.MULTILINE)
    done = infer("in/bad.xml")
    assert done.code == 2 and "mm10" in done.err
    Path("in/none.xml").write_text(alto("", image="p1.png"))
    assert infer("in/none.xml", "-o", "none.xml").code == 0
    assert Path("none.xml").read_bytes() == Path("in/none.xml").read_bytes()


def test_images_in_the_folders_of_pages_are_no_inputs_of_their_own() -> None:
    Image.new("L", (9, 9)).save("other.png")
    files = find_files(["in", "other.png"], None)[0]
    assert [file.source for file in files if file.source.endswith("png")] == [
        "in/p1.png",
        "in/unreferenced.png",
        "in/sub/p2.png",
        "other.png",
    ]
    with pytest.warns(UserWarning, match=r"^in/unreferenced\.png left out: its folder holds pages"):
        inputs, left_out = files_for("transcribe", files)
    assert left_out == 1
    assert [file.source for file in inputs] == ["in/p1.xml", "in/sub/p2.xml", "other.png"]
    segmented = [file.source for file in files_for("segment", files)[0]]
    assert segmented == [file.source for file in files if file.source.endswith("png")]
    with pytest.raises(InputError, match=r"p1\.xml is a page, but the model is of kind classify"):
        files_for("classify", [InputPath("in/p1.xml", "p1.xml")])
    for folder in (*SUBFOLDERS, "PAGE"):
        pair = [InputPath("a.png", "a.png"), InputPath(f"{folder}/a.xml", "a.xml")]
        assert files_for("transcribe", pair) == (pair[1:], 0)
    named = [InputPath("in/p1.xml", "p1.xml"), InputPath("in/p1.png", "p1.png")]
    assert files_for("transcribe", named) == (named[:1], 0)  # as a shell gives them for in/*
    with pytest.warns(UserWarning, match=r"^in/line\.png left out: its folder holds pages"):
        assert files_for("transcribe", [*named, InputPath("in/line.png", "line.png")]) == (named[:1], 1)
    Path("in/q.xml").write_text(alto("", image="q-bin.png"))
    pair = []
    for name in ("q.png", "q-bin.png"):  # the image that a page names belongs to it, not that of its name
        Image.new("L", (9, 9)).save(f"in/{name}")
        pair.append(InputPath(f"in/{name}", name))
    with pytest.warns(UserWarning, match=r"^in/q\.png left out: its folder holds pages"):
        assert files_for("transcribe", [InputPath("in/q.xml", "q.xml"), *pair])[0][0].source == "in/q.xml"
    with pytest.warns(UserWarning, match=r"one line, though in/p1\.xml tells its lines.* name it"):
        assert files_for("transcribe", named[1:]) == (named[1:], 0)


@pytest.mark.parametrize("is_result", [False, True])
def test_each_image_is_an_input_or_of_a_page_or_counted(is_result: bool) -> None:
    """Images of the name of a page and those that a page names belong to it. Others are read beside
    results, and are counted beside pages."""
    xml = draw_page(Path("lines/p3"), TEXTS)
    xml.rename("lines/other.xml")  # names p3.png
    draw_page(Path("lines/p4"), TEXTS)
    for name in ("line1", "line2"):
        write_noise(Path(f"lines/{name}.png"))
    if is_result:
        for page in Path("lines").glob("*.xml"):
            page.write_text(page.read_text().replace("<alto", "<?mdlstm-tk a model has read this?>\n<alto"))
        done = infer("lines")
        assert [line.split("\t")[0] for line in done.out.splitlines()] == [
            f"lines/{name}.png" for name in ("line1", "line2")
        ]
        assert "results of mdlstm infer, left out: 2" in done.err
    else:
        done = infer("lines")
        assert "2 done" in done.err and "no inputs of this model, left out: 2" in done.err
        assert "lines/line1.png and 1 more left out" in done.err
    assert done.code == 0


def test_other_models_leave_pages_out() -> None:
    classifier(Path("classes.onnx"))
    run = infer_paths(["in"], "classes.onnx")
    assert sorted(Path(job.source).name for job in run.jobs) == ["p1.png", "p2.png", "unreferenced.png"]
    assert run.left_out == 3


REFUSED = {
    "an array format": (
        {"output": "out", "output_format": "npy"},
        r"whose results xml, txt.* can hold, got npy",
    ),
    "beside the input": ({"output_format": "xml"}, "would overwrite the input"),
    "Ray": ({"engine": "ray"}, "not pages"),
    "images as pages": (
        {"inputs": ["other.png"], "output": "o", "output_format": "xml"},
        r"transcribe, whose results txt, .* can hold, got xml",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    classifier(Path("classes.onnx"))
    Image.new("L", (9, 9)).save("other.png")
    with pytest.raises(InputError, match=message):
        list(infer_paths(**{"inputs": ["in"], "model": "lines.onnx", **options}).results)  # type: ignore[arg-type]


def test_lines_that_a_model_refuses_are_named_and_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = InputError("x has a grid which does not fit")

    def refuse(session: Session, images: Sequence[np.ndarray], **_: Any) -> list[Any]:
        return [refused, *read_marks(session, images[1:])]

    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", refuse)
    with pytest.warns(UserWarning, match=r"p1\.xml: 1 of 3 lines for which .* \(x has a grid .*: l0$"):
        (result,) = infer_paths(["in/p1.xml"], "lines.onnx", "read.xml").results
    assert [answer.array for answer in result.answers] == ["l1", "l2"]
    assert "<String" not in Path("read.xml").read_text().partition('ID="l1"')[0]
    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", lambda *_, **__: 3 * [refused])
    with pytest.raises(InputError, match=r"^in/p1\.xml: line l0: x has a grid"):
        list(infer_paths(["in/p1.xml"], "lines.onnx", "no.xml").results)
    assert not Path("no.xml").exists()


def test_a_warning_of_the_language_model_comes_once() -> None:
    Path("lm.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 a\n\n\\end\\\n")
    done = infer("in/p1.png", "--lm", "lm.arpa", "--beam", "2")
    assert done.err.count("lm lacks") == 1


def test_a_model_that_is_stopped_again_and_again_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError("it took too long", "time")

    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", stop)
    results = list(infer_paths(["in"], "lines.onnx", "read").results)
    assert [result.error for result in results] == [
        "in/p1.xml: it took too long",
        "in/sub/p2.xml: it took too long",
    ]
    assert not Path("read").exists()
    with pytest.raises(StoppedError, match=r"^in/p1.xml: it took too long$") as error:
        list(infer_paths(["in/p1.xml"], "lines.onnx", "read").results)
    assert error.value.cause == "time"
    draw_page(Path("in/p3"))  # MAX_STOPS is 3: two pages are reported, three abort
    with pytest.raises(StoppedError):
        list(infer_paths(["in"], "lines.onnx", "read").results)
    draw_page(Path("in/p4"))
    stopped = StoppedError("it took too long", "time")
    failures = iter([stopped, stopped, MemoryError, stopped])  # three, but not in a row

    def fail(*_: object, **__: object) -> None:
        raise next(failures)

    monkeypatch.setattr("mdlstm_tk.text.page_inference.read_images", fail)
    assert len(list(infer_paths(["in"], "lines.onnx", "read").results)) == 4
