"""Folders of pages: what is trained on, and `mdlstm read`, from photographs or XML to texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm
from helpers.layouts import save
from helpers.pages import HEIGHT, alto, check_page, draw_bars, draw_page, read, write_noise, write_texts
from helpers.small_models import classifier, finder, recogniser
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import CharacterModel, Decoding, cut_line, find_lines, read_page, read_pages, write_page
from mdlstm_tk.text.calibration import training_texts
from mdlstm_tk.text.layout import find_page
from mdlstm_tk.text.measures import evaluate_lines
from mdlstm_tk.text.read import draw_overlay
from mdlstm_tk.text.transcribe_training import target_texts
from mdlstm_tk.training import configure, load_checkpoint, make_task, train

# Scores by the mean over the rows of a cut: dark columns are uprights, which are "a", less dark ones bars.
MARKS = {"weights": np.float32([[40, -40, 0]]), "start": np.float32([-34.4, 22.8, 0])}
TEXTS = ("ab", "ba", "aab")
PAGES = ["pages/p1.xml", "pages/sub/p2.xml"]


@pytest.fixture(autouse=True)
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with two models, two pages without texts, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    finder(Path("baselines.onnx"))
    recogniser(Path("reader.onnx"), MARKS)
    for xml in (draw_page(Path(name), TEXTS) for name in PAGES):
        xml.write_text(re.sub("<String.*?/>", "", xml.read_text()))
    Path("pages/mets.xml").write_text("<mets/>")


def write_transcript(path: Path, text: str, *images: str) -> None:
    path.with_name(f"{path.name}.gt.txt").write_text(text, "utf-8-sig")
    for suffix in images:
        write_noise(path.with_name(path.name + suffix), 30, 8)


NOWHERE = alto('<TextLine><String CONTENT="a"/></TextLine>', "bad.png")
BAD: list[Callable[[Path], Any]] = [
    lambda p: draw_page(p).with_suffix(".png").unlink(),
    lambda p: draw_page(p).with_suffix(".png").write_bytes(b"x"),
    lambda p: draw_page(p).write_text(alto("")[:-9]),
    lambda p: draw_page(p).write_text(NOWHERE),
    lambda p: (draw_page(p).write_text(alto("", "bad.png")), write_transcript(p, "ab")),
    lambda p: write_transcript(p, "ab"),
    lambda p: write_transcript(p, "ab", ".png", ".jpg"),
    *(lambda p, text=text: write_transcript(p, text, ".png") for text in (" \n", "a\nb\n", "a\u2028b")),
    lambda p: (write_transcript(p, "", ".png"), p.with_name("bad.gt.txt").write_bytes(b"\xe9")),
]


@pytest.mark.parametrize("damage", BAD)
def test_samples_are_lines_with_texts_and_bad_ones_are_left_out(
    damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Of a page in both formats, as Transkribus exports it, and of a binary image one does not count."""
    xml = draw_page(Path("in/b/p"), ["ab", None, "bab"])
    for folder in (Path("in/b/alto"), Path("in/b/page")):
        folder.mkdir()
        (folder / "p.xml").write_bytes(xml.read_bytes())
    xml.unlink()
    draw_page(Path("in/a"), ["b"], suffix=".jpg")
    write_transcript(Path("in/d"), "cab\r\n", ".bin.png", ".PNG")
    write_transcript(Path("in/e"), "\nc \n", ".nrm.png")
    damage(Path("in/bad"))
    task = read(Path("in"))
    names = ["a.xml l0", "b/alto/p.xml l0", "b/alto/p.xml l2", "d.PNG", "e.nrm.png"]
    assert sorted(task.names["train"]) == names and "bad." in caplog.text
    assert [name.split()[0] for name in task.names["train"]] == task.groups["train"]
    assert sorted(target_texts(task.batch(0, 0, 5).y, task.spec)) == ["ab", "b", "bab", "c", "cab"]


BAD_ROWS = ["0.png\tother", "./0.png\tother", "more.png\tabc\tabc", "more.png abc", "gone.png\tabc"]
BAD_ROWS += ["more.png\t", "more.png\t\u200f \u200e", "more.png\ta\u2028b", "labels.tsv\tabc"]


def test_bad_rows_are_left_out_and_pages_not_lines_are_divided(caplog: pytest.LogCaptureFixture) -> None:
    """By the longest prefix of a name in splits.json, such as those of writers."""
    save(write_texts(Path("table")) / "more.png", np.zeros((6, 20), np.uint8))
    with Path("table/labels.tsv").open("a", encoding="utf-8") as file:
        file.write("\n\n".join(BAD_ROWS))
    assert sorted(read(Path("table")).names["train"]) == [f"{k}.png" for k in range(8)]
    assert f"cannot be used, left out: {len(BAD_ROWS)} (" in caplog.text
    for k in range(12):
        draw_page(Path(f"in/p{k}"), ["a" * k, "a" * k + "b", "b" * k + "a"])
    groups = {split: {*each} for split, each in read(Path("in"), validation=0.25).groups.items()}
    assert groups["validation"] and not groups["train"] & groups["validation"]
    splits = {"train": ["p"], "valid": ["p1", "p3"], "test": ["p10", "p4.x"]}
    Path("in/splits.json").write_text(json.dumps(splits))
    pages = {split: {name.split()[0] for name in each} for split, each in read(Path("in")).names.items()}
    assert pages["validation"] == {"p1.xml", "p11.xml", "p3.xml"} and len(pages["train"]) == 7


def test_pages_with_baselines_are_samples_of_a_finder(caplog: pytest.LogCaptureFixture) -> None:
    """In grey, with baselines in pixels of x and the reach of their outlines in line spacings."""
    a = draw_page(Path("in/a"), ("a" * 16, "b" * 12))
    draw_page(Path("in/b"), ("a" * 16, "ab" * 6))
    Path("in/twin.xml").write_text(a.read_text())
    a.write_text(a.read_text().replace("</TextBlock>", '<TextLine BASELINE="900 9 990 9"/></TextBlock>'))
    Path("in/alto").mkdir()  # without baselines, it does not take the place of b.xml
    Path("in/alto/b.xml").write_text(alto("", "b.png"))
    Image.open("in/b.png").convert("RGB").save("in/b.png")
    task = read(Path("in"), "baselines", resize="64x*")
    assert sorted(task.names["train"]) == ["a.xml", "b.xml"] and "learned as no lines: 1" in caplog.text
    assert task.spec.decoding == pytest.approx({"above": 16 / 30, "below": 4 / 30})
    batch, right = task.batch(0, 0, 2), 20 + 12 * 16 + 5
    assert batch.x.shape == (2, 64, 96, 1) and batch.y.shape == (2, 2, 2, 2)
    expected = np.array([[15, 40], [right, 40]]) * 64 / HEIGHT
    np.testing.assert_allclose(batch.y[:, 0], np.broadcast_to(expected, (2, 2, 2)), rtol=1e-5)
    np.savez("a.npz", x=np.zeros((2, 8, 8)), y=np.zeros(2))
    cases = [("in", "baselines", "32"), ("a.npz", "baselines", ""), ("in", "transcribe", "32")]
    for path, kind, crop in cases:
        with pytest.raises(InputError):
            read(Path(path), kind, crop=crop)


def run(words: str) -> Result:
    return mdlstm("read", *words.split())


def files(folder: str, pattern: str = "*.*") -> list[str]:
    return sorted(path.as_posix() for path in Path(folder).rglob(pattern))


def test_a_trained_recogniser_reads_pages_as_in_training(tmp_path: Path) -> None:
    """Its file reads, from the XML on, what the network reads of the cuts that it was trained on. Its run
    has a language model, and its report what is confused."""
    for k, texts in enumerate((("ab", "bb a"), ("ba", "a ab"), ("abba", "b"), ("aab", "bab"))):
        draw_page(Path(f"in/p{k}"), texts)
    settings = {"resize": "16x*", "hidden": 4, "batch_size": 4, "warmup": 0, "lr": 0.01, "average": 0.0}
    settings |= {"steps": 60, "evaluate_every": 60, "validation": 0.25, "augment": 0.2, "dropout": 0.0}
    train(configure(task="transcribe", data="in", **settings), "run")
    export_run("run", "trained.onnx", form="scan")
    best = load_checkpoint("run/best.safetensors")
    task = make_task(best.config)
    assert {*CharacterModel.load("run/lm.arpa.gz").tokens} == {*"".join(training_texts(task))}
    decoding = Decoding.of(Session("trained.onnx").metadata.more)
    assert decoding == Decoding.of(best.spec.decoding) != Decoding()
    section = kind_named("transcribe").sections(best.network(), task, Path("run"))
    assert "confusions" in section and "<td>b</td>" in section
    task.spec = best.spec  # with the temperatures
    done = run("in -m trained.onnx --json")
    answers = [row for each in json.loads(done.out)["files"] for row in each["answers"]]
    told = {f"{Path(row['file']).name} {row['line']}": row for row in answers}
    lines = evaluate_lines(best.network(), task, "validation")
    for name, line in zip(task.names["validation"], lines, strict=True):
        assert told[name]["text"] == line.read.text
        assert told[name]["confidence"] == pytest.approx(line.read.confidence, abs=1e-3)
    assert sum(row["text"] in ("ab", "ba", "abba", "aab", "bab") for row in answers) >= 3


def test_pages_with_xml_become_xml_or_tables_with_texts_and_confidences() -> None:
    before = Path(PAGES[0]).read_bytes()
    done = run("pages -m reader.onnx -o pages/read")
    assert (done.code, done.out) == (0, "") and "2 done, 0 failed" in done.err
    assert files("pages/read") == ["pages/read/p1.xml", "pages/read/sub/p2.xml"]
    assert re.findall(r'CONTENT="(.*?)" WC="1.0000"', Path("pages/read/p1.xml").read_text()) == [*TEXTS]
    assert Path(PAGES[0]).read_bytes() == before
    assert len(read_pages(["pages"], "reader.onnx", "pages/read", force=True).jobs) == 2  # results are none
    lines = [[page, f"l{k}", text] for page in PAGES for k, text in enumerate(TEXTS)]
    printed = run(f"{' '.join(PAGES)} -m reader.onnx").out.splitlines()
    assert [row.split("\t")[:3] for row in printed] == lines
    assert run(f"{' '.join(PAGES)} -m reader.onnx -o lines.json").code == 0
    rows = json.loads(Path("lines.json").read_text())
    assert [[row["file"], row["line"], row["text"]] for row in rows] == lines
    assert [each["character"] for each in rows[0]["characters"]] == ["a", "b"]


def test_photographs_become_xml_with_texts_and_pictures_that_are_data_once_corrected() -> None:
    ends = ((20, 60, 280), (20, 100, 280), (150, 140, 280))
    for name in ("in/a.png", "in/sub/b.png"):
        draw_bars(Path(name), ends)
    draw_page(Path("in/known.xml"), ("ab",))
    done = run("in -m reader.onnx --line-model baselines.onnx -o read --overlay")
    assert done.code == 0 and "3 done" in done.err and "warning" not in done.err
    assert check_page("read/a.xml") == ["b"] * 3
    assert b"<alto" in Path("read/known.xml").read_bytes()  # its own lines, as without a model for lines
    assert files("read", "*.png") == ["read/a.out.png", "read/known.out.png", "read/sub/b.out.png"]
    assert np.ptp(np.asarray(Image.open("read/a.out.png")).astype(int), axis=-1).max() > 100  # in colours
    Path("in/a.xml").write_text(Path("read/a.xml").read_text().replace(">b<", ">bi<", 1))
    task = read(Path("in"))
    assert len(task.names["train"]) == 1 + 3 and "i" in task.spec.classes
    pixels, lines = np.asarray(Image.open("in/a.png")), read_page("in/a.xml").lines
    found = find_lines(Session("baselines.onnx"), pixels)
    for one, other, (left, y, right) in zip(found, lines, ends, strict=True):
        np.testing.assert_array_equal(cut_line(pixels, one), cut_line(pixels, other))
        np.testing.assert_allclose(np.array(other.baseline)[[0, -1]], [(left, y), (right, y)], atol=4)
    rows = [row.split("\t") for row in run("in/a.png -m baselines.onnx").out.splitlines()]
    assert [(len(row[-2].split()) >= 2, len(row[-1].split()) >= 4) for row in rows] == [(True, True)] * 3
    draw_bars(Path("columns.png"), ((10, 60, 230), (245, 100, 295)))
    for direction, first in (("ltr", 220), ("rtl", 50)):  # columns, from where the texts begin
        recogniser(Path(f"{direction}.onnx"), MARKS, text_direction=direction)
        (result,) = read_pages(["columns.png"], f"{direction}.onnx", line_model="baselines.onnx")
        character = result.rows[0]["characters"][0]
        assert character["right"] - character["left"] == pytest.approx(first, rel=0.3)


def test_bad_pages_and_lines_are_named_and_the_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also lines whose images the model does not take; and the XML is written after the picture."""
    Path("pages/bad.xml").write_text(alto("", "p1.png", size='WIDTH="9" HEIGHT="99"'))
    Path("pages/none.xml").write_text(alto("", image="no.png"))
    write_noise(Path("pages/no.png"))
    Path("pages/lost.xml").write_text(alto('<TextLine ID="lost"/>', image="p1.png"))
    recogniser(Path("wide.onnx"), MARKS, min_grid=(1, 40))
    done = run("pages -m wide.onnx -o out")
    assert done.code == 1 and "3 done, 2 failed" in done.err
    assert "pages/p1.xml: 2 of 3 lines are not read, such as l0: " in done.err
    assert re.findall('CONTENT="(.*?)"', Path("out/sub/p2.xml").read_text()) == ["aab"]
    assert [*map(done.err.count, ("failed: pages/bad.xml", "line lost: nothing"))] == [1, 1]
    assert "none.xml has no lines" in done.err and Path("out/none.xml").exists()
    monkeypatch.setattr("mdlstm_tk.text.read.draw_overlay", lambda *_: [][0])
    (result,) = read_pages(PAGES[:1], "reader.onnx", "no", overlay=True)
    assert "IndexError" in str(result.error) and not Path("no").exists()


REFUSED = [  # models that do other things, no pages, and results that would replace a page, or two
    *("pages -m classes.onnx", "in -m reader.onnx", "in -m reader.onnx --line-model reader.onnx"),
    *("in -m baselines.onnx --beam 2", "empty -m reader.onnx", "pages -m reader.onnx -o pages --force"),
    *("pages -m reader.onnx -o one.xml", "pages -m reader.onnx --overlay"),
    "pages/p1.xml sub/p1.xml -m reader.onnx -o o",
]


def test_what_does_not_go_together_is_refused_and_images_of_pages_are_no_photographs() -> None:
    session = Session(classifier(Path("classes.onnx")), device="cpu")
    Path("empty").mkdir()
    draw_page(Path("sub/p1"))
    draw_bars(Path("in/a.png"))
    before = files(".")
    assert [words for words in REFUSED if run(words).code != 2] == [] and files(".") == before
    with pytest.raises(InputError):
        find_lines(session, np.zeros((99, 99), np.uint8))
    write_noise(Path("pages/other.png"))
    with pytest.warns(UserWarning, match=r"other\.png.*line_model"):
        assert [job.source for job in read_pages(["pages"], "reader.onnx").jobs] == PAGES
    as_a_shell_does = ["pages/p1.xml", "pages/p1.png"]  # for pages/*
    for named, found in ((["pages"], ["pages/other.png", *PAGES]), (as_a_shell_does, PAGES[:1])):
        jobs = read_pages(named, "reader.onnx", line_model="baselines.onnx").jobs
        assert [job.source for job in jobs] == found


def any_maps(rng: np.random.Generator) -> Any:
    """Maps at random: noise of any scale, blobs, stripes, tiny and long grids."""
    shape = tuple(rng.integers(1, (1, 60, 200)[rng.integers(3)] + 1, 2).tolist())
    y = rng.standard_normal((*shape, 3)) * 10 ** rng.uniform(-2, 3)
    y = y.cumsum(rng.integers(2)) if rng.uniform() < 0.5 else y
    if rng.uniform() < 0.3:
        y[:: rng.integers(1, 9), :: rng.integers(1, 9)] = 100
    return y.astype(np.float32)


def test_no_image_and_no_map_makes_the_search_or_the_picture_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, session, counts = np.random.default_rng(0), Session("baselines.onnx", device="cpu"), [0]
    monkeypatch.setattr(Session, "__call__", lambda *_: any_maps(rng))
    for _ in range(80):
        pixels = rng.integers(0, rng.integers(1, 256), rng.integers(1, 300, 2)).astype(np.uint8)
        save(Path("any.png"), pixels)
        try:
            found = find_page(session, pixels, Path("any.png"))
        except InputError:
            continue
        write_page(found, {}, "any.xml")
        assert check_page("any.xml") == []
        assert len(read_page("any.xml").lines) == len(found.lines)
        draw_overlay(pixels, found.lines, {0: "é\u05d0\u05d1"})
        counts.append(len(found.lines))
    assert len(counts) > 40 and max(counts) > 3
    for pixels in (np.zeros((30, 40), np.uint16), np.full((2500, 20, 3), 0.5, np.float32)):
        assert max(draw_overlay(pixels, (), {}).size) <= 2000
