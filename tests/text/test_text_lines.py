"""Lines of text: the table that names them, their characters, and the order in which they are read."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.user_data import RNG, read, write_image, write_texts

from mdlstm_tk._util.text_order import is_right_to_left, reorder
from mdlstm_tk.data import Batch
from mdlstm_tk.text.ctc_loss import ctc_loss
from mdlstm_tk.text.encoding import INVISIBLE, fit_texts
from mdlstm_tk.text.measures import predicted_texts, target_texts

ALEF, BET, GIMEL = "\u05d0\u05d1\u05d2"
ORDERS = {  # direction, logical order, visual order as the Unicode bidirectional algorithm has it
    "Latin": ("ltr", "ab (c) 12!", "ab (c) 12!"),
    "Latin in an RTL page": ("rtl", "ab (c) 12", "ab (c) 12"),
    "Hebrew": ("rtl", f"{ALEF}{BET} {GIMEL}", f"{GIMEL} {BET}{ALEF}"),
    "a full stop": ("rtl", f"{ALEF}{BET}.", f".{BET}{ALEF}"),
    "brackets": ("rtl", f"{ALEF}({BET})", f"({BET}){ALEF}"),
    "a number": ("rtl", f"{ALEF} 12 {BET}", f"{BET} 12 {ALEF}"),
    "a date": ("rtl", f"{ALEF} 12/05/2023", f"12/05/2023 {ALEF}"),
    "per cent": ("rtl", f"{ALEF} 3.5% {BET}", f"{BET} 3.5% {ALEF}"),
    "a Latin word": ("rtl", f"{ALEF} abc {BET}", f"{BET} abc {ALEF}"),
    "Hebrew in an LTR page": ("ltr", f"abc {ALEF}{BET} 12 {GIMEL} de", f"abc {GIMEL} 12 {BET}{ALEF} de"),
    "accents": ("rtl", f"{ALEF}\u05b8{BET}\u05b6", f"{BET}\u05b6{ALEF}\u05b8"),
    "Arabic": ("rtl", "\u0633\u0646\u0629 123", "123 \u0629\u0646\u0633"),
    "Arabic numbers": ("rtl", "\u0633 \u0663\u0664", "\u0663\u0664 \u0633"),
    "empty": ("rtl", "", ""),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_visual_order_is_that_of_unicode_and_turns_back(case: str) -> None:
    direction, logical, visual = ORDERS[case]
    assert reorder(logical, direction) == visual  # type: ignore[arg-type]
    assert reorder(visual, direction) == logical  # type: ignore[arg-type]


def test_the_direction_is_that_of_most_letters() -> None:
    assert is_right_to_left(f"{ALEF}{BET} a 123")
    assert not is_right_to_left(f"{ALEF} abc")
    assert not is_right_to_left("123")


def write_lines(path: Path, texts: list[str]) -> Path:
    for k, text in enumerate(texts):
        write_image(path / f"{k}.png", RNG.integers(0, 255, (6, 8 * max(len(text), 1))))
    lines = (f"{k}.png\t{text}\n" for k, text in enumerate(texts))
    (path / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return path


def test_the_characters_of_the_texts_are_the_classes(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path), "transcribe", validation=0.0)
    assert (task.spec.classes, task.spec.outputs) == ((" ", "a", "b", "c", "x"), 6)
    lines = (tmp_path / "labels.tsv").read_text().splitlines()
    batch = task.batch(0, 0, 8)
    assert sorted(target_texts(batch, task.spec)) == sorted(line.split("\t")[1].strip() for line in lines)


def test_characters_that_no_training_text_has_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "train", ["ab", "ba"])
    write_lines(tmp_path / "val", ["ab é"])
    assert "characters without samples to train on:  é" in read(tmp_path, "transcribe").summary


def test_right_to_left_texts_are_learned_in_visual_and_returned_in_logical_order(tmp_path: Path) -> None:
    texts = [f"{ALEF}{BET} 12", f"({BET}) {GIMEL}.", f"{GIMEL}{ALEF} ab"]
    task = read(write_lines(tmp_path, texts), "transcribe", validation=0.0)
    assert task.spec.text_direction == "rtl"
    assert any("3 texts run from right to left" in line for line in task.summary)
    batch = task.batch(0, 0, 3)
    assert sorted(target_texts(batch, task.spec)) == sorted(texts)
    shown = {"".join(task.spec.classes[k - 1] for k in row if k) for row in batch.y}
    assert shown == {reorder(text, "rtl") for text in texts}
    spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(3, -1)  # a blank after each
    prediction = np.eye(task.spec.outputs, dtype=np.float32)[spaced]
    assert predicted_texts(prediction, task.spec) == target_texts(batch, task.spec)
    assert task.measure(prediction, batch)["character_error"][0] == 0


@pytest.mark.parametrize("mark", map(chr, INVISIBLE))
def test_a_character_is_one_class_however_it_was_typed(mark: str) -> None:
    assert fit_texts(["caf\u00e9", f"cafe{mark}\u0301"]).classes == ("a", "c", "f", "é")


def test_texts_are_normalised_and_the_summary_says_so(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    texts = ["é", decomposed, "e\u200f", "\ufeffe", "\u200e e  "]
    task = read(write_lines(tmp_path, texts), "transcribe", validation=0.0)
    assert task.spec.classes == ("e", "é")
    assert any("4 texts were normalised" in line for line in task.summary)
    assert sorted(target_texts(task.batch(0, 0, 5), task.spec)) == ["e", "e", "e", "é", "é"]
    assert task.of_kind.extents[1].ctc_steps == 1


BAD_LINES = {
    "0.png again": ("0.png\tother", "line 9.*line 1 names 0.png"),
    "./0.png": ("./0.png\tother", r"line 9.*line 1 names \./0\.png"),
    "third column": ("more.png\tabc\tabc", "line 9.*3 columns; expected file, tab, text"),
    "no tab": ("more.png abc", "line 9.*no tab; expected file, tab, text"),
    "no file": ("gone.png\tabc", r"gone\.png: there is no such file"),
    "columns exchanged": ("abc" * 100 + "\tmore.png", "abc: there is no such file"),
    "no text": ("more.png\t", r"more\.png: its text is empty"),
    "marks of direction": ("more.png\t\u200f \u200e", r"more\.png: its text is empty"),
    "no image": ("labels.tsv\tabc", r"labels\.tsv: it .*image"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named_and_skipped(case: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[case]
    write_texts(tmp_path)
    write_image(tmp_path / "more.png", RNG.integers(0, 255, (6, 20)))
    with (tmp_path / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n\n")
    task = read(tmp_path, "transcribe")
    (reason,) = task.skipped
    assert re.search(message, reason)
    assert sum(map(len, task.names.values())) == 8
    assert any(reason in line for line in task.summary)
    named = line.startswith("more.png\t")
    assert any("more.png" in line and "does not name" in line for line in task.summary) != named


def test_images_that_a_table_does_not_name_are_counted(tmp_path: Path) -> None:
    write_image(write_texts(tmp_path) / "sub/more.png", RNG.integers(0, 255, (6, 20)))
    note = "images that labels.tsv does not name, left out: 1, such as sub/more.png"
    assert note in read(tmp_path, "transcribe").summary


def test_a_table_may_name_files_anywhere(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere/a.png", RNG.integers(0, 255, (6, 20)))
    (tmp_path / "lines").mkdir()
    write_image(tmp_path / "lines/b.png", RNG.integers(0, 255, (6, 20)))
    again = (f"{tmp_path / 'elsewhere/a.png'}", "../lines/../elsewhere/a.png", "./b.png")
    names = ("../elsewhere/a.png", f"{tmp_path / 'lines/b.png'}", *again)
    (tmp_path / "lines/labels.tsv").write_text("".join(f"{name}\tab\n" for name in names))
    task = read(tmp_path / "lines", "transcribe", validation=0.0)
    assert task.count("train") == 2 and not any("does not name" in line for line in task.summary)
    assert len(task.skipped) == 3 and all("as well; delete one of them" in each for each in task.skipped)


def test_the_vowels_of_thaana_stay_with_their_consonants() -> None:
    logical, visual = "\u078b\u07a8\u0788\u07ac", "\u0788\u07ac\u078b\u07a8"  # marks of combining class 0
    assert reorder(logical, "rtl") == visual and reorder(visual, "rtl") == logical


def test_texts_with_control_characters_are_skipped_whole(tmp_path: Path) -> None:
    task = read(write_lines(tmp_path, ["a\u2028b", "ab"]), "transcribe", validation=0.0)
    assert (task.names["train"], task.spec.classes) == (["1.png"], ("a", "b"))
    assert task.skipped == ["0.png: its text holds a control character, such as a tab"]
    (tmp_path / "0.gt.txt").write_text("a\tb")
    (tmp_path / "1.gt.txt").write_text("ab\n\f")  # Tesseract ends a page with a form feed
    (tmp_path / "labels.tsv").unlink()
    assert read(tmp_path, "transcribe", validation=0.0).skipped == task.skipped


def test_the_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    """Also where a text has no room, so that processes that share a batch learn what one does."""
    x, texts = np.zeros((4, 8, 24, 1), np.float32), np.array([[1, 2, 0], [1, 1, 1], [2, 0, 0], [1, 2, 1]])
    sizes = np.array([[8, 24], [8, 16], [8, 24], [8, 24]])  # the second text needs five steps of 8
    logits = torch.from_numpy(RNG.normal(size=(4, 3, 3)))
    parts = []
    for part in (slice(0, 2), slice(2, 4)):
        parts.append(ctc_loss(logits[part], Batch(x[part], texts[part], sizes=sizes[part]), 8))
    whole = ctc_loss(logits, Batch(x, texts, sizes=sizes), 8)
    assert torch.stack(parts).mean() == pytest.approx(whole.item())
