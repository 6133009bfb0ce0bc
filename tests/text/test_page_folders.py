"""Folders of pages, transcripts beside images, and tables: their samples, and how they are divided."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import save
from helpers.pages import HEIGHT, WIDTH, alto, draw_page, read, write_noise, write_texts
from PIL import Image, ImageDraw

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.text import folders
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.pages import read_page
from mdlstm_tk.text.transcribe_training import target_texts


def write_pages(folder: Path, count: int = 6) -> Path:
    for k in range(count):
        draw_page(folder / f"p{k}", ["ab", "ba", "abba"])
    return folder


def write_transcript(path: Path, text: bytes, *images: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.gt.txt").write_bytes(text)
    for suffix in images:
        write_noise(path.with_name(path.name + suffix), 30, 8)


def test_samples_are_lines_with_a_text_and_images_with_a_transcript(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a page in both formats, as Transkribus exports it, one is read."""
    caplog.set_level("INFO")
    draw_page(tmp_path / "b/p", ["ab", None, "bab"])
    draw_page(tmp_path / "a", ["b"], suffix=".jpg")
    for folder in ("alto", "page"):
        (tmp_path / "b" / folder).mkdir()
        (tmp_path / "b" / folder / "p.xml").write_bytes((tmp_path / "b/p.xml").read_bytes())
    (tmp_path / "b/p.xml").unlink()
    (tmp_path / "mets.xml").write_text("<mets/>")
    write_transcript(tmp_path / "c", "\ufeff\n d\u2028e \n\n".encode(), ".png")  # one line, left out later
    write_transcript(tmp_path / "d", b"cab\r\n", ".bin.png", ".PNG")  # the binary one does not count
    write_transcript(tmp_path / "e", b"c", ".nrm.png")
    write_noise(tmp_path / "untold.png")
    task = read(tmp_path)
    pairs = [*zip(task.names["train"], task.groups["train"], strict=True)]
    of_pages = [
        ("a.xml l0", "a.xml"),
        ("b/alto/p.xml l0", "b/alto/p.xml"),
        ("b/alto/p.xml l2", "b/alto/p.xml"),
    ]
    assert sorted(pairs) == [*of_pages, ("d.PNG", "d.PNG"), ("e.nrm.png", "e.nrm.png")]
    texts = target_texts(task.batch(0, 0, 5).y, task.spec)
    assert sorted(texts) == ["ab", "b", "bab", "c", "cab"] and task.spec.channels == 1
    for words in (
        "left out: 2 (",
        "page/p.xml: it is for the image of b/alto/p.xml",
        "their lines without a text",
    ):
        assert words in caplog.text
    assert "a text or a page, left out: 2" in caplog.text  # of which one is the binary image


BAD: dict[str, Callable[[Path], Any]] = {
    "no image": lambda p: draw_page(p).with_suffix(".png").unlink(),
    "no pixels": lambda p: draw_page(p).with_suffix(".png").write_bytes(b"x"),
    "no end": lambda p: draw_page(p).write_text(alto("")[:-9]),
    "empty": lambda p: draw_page(p).write_text(""),
    "no place": lambda p: draw_page(p).write_text(
        alto('<TextLine ID="l"><String CONTENT="a"/></TextLine>', image="bad.png")
    ),
    "no line": lambda p: write_transcript(p, b"ab"),
    "a page": lambda p: (draw_page(p).write_text(alto("", "bad.png")), write_transcript(p, b"ab")),
    "no text": lambda p: write_transcript(p, b" \n", ".png"),
    "two lines": lambda p: write_transcript(p, b"a\nb\n", ".png"),
    "two images": lambda p: write_transcript(p, b"ab", ".png", ".jpg"),
    "Latin-1": lambda p: write_transcript(p, b"\xe9", ".png"),
    "a tab": lambda p: write_transcript(p, b"a\tb", ".png"),
}
BAD_ROWS = ["0.png\tother", "./0.png\tother", "more.png\tabc\tabc", "more.png abc", "gone.png\tabc"]
BAD_ROWS += ["more.png\t"]
BAD_ROWS += [f"{'abc' * 100}\tmore.png", "more.png\t\u200f \u200e", "more.png\ta\u2028b", "labels.tsv\tabc"]


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD)
def test_bad_pages_and_transcripts_are_named_and_left_out(
    damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pages(tmp_path, 2)
    damage(tmp_path / "bad")
    assert {*read(tmp_path).groups["train"]} == {"p0.xml", "p1.xml"}
    assert "(bad." in caplog.text


def test_bad_rows_of_a_table_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_texts(tmp_path)
    save(tmp_path / "more.png", np.zeros((6, 20), np.uint8))
    with (tmp_path / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write("\n\n".join(BAD_ROWS))
    assert sorted(read(tmp_path).names["train"]) == [f"{k}.png" for k in range(8)]
    assert f"cannot be used, left out: {len(BAD_ROWS)} (" in caplog.text
    (tmp_path / "nothing").mkdir()
    write_noise(tmp_path / "nothing/a.png")
    for folder, options, words in (
        ("", {"crop": "4x8"}, "crop"),
        ("nothing", {}, r"ALTO or PAGE XML.*labels\.tsv"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path / folder, **options)


@pytest.mark.parametrize("cache", [0, 256])
@pytest.mark.parametrize("resize", ["", "16x*"])
def test_training_sees_what_inference_cuts_and_decodes_a_page_once(
    cache: int, resize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, original = list[str](), folders.read_pixels
    monkeypatch.setattr(folders, "read_pixels", lambda *args: decoded.append(args[1]) or original(*args))
    for divisor in (1, 2):  # a page that was replaced is read again
        draw_page(tmp_path / "p", ["ab", "ba"])
        save(tmp_path / "p.png", np.array(Image.open(tmp_path / "p.png")) // divisor)
        page, decoded = read_page(tmp_path / "p.xml"), []
        pixels = decode_image(page.image.read_bytes(), "p.png")
        task = pickle.loads(pickle.dumps(read(tmp_path, resize=resize, cache=cache)))  # as a worker gets it
        expected = [task.spec.preprocessing(cut_line(pixels, each)) for each in page.lines]
        assert expected[0].shape[0] == (16 if resize else 20 + 2)
        for batch in (task.batch(0, 0, 2), task.batch(0, 1, 2)):
            assert {x.tobytes() for x in batch.x} == {x.tobytes() for x in expected}
        assert decoded == ["p.png"]


def test_pages_not_lines_are_divided(tmp_path: Path) -> None:
    """At random, or by the longest prefix of a name in splits.json, such as those of writers."""
    texts = ["".join("ab"[n >> bit & 1] for bit in range(5)) for n in range(36)]  # copies stay together
    for k in range(12):
        draw_page(tmp_path / f"p{k}", [f"{text}{'b' * k}" for text in texts[3 * k : 3 * k + 3]])
    task = read(tmp_path, validation=0.25)
    groups = {split: {*each} for split, each in task.groups.items()}
    assert not groups["train"] & groups["validation"]
    assert groups["train"] | groups["validation"] == {f"p{k}.xml" for k in range(12)}
    splits = {"train": ["p"], "valid": ["p1", "p3"], "test": ["p10", "p4.x"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    task = read(tmp_path)
    pages = {split: {name.split()[0] for name in each} for split, each in task.names.items()}
    assert pages["validation"] == {"p1.xml", "p11.xml", "p3.xml"} and len(pages["train"]) == 7
    assert pages["test"] == {"p10.xml", "p4.xml"}
    prefixes = {"train": {"p"}, "validation": {"p1", "p3"}, "test": {"p10", "p4.x"}}
    assert {split: {*each} for split, each in task.groups.items()} == prefixes


def test_pages_with_baselines_are_samples_of_a_finder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In grey, with baselines in pixels of x and the reach of their outlines in line spacings."""
    caplog.set_level("INFO")
    for k, name in enumerate("abcd"):
        draw_page(tmp_path / f"{name}.xml", ("abab" * 4, "a" * k + "b" * (12 - k)))
    draw_page(tmp_path / "a.xml", ("abab" * 4, "b" * 12))
    (tmp_path / "empty.xml").write_text(alto("", "empty.png"))
    write_noise(tmp_path / "empty.png")
    (tmp_path / "broken.xml").write_text(alto("", "missing.png"))
    (tmp_path / "twin.xml").write_text((tmp_path / "a.xml").read_text())
    beyond = f'<TextLine BASELINE="{WIDTH + 9} 9 {WIDTH + 99} 9"/>'
    of_a = (tmp_path / "a.xml").read_text().replace("</TextBlock>", f"{beyond}</TextBlock>")
    (tmp_path / "a.xml").write_text(of_a)
    (tmp_path / "alto").mkdir()  # without baselines, it does not take the place of d.xml
    (tmp_path / "alto/d.xml").write_text(alto("", "d.png"))
    image = Image.open(tmp_path / "b.png").convert("RGB")
    ImageDraw.Draw(image).rectangle((0, 0, 99, 9), (255, 0, 0))
    image.save(tmp_path / "b.png")
    task = read(tmp_path, "baselines", resize="64x*")
    assert sorted(task.names["train"]) == ["a.xml", "b.xml", "c.xml", "d.xml"] and task.spec.channels == 1
    for words in (
        *("without a baseline, left out: 2", "broken.xml: has no image", "twin.xml: it is"),
        "lines without a baseline on their page, learned as no lines: 1",
    ):
        assert words in caplog.text, words
    assert task.spec.decoding == pytest.approx({"above": 16 / 30, "below": 4 / 30})
    batch, right = task.batch(0, 0, 4), 20 + 12 * 16 + 5
    assert batch.x.shape == (4, 64, 96, 1) and batch.y.shape == (4, 2, 2, 2)
    expected = np.array([[15, 40], [right, 40]]) * 64 / HEIGHT
    np.testing.assert_allclose(batch.y[:, 0], np.broadcast_to(expected, (4, 2, 2)), rtol=1e-5)
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8)), y=np.zeros(2))
    for path, options in ((tmp_path, {"crop": "32"}), (tmp_path / "a.npz", {}), (tmp_path / "alto", {})):
        with pytest.raises(InputError):
            read(path, "baselines", **options)
