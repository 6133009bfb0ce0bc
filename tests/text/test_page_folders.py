"""Folders of pages, transcripts beside images, and how they are divided."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import save
from helpers.pages import alto, draw_page, read
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.text import folders
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.pages import head_of, read_page
from mdlstm_tk.text.transcribe_training import target_texts


def write_pages(folder: Path, count: int = 6, prefix: str = "p") -> Path:
    for k in range(count):
        draw_page(folder / f"{prefix}{k}", ["ab", "ba", "abba"])
    return folder


def write_image(path: Path, seed: int = 0) -> None:
    save(path, np.random.default_rng(seed).integers(0, 255, (8, 30)).astype(np.uint8))


def test_the_lines_of_pages_are_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw_page(tmp_path / "b/p", ["ab", None, "bab"])
    draw_page(tmp_path / "a", ["b"], suffix=".jpg")
    (tmp_path / "mets.xml").write_text("<mets/>")
    task = read(tmp_path)
    pairs = zip(task.names["train"], task.groups["train"], strict=True)
    assert sorted(pairs) == [("a.xml l0", "a.xml"), ("b/p.xml l0", "b/p.xml"), ("b/p.xml l2", "b/p.xml")]
    assert (task.spec.classes, task.spec.channels) == (("a", "b"), 1)
    assert "cannot be used" not in caplog.text
    assert sorted(target_texts(task.batch(0, 0, 3).y, task.spec)) == ["ab", "b", "bab"]


@pytest.mark.parametrize("cache", [0, 256])
@pytest.mark.parametrize("resize", ["", "16x*"])
def test_training_sees_what_inference_cuts(cache: int, resize: str, tmp_path: Path) -> None:
    draw_page(tmp_path / "p", ["ab"])
    page = read_page(tmp_path / "p.xml")
    cut = cut_line(decode_image(page.image.read_bytes(), "p.png"), page.lines[0])
    task = pickle.loads(pickle.dumps(read(tmp_path, resize=resize, cache=cache)))  # as a worker gets it
    expected = task.spec.preprocessing(cut)
    assert expected.shape[0] == (16 if resize else 20 + 2)
    np.testing.assert_array_equal(task.batch(0, 0, 1).x[0], expected)


@pytest.mark.parametrize("cache", [0, 256])
def test_a_page_is_decoded_once_for_all_its_lines(
    cache: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = folders.read_pixels
    monkeypatch.setattr(folders, "read_pixels", lambda *args: decoded.append(args[1]) or original(*args))
    task = read(write_pages(tmp_path, 2), resize="16x*", cache=cache)
    for step in range(4):
        assert len(task.batch(0, step, 6).x) == 6
    assert sorted(decoded) == ["p0.png", "p1.png"]


def test_pages_not_lines_are_held_out(tmp_path: Path) -> None:
    texts = ["".join("ab"[n >> bit & 1] for bit in range(5)) for n in range(24)]  # copies stay together
    for k in range(8):
        draw_page(tmp_path / f"p{k}", texts[3 * k : 3 * k + 3])
    task = read(tmp_path, validation=0.25)
    groups = {split: {*each} for split, each in task.groups.items()}
    assert not groups["train"] & groups["validation"]
    assert groups["train"] | groups["validation"] == {f"p{k}.xml" for k in range(8)}


def test_splits_json_divides_pages_by_the_longest_prefix(tmp_path: Path) -> None:
    write_pages(tmp_path, 12)
    splits = {"train": ["p"], "valid": ["p1", "p3"], "test": ["p10", "p4.x"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    task = read(tmp_path)
    pages = {split: {name.split()[0] for name in each} for split, each in task.names.items()}
    assert pages["validation"] == {"p1.xml", "p11.xml", "p3.xml"}
    assert pages["test"] == {"p10.xml", "p4.xml"}
    assert len(pages["train"]) == 7
    assert {split: {*each} for split, each in task.groups.items()} == {  # such as writers
        "train": {"p"},
        "validation": {"p1", "p3"},
        "test": {"p10", "p4.x"},
    }


def write_transcript(folder: Path, text: bytes, name: str = "bad") -> None:
    write_image(folder / "bad.png")
    (folder / f"{name}.gt.txt").write_bytes(text)


WITHOUT_PLACE = alto('<TextLine ID="l"><String CONTENT="a"/></TextLine>', image="bad.png")
BAD: dict[str, Callable[[Path], Any]] = {
    "no image": lambda p: draw_page(p).with_suffix(".png").unlink(),
    "no pixels": lambda p: draw_page(p).with_suffix(".png").write_bytes(b"x"),
    "no end": lambda p: draw_page(p).write_text(alto("")[:-9]),
    "empty": lambda p: draw_page(p).write_text(""),
    "a line before": lambda p: draw_page(p).write_text("\n" + alto("")),
    "no place": lambda p: draw_page(p).write_text(WITHOUT_PLACE),
    "no line": lambda p: (p.parent / "bad.gt.txt").write_bytes(b"ab"),
    "no text": lambda p: write_transcript(p.parent, b" \n"),
    "two lines": lambda p: write_transcript(p.parent, b"a\nb\n"),
    "two images": lambda p: (write_transcript(p.parent, b"ab"), write_image(p.parent / "bad.jpg")),
    "Latin-1": lambda p: write_transcript(p.parent, b"\xe9"),
    "a tab": lambda p: write_transcript(p.parent, b"a\tb"),
}


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD)
def test_bad_pages_lines_and_transcripts_are_named_and_left_out(
    damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pages(tmp_path, 2)
    damage(tmp_path / "bad")
    task = read(tmp_path)
    assert {*task.groups["train"]} == {"p0.xml", "p1.xml"}
    assert re.search(r"left out: \d \(bad\.", caplog.text)


def test_a_page_in_both_formats_is_read_once(tmp_path: Path) -> None:
    """As Transkribus exports it."""
    draw_page(tmp_path / "p", ["ab"])
    for folder in ("alto", "page"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.xml").write_bytes((tmp_path / "p.xml").read_bytes())
    (tmp_path / "p.xml").unlink()
    assert read(tmp_path).names["train"] == ["alto/p.xml l0"]
    without_text = re.sub("<String.*?/>", "", (tmp_path / "alto/p.xml").read_text())
    (tmp_path / "alto/p.xml").write_text(without_text)  # as segmentation wrote it
    assert read(tmp_path).names["train"] == ["page/p.xml l0"]


def test_pages_in_colour(tmp_path: Path) -> None:
    draw_page(tmp_path / "p", ["ab"])
    grey = Image.open(tmp_path / "p.png").convert("RGB")
    grey.save(tmp_path / "p.png")
    assert read(tmp_path).spec.channels == 1
    tinted = np.array(grey)
    tinted[..., 2] //= 2
    save(tmp_path / "p.png", tinted)
    assert read(tmp_path).spec.channels == 3


def test_transcripts_lie_beside_images_of_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for suffix in (".png", ".jpg", ".tif", ".jpeg"):
        write_image(tmp_path / f"sub/line{suffix[1:]}.v1{suffix}")
        (tmp_path / f"sub/line{suffix[1:]}.v1.gt.txt").write_text(
            "ab c\n\f", encoding="utf-8"
        )  # as Tesseract
    write_image(tmp_path / "untold.png")
    write_pages(tmp_path, 1)  # whose image is not without a text
    task = read(tmp_path)
    names = ["sub/linejpeg.v1.jpeg", "sub/linejpg.v1.jpg", "sub/linepng.v1.png", "sub/linetif.v1.tif"]
    assert sorted(task.names["train"])[-4:] == sorted({*task.groups["train"]})[-4:] == names
    assert "images without a text or a page, left out: 1\n" in caplog.text


def test_names_of_ocropus_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("a.bin.png", "b.png", "b.bin.png", "c.v1.nrm.png", "c.2.png", "d.bin.png", "d.nrm.png")
    for seed, name in enumerate(names):
        write_image(tmp_path / name, seed)
    for stem in ("a", "b", "c", "c.v1", "d"):
        (tmp_path / f"{stem}.gt.txt").write_text("ab", encoding="utf-8")
    assert sorted(read(tmp_path).names["train"]) == ["a.bin.png", "b.png", "c.v1.nrm.png"]
    assert "left out: 2 (c.gt.txt: no image" in caplog.text and "d.bin.png and d.nrm.png" in caplog.text


def test_the_image_of_a_page_is_no_line(tmp_path: Path) -> None:
    """It would be a sample whole, perhaps in another split than its lines."""
    write_pages(tmp_path, 2)
    (tmp_path / "p0.gt.txt").write_text("ab", encoding="utf-8")
    assert "p0.png" not in read(tmp_path).names["train"]
    (tmp_path / "p0.xml").write_text("<annotation/>", encoding="utf-8")  # no page
    assert "p0.png" in read(tmp_path).names["train"]


def test_an_image_belongs_to_the_page_that_names_it_and_a_broken_page_has_that_of_its_name(
    tmp_path: Path,
) -> None:
    draw_page(tmp_path / "scan", ["ab"])
    (tmp_path / "scan.xml").rename(tmp_path / "a.xml")
    write_image(tmp_path / "b.png")
    (tmp_path / "b.xml").write_text("broken", encoding="utf-8")
    assert head_of(tmp_path / "a.xml") == ("alto", tmp_path / "scan.png")
    assert head_of(tmp_path / "b.xml") == ("", tmp_path / "b.png")


def test_a_folder_with_neither_names_what_is_expected(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"ALTO or PAGE XML.*labels\.tsv"):
        read(tmp_path)


def test_a_page_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    draw_page(tmp_path / "p", ["ab", "ba"])
    whole, means = np.array(Image.open(tmp_path / "p.png")), []
    for divisor in (1, 2):
        save(tmp_path / "p.png", whole // divisor)
        means.append(float(read(tmp_path).batch(0, 0, 2).x.mean()))
    assert means[1] == pytest.approx(means[0] / 2, rel=0.02)
