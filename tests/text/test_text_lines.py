"""Lines of text: the table that names them, their characters, and the order in which they are read."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.layouts import save
from helpers.pages import read, write_lines, write_texts

from mdlstm_tk._util.text_order import is_right_to_left, reorder
from mdlstm_tk.data import Batch, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.text.ctc_loss import ctc_loss
from mdlstm_tk.text.encoding import INVISIBLE, fit_texts, normalise
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


RNG = np.random.default_rng(0)


def noise(path: Path) -> None:
    save(path, RNG.integers(0, 255, (6, 20)).astype(np.uint8))


def test_the_characters_of_the_texts_are_the_classes(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path))
    assert (task.spec.classes, task.spec.outputs) == ((" ", "a", "b", "c", "x"), 6)
    lines = (tmp_path / "labels.tsv").read_text().splitlines()
    texts = target_texts(task.batch(0, 0, 8).y, task.spec)
    assert sorted(texts) == sorted(line.split("\t")[1].strip() for line in lines)


def test_texts_of_arrays_are_those_of_a_folder(tmp_path: Path) -> None:
    y = np.array(["ab", "b", "cab"])
    np.savez(tmp_path / "a.npz", x=RNG.random((3, 6, 40)), y=y)
    task = read(tmp_path / "a.npz")
    assert task.spec.classes == ("a", "b", "c")
    assert sorted(target_texts(task.batch(0, 0, 3).y, task.spec)) == sorted(y.tolist())


def test_characters_that_no_training_text_has_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_lines(tmp_path / "train", ["ab", "ba"])
    write_lines(tmp_path / "val", ["ab é"])
    read(tmp_path)
    assert "characters without samples to train on:  é" in caplog.text


def test_right_to_left_texts_are_learned_in_visual_and_returned_in_logical_order(tmp_path: Path) -> None:
    texts = [f"{ALEF}{BET} 12", f"({BET}) {GIMEL}.", f"{GIMEL}{ALEF} ab"]
    task = read(write_lines(tmp_path, texts))
    assert task.spec.decoding["text_direction"] == "rtl"
    batch = task.batch(0, 0, 3)
    assert sorted(target_texts(batch.y, task.spec)) == sorted(texts)
    shown = {"".join(task.spec.classes[k - 1] for k in row if k) for row in batch.y}
    assert shown == {reorder(text, "rtl") for text in texts}
    spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(3, -1)  # a blank after each
    prediction = np.eye(task.spec.outputs, dtype=np.float32)[spaced]
    assert predicted_texts(prediction, task.spec) == target_texts(batch.y, task.spec)


@pytest.mark.parametrize("mark", map(chr, INVISIBLE))
def test_a_character_is_one_class_however_it_was_typed(mark: str) -> None:
    texts = [normalise(text) for text in ("caf\u00e9", f"cafe{mark}\u0301")]
    assert fit_texts(texts, texts).classes == ("a", "c", "f", "é")


def test_texts_are_normalised(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    texts = ["é", decomposed, "e\u200f", "\ufeffe", "\u200e e  "]
    task = read(write_lines(tmp_path, texts))
    assert task.spec.classes == ("e", "é")
    assert sorted(target_texts(task.batch(0, 0, 5).y, task.spec)) == ["e", "e", "e", "é", "é"]


BAD_LINES = {
    "0.png again": "0.png\tother",
    "./0.png": "./0.png\tother",
    "third column": "more.png\tabc\tabc",
    "no tab": "more.png abc",
    "no file": "gone.png\tabc",
    "columns exchanged": "abc" * 100 + "\tmore.png",
    "no text": "more.png\t",
    "marks of direction": "more.png\t\u200f \u200e",
    "a control character": "more.png\ta\u2028b",
    "no image": "labels.tsv\tabc",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_are_named_and_left_out(
    line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_texts(tmp_path)
    noise(tmp_path / "more.png")
    with (tmp_path / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n\n")
    task = read(tmp_path)
    assert "cannot be used, left out: 1 (" in caplog.text
    assert line.split("\t")[0] in caplog.text or "line 9" in caplog.text
    assert sorted(task.names["train"]) == [f"{k}.png" for k in range(8)]


def test_a_table_may_name_files_anywhere(tmp_path: Path) -> None:
    noise(tmp_path / "elsewhere/a.png")
    noise(tmp_path / "lines/b.png")
    names = ("../elsewhere/a.png", f"{tmp_path / 'lines/b.png'}")
    (tmp_path / "lines/labels.tsv").write_text("".join(f"{name}\tab\n" for name in names))
    assert read(tmp_path / "lines").count("train") == 2


def test_cropping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crop"):
        read(write_texts(tmp_path), crop="4x8")


def test_the_vowels_of_thaana_stay_with_their_consonants() -> None:
    logical, visual = "\u078b\u07a8\u0788\u07ac", "\u0788\u07ac\u078b\u07a8"  # marks of combining class 0
    assert reorder(logical, "rtl") == visual and reorder(visual, "rtl") == logical


# The second text needs five steps of 8 columns, and has two.
X, TEXTS = torch.zeros(4, 8, 24, 1), torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 0], [1, 2, 1]])
SIZES = torch.tensor([[8, 24], [8, 16], [8, 24], [8, 24]])


def test_the_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    """Also where a text has no room, so that processes that share a batch learn what one does."""
    logits = torch.from_numpy(RNG.normal(size=(4, 3, 3)))
    parts = [
        ctc_loss(logits[part], Batch(X[part], TEXTS[part], SIZES[part]), 8)  # type: ignore[arg-type]
        for part in (slice(0, 2), slice(2, 4))
    ]
    whole = ctc_loss(logits, Batch(X, TEXTS, SIZES), 8)  # type: ignore[arg-type]
    assert torch.stack(parts).mean() == pytest.approx(whole.item())


def test_texts_that_all_lack_room_are_told(caplog: pytest.LogCaptureFixture) -> None:
    kind, spec = kind_named("transcribe"), TaskSpec("t", "transcribe", 1, 3, (8, 24), ("a", "b"))
    for rows, is_told in ((slice(0, 4), False), ([1, 1], True)):
        batch = Batch(X[rows], TEXTS[rows], SIZES[rows])  # type: ignore[arg-type]
        sums = kind.sums(torch.zeros(len(batch.x), 3, 3), batch, spec)
        kind.measures({name: each.numpy() for name, each in sums.items()}, spec)
        assert ("more steps" in caplog.text) == is_told
