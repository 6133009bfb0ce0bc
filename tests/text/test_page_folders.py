"""Folders of pages, transcripts beside images, and how they are divided."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import alto, draw_page
from helpers.user_data import RNG, read, write_image
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.measures import target_texts
from mdlstm_tk.text.pages import images_of_pages, read_page


def write_pages(folder: Path, count: int = 6, prefix: str = "p") -> Path:
    for k in range(count):
        draw_page(folder / f"{prefix}{k}", ["ab", "ba", "abba"])
    return folder


def test_the_lines_of_pages_are_samples(tmp_path: Path) -> None:
    draw_page(tmp_path / "b/p", ["ab", None, "bab"])
    draw_page(tmp_path / "a", ["b"], suffix=".jpg")
    (tmp_path / "mets.xml").write_text("<mets/>")
    task = read(tmp_path, "transcribe", validation=0.0)
    assert list(task.names["train"]) == ["a.xml l0", "b/p.xml l0", "b/p.xml l2"]
    assert list(task.groups["train"]) == ["a.xml", "b/p.xml", "b/p.xml"]
    assert (task.skipped, task.spec.classes, task.spec.channels) == ([], ("a", "b"), 1)
    assert "pages: 2, with 3 lines with a text and 1 without, which are left out" in task.summary
    assert not any("other types" in line for line in task.summary)
    assert sorted(target_texts(task.batch(0, 0, 3), task.spec)) == ["ab", "b", "bab"]


def test_training_sees_what_inference_cuts(tmp_path: Path) -> None:
    draw_page(tmp_path / "p", ["ab"])
    page = read_page(tmp_path / "p.xml")
    cut = cut_line(decode_image(page.image.read_bytes(), "p.png"), page.lines[0])
    for resize in (None, (16, None)):
        task = read(tmp_path, "transcribe", validation=0.0, resize=resize)
        assert task.spec.preprocessing is not None
        expected = task.spec.preprocessing(cut)
        assert expected.shape[0] == (16 if resize else 20 + 2)
        for _ in range(2):
            np.testing.assert_array_equal(task.batch(0, 0, 1).x[0], expected)


@pytest.mark.parametrize("cache", [0, 2**20])
def test_a_page_is_decoded_once_if_its_lines_fit_into_the_cache(
    cache: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdlstm_tk.text import page_folders as pages

    decoded: list[str] = []
    original = pages.read_pixels
    monkeypatch.setattr(pages, "read_pixels", lambda *args: decoded.append(args[1]) or original(*args))
    pages._page_pixels.cache_clear()
    task = read(
        write_pages(tmp_path, 2), "transcribe", validation=0.0, resize=(16, None), cache_bytes=cache
    )
    for step in range(4):
        assert len(task.batch(0, step, 6).x) == 6
    if cache:
        assert sorted(decoded) == ["p0.png", "p1.png"]
        cached = [task.sets["train"].samples[k].read_x() for k in range(6)]  # type: ignore[attr-defined]
        assert {x.dtype for x in cached} == {np.dtype(np.uint8)}
        assert task.cache_bytes >= sum(x.nbytes for x in cached)
    else:
        assert any("6 lines of pages are cut again" in line for line in task.summary)


def test_pages_not_lines_are_held_out(tmp_path: Path) -> None:
    write_pages(tmp_path, 8)
    task = read(tmp_path, "transcribe", validation=0.25)
    groups = {split: set(each) for split, each in task.groups.items()}
    assert (len(groups["train"]), len(groups["validation"])) == (6, 2)
    assert not groups["train"] & groups["validation"]
    assert (task.count("train"), task.count("validation")) == (18, 6)
    again = read(tmp_path, "transcribe", seed=1, known=task.identities)
    assert {split: set(each) for split, each in again.names.items()} == {
        split: set(each) for split, each in task.names.items()
    }
    one = read(
        tmp_path,
        "transcribe",
        seed=1,
        known={**task.identities, "validation": task.identities["validation"][:1]},
    )
    assert set(one.groups["validation"]) == {task.groups["validation"][0]}


def test_splits_json_divides_by_the_longest_prefix(tmp_path: Path) -> None:
    write_pages(tmp_path, 12)
    splits = {"train": ["p"], "valid": ["p1", "p3"], "test": ["p10", "p4.x"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    task = read(tmp_path, "transcribe", seed=5)
    pages = {split: sorted({name.split()[0] for name in each}) for split, each in task.names.items()}
    assert pages["validation"] == ["p1.xml", "p11.xml", "p3.xml"]
    assert pages["test"] == ["p10.xml", "p4.xml"]
    assert len(pages["train"]) == 7
    assert {split: sorted(set(each)) for split, each in task.groups.items()} == {
        "train": ["p"],
        "validation": ["p1", "p3"],
        "test": ["p10", "p4.x"],
    }


def test_files_that_splits_json_does_not_name_are_left_out(tmp_path: Path) -> None:
    write_pages(tmp_path, 2)
    write_pages(tmp_path, 2, "q")
    (tmp_path / "splits.json").write_text('{"train": ["p0"], "val": ["p1"]}')
    task = read(tmp_path, "transcribe")
    assert set(task.groups["train"]) == {"p0"} and set(task.groups["validation"]) == {"p1"}
    assert "files that splits.json does not name, left out: q0.xml, q1.xml" in task.summary
    (tmp_path / "splits.json").write_text('{"train": ["p", "q7"], "test": ["q0", "r"]}')
    assert "prefixes in splits.json that no sample has: q7, r" in read(tmp_path, "transcribe").summary
    (tmp_path / "splits.json").write_text('{"train": ["p"], "val": ["r"]}')
    with pytest.raises(InputError, match=r"validation in splits\.json has no usable samples"):
        read(tmp_path, "transcribe")
    (tmp_path / "splits.json").write_text('{"train": ["r"]}')
    with pytest.raises(InputError, match=r"no usable .* \(pages: 4, .*splits.json does not name"):
        read(tmp_path, "transcribe")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"eval": []}', '{"train": [1]}', '{"train": "p"}', "[" * 100_000],
    ids=lambda text: text[:20],
)
def test_bad_splits_are_one_line(text: str, tmp_path: Path) -> None:
    write_pages(tmp_path, 2)
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(InputError, match=r"splits\.json is not {"):
        read(tmp_path, "transcribe")
    (tmp_path / "splits.json").write_text('{"train": ["a"], "test": ["a"]}')
    with pytest.raises(InputError, match="has 'a' in two splits"):
        read(tmp_path, "transcribe")


def write_transcript(folder: Path, text: bytes, name: str = "bad") -> None:
    write_image(folder / "bad.png", RNG.integers(0, 255, (8, 30)))
    (folder / f"{name}.gt.txt").write_bytes(text)


WITHOUT_PLACE = alto('<TextLine ID="l"><String CONTENT="a"/></TextLine>', image="bad.png")
BAD = {
    "no image": (lambda p: draw_page(p).with_suffix(".png").unlink(), r"bad\.xml: has no image"),
    "no pixels": (lambda p: draw_page(p).with_suffix(".png").write_bytes(b"x"), r"bad\.xml: .*image"),
    "no end": (lambda p: draw_page(p).write_text(alto("")[:-9]), r"bad\.xml: is not well-formed XML"),
    "empty": (lambda p: draw_page(p).write_text(""), r"bad\.xml: is not well-formed XML: no element found"),
    "a line before": (
        lambda p: draw_page(p).write_text("\n" + alto("")),
        r"bad\.xml: is not well-formed XML: XML or text declaration not at start",
    ),
    "no place": (lambda p: draw_page(p).write_text(WITHOUT_PLACE), r"bad\.xml l: line l has no area"),
    "no line": (lambda p: write_transcript(p.parent, b"ab", "gone"), r"gone\.png: there is no such file"),
    "no text": (lambda p: write_transcript(p.parent, b" \n"), r"bad\.png: its text is empty"),
    "two lines": (lambda p: write_transcript(p.parent, b"a\nb\n"), r"bad\.png: bad\.gt\.txt has 2 lines"),
    "two images": (
        lambda p: (
            write_transcript(p.parent, b"ab"),
            write_image(p.parent / "bad.jpg", RNG.random((8, 30))),
        ),
        r"bad\.jpg and \S*bad\.png have one name; keep one",
    ),
    "Latin-1": (lambda p: write_transcript(p.parent, b"\xe9"), r"bad\.gt\.txt is not a text in UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pages_lines_and_transcripts_are_named_and_skipped(case: str, tmp_path: Path) -> None:
    damage, message = BAD[case]
    write_pages(tmp_path, 2)
    damage(tmp_path / "bad")
    task = read(tmp_path, "transcribe", validation=0.0)
    (reason,) = task.skipped
    assert re.search(message, reason)
    assert task.count("train") == 6
    assert any(reason in line for line in task.summary)


def test_a_page_in_both_formats_is_read_once(tmp_path: Path) -> None:
    """As Transkribus exports it."""
    draw_page(tmp_path / "p", ["ab"])
    for folder in ("alto", "page"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.xml").write_bytes((tmp_path / "p.xml").read_bytes())
    (tmp_path / "p.xml").unlink()
    task = read(tmp_path, "transcribe", validation=0.0)
    assert list(task.names["train"]) == ["alto/p.xml l0"]
    assert task.skipped == ["page/p.xml: it is for the image of alto/p.xml; delete one of them"]
    without_text = re.sub("<String.*?/>", "", (tmp_path / "alto/p.xml").read_text())
    (tmp_path / "alto/p.xml").write_text(without_text)  # as segmentation wrote it
    task = read(tmp_path, "transcribe", validation=0.0)
    assert (list(task.names["train"]), task.skipped) == (["page/p.xml l0"], [])


def test_pages_in_colour(tmp_path: Path) -> None:
    draw_page(tmp_path / "p", ["ab"])
    grey = Image.open(tmp_path / "p.png").convert("RGB")
    grey.save(tmp_path / "p.png")
    assert read(tmp_path, "transcribe", validation=0.0).spec.channels == 1
    tinted = np.array(grey)
    tinted[..., 2] //= 2
    write_image(tmp_path / "p.png", tinted)
    assert read(tmp_path, "transcribe", validation=0.0).spec.channels == 3


def test_transcripts_lie_beside_images_of_lines(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif", ".jpeg"):
        write_image(tmp_path / f"sub/line{suffix[1:]}.v1{suffix}", RNG.integers(0, 255, (8, 30)))
        (tmp_path / f"sub/line{suffix[1:]}.v1.gt.txt").write_text("ab c\n", encoding="utf-8")
    write_image(tmp_path / "untold.png", RNG.integers(0, 255, (8, 30)))
    task = read(tmp_path, "transcribe", validation=0.0)
    names = ["sub/linejpeg.v1.jpeg", "sub/linejpg.v1.jpg", "sub/linepng.v1.png", "sub/linetif.v1.tif"]
    assert list(task.names["train"]) == list(task.groups["train"]) == names
    assert set(target_texts(task.batch(0, 0, 4), task.spec)) == {"ab c"}
    assert "images without a text or a page, left out: 1, such as untold.png" in task.summary


def test_names_of_ocropus_are_known(tmp_path: Path) -> None:
    names = ("a.bin.png", "b.png", "b.bin.png", "c.v1.nrm.png", "c.2.png", "d.bin.png", "d.nrm.png")
    for name in names:
        write_image(tmp_path / name, RNG.integers(0, 255, (8, 30)))
    for stem in ("a", "b", "c", "c.v1", "d"):
        (tmp_path / f"{stem}.gt.txt").write_text("ab", encoding="utf-8")
    task = read(tmp_path, "transcribe", validation=0.0)
    assert sorted(task.names["train"]) == ["a.bin.png", "b.png", "c.v1.nrm.png"]
    assert [line.partition(":")[2] for line in task.skipped] == [
        " there is no such file",
        f" {tmp_path.name}/d.bin.png and {tmp_path.name}/d.nrm.png have one name; keep one of them",
    ]
    assert "images without a text or a page, left out: 2, such as b.bin.png" in task.summary


def test_images_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "x.png", np.zeros((80, 90)))
    (tmp_path / "x.gt.txt").write_text("ab", encoding="utf-8")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(InputError, match=r"x\.png: .* limit of 4000 pixels"):
        read(tmp_path, "transcribe")


def test_the_image_of_a_page_is_no_line(tmp_path: Path) -> None:
    """It would be a sample whole, perhaps in another split than its lines."""
    write_pages(tmp_path, 2)
    (tmp_path / "p0.gt.txt").write_text("ab", encoding="utf-8")
    (reason,) = read(tmp_path, "transcribe").skipped
    assert reason == (
        "p0.png: it is the image of a page in ALTO or PAGE XML, of which only the lines count; delete the "
        "page or p0.gt.txt"
    )
    (tmp_path / "p0.xml").write_text("<annotation/>", encoding="utf-8")  # no page
    task = read(tmp_path, "transcribe", validation=0.0)
    assert "p0.png" in task.names["train"] and not task.skipped


def test_images_of_pages_are_not_without_a_text(tmp_path: Path) -> None:
    """By the name that a page gives, by its own, and where the page is in a folder of Transkribus."""
    write_pages(tmp_path, 2)
    (tmp_path / "page").mkdir()
    (tmp_path / "p0.xml").rename(tmp_path / "page/p0.xml")
    (tmp_path / "p1.xml").rename(tmp_path / "q.xml")
    assert not any("without a text or" in line for line in read(tmp_path, "transcribe").summary)
    write_image(tmp_path / "alone.png", RNG.integers(0, 255, (8, 30)))
    summary = read(tmp_path, "transcribe").summary
    assert "images without a text or a page, left out: 1, such as alone.png" in summary


def test_an_image_belongs_to_the_page_that_has_it_and_not_to_one_of_its_name(tmp_path: Path) -> None:
    """Whatever other images are there; a page that cannot be read has that of its name."""
    draw_page(tmp_path / "scan", ["ab"])
    (tmp_path / "scan.xml").rename(tmp_path / "a.xml")
    (tmp_path / "b.xml").write_text("<broken", encoding="utf-8")
    pages, images = ([str(tmp_path / name) for name in names] for names in (("a.xml", "b.xml"), "ab"))
    images = [f"{image}.png" for image in images]
    scan = str(tmp_path / "scan.png")
    assert images_of_pages(pages, images) == {images[1]}
    assert images_of_pages(pages, [*images, scan]) == {images[1], scan}


def test_a_folder_with_neither_names_what_is_expected(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", RNG.integers(0, 255, (8, 30)))
    with pytest.raises(InputError, match=r"no usable training samples.*ALTO or PAGE XML.*labels\.tsv"):
        read(tmp_path, "transcribe")


@pytest.mark.parametrize("cache", [0, 2**20])
def test_a_page_that_was_replaced_is_read_again(cache: int, tmp_path: Path) -> None:
    draw_page(tmp_path / "p", ["ab", "ba"])
    whole = np.array(Image.open(tmp_path / "p.png"))
    means = []
    for divisor in (1, 2):
        write_image(tmp_path / "p.png", whole // divisor)
        task = read(tmp_path, "transcribe", validation=0.0, cache_bytes=cache)
        means.append(float(task.batch(0, 0, 2).x.mean()))
    assert means[1] == pytest.approx(means[0] / 2, rel=0.02)
