"""Lines of text: their characters, the order in which they are read, their loss and their errors."""

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
from mdlstm_tk.text.ctc import Character, ReadLine
from mdlstm_tk.text.measures import (
    Line,
    calibration_error,
    confusions,
    describe_lines,
    error_interval,
    evaluate_lines,
    page_errors,
    reliability,
    text_sections,
)
from mdlstm_tk.text.transcribe_training import (
    INVISIBLE,
    ctc_loss,
    fit_texts,
    normalise,
    predicted_texts,
    target_texts,
)
from mdlstm_tk.training import build_network, configure, evaluate

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
    "vowels of Thaana": ("rtl", "\u078b\u07a8\u0788\u07ac", "\u0788\u07ac\u078b\u07a8"),
    "empty": ("rtl", "", ""),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_visual_order_is_that_of_unicode_and_turns_back(case: str) -> None:
    direction, logical, visual = ORDERS[case]
    assert reorder(logical, direction) == visual  # type: ignore[arg-type]
    assert reorder(visual, direction) == logical  # type: ignore[arg-type]
    assert is_right_to_left(f"{ALEF}{BET} a 123") and not is_right_to_left(f"{ALEF} abc 123")


def test_the_characters_of_the_texts_are_the_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However they were typed; a folder, and arrays. Those that no training text has are named."""
    texts = ["é", unicodedata.normalize("NFD", "é"), "e\u200f", "\ufeffe", "\u200e e  "]
    task = read(write_lines(tmp_path / "folder", texts))
    assert (task.spec.classes, task.spec.outputs) == (("e", "é"), 3)
    assert sorted(target_texts(task.batch(0, 0, 5).y, task.spec)) == ["e", "e", "e", "é", "é"]
    for mark in map(chr, INVISIBLE):
        assert fit_texts(["a"], [normalise(f"cafe{mark}\u0301")]).classes == ("a", "c", "f", "é")
    x = np.random.default_rng(0).random((3, 6, 40))
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["ab", "b", "cab"]))
    assert read(tmp_path / "a.npz").spec.classes == ("a", "b", "c")
    assert "characters without samples to train on: cfé" in caplog.text


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


BAD_LINES = [
    *(
        "0.png\tother",
        "./0.png\tother",
        "more.png\tabc\tabc",
        "more.png abc",
        "gone.png\tabc",
        "more.png\t",
    ),
    *("abc" * 100 + "\tmore.png", "more.png\t\u200f \u200e", "more.png\ta\u2028b", "labels.tsv\tabc"),
]


def test_bad_lines_of_a_table_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_texts(tmp_path)
    save(tmp_path / "more.png", np.zeros((6, 20), np.uint8))
    with (tmp_path / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write("\n\n".join(BAD_LINES))
    assert sorted(read(tmp_path).names["train"]) == [f"{k}.png" for k in range(8)]
    assert f"cannot be used, left out: {len(BAD_LINES)} (" in caplog.text
    with pytest.raises(InputError, match="crop"):
        read(tmp_path, crop="4x8")


# The second text needs five steps of 8 columns, and has two.
X, TEXTS = torch.zeros(4, 8, 24, 1), torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 0], [1, 2, 1]])
SIZES = torch.tensor([[8, 24], [8, 16], [8, 24], [8, 24]])


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_and_does_not_see_padding() -> None:
    """Also where a text has no room, so that processes that share a batch learn what one does."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 3)))
    slices = slice(0, 2), slice(2, 4)
    parts = [ctc_loss(logits[part], Batch(X[part], TEXTS[part], SIZES[part]), 8) for part in slices]
    whole = ctc_loss(logits, Batch(X, TEXTS, SIZES), 8)
    assert torch.stack(parts).mean() == pytest.approx(whole.item())
    wide, steps = (
        torch.nn.functional.pad(each, pad) for each, pad in ((X, (0, 0, 0, 16)), (logits, (0, 0, 0, 2)))
    )
    assert ctc_loss(steps, Batch(wide, TEXTS, SIZES), 8) == pytest.approx(whole.item())


def test_texts_that_all_lack_room_are_told(caplog: pytest.LogCaptureFixture) -> None:
    kind, spec = kind_named("transcribe"), TaskSpec("t", "transcribe", 1, 3, (8, 24), ("a", "b"))
    for rows, is_told in ((slice(0, 4), False), ([1, 1], True)):
        batch = Batch(X[rows], TEXTS[rows], SIZES[rows])
        sums = kind.sums(torch.zeros(len(batch.x), 3, 3), batch, spec)
        kind.measures({name: each.numpy() for name, each in sums.items()}, spec)
        assert ("more steps" in caplog.text) == is_told


@pytest.mark.parametrize(
    ("predicted", "target", "edits", "word_edits", "words"),
    [
        ("abc", "abc", 0, 0, 1),
        ("", "abc", 3, 1, 1),
        ("abc", "", 3, 1, 0),
        (" ab  c ", "ab c", 1, 0, 2),  # blanks at the ends do not count, and words do not see their number
        ("a bc", "abc de", 4, 2, 2),
    ],
)
def test_errors_of_texts_are_edit_distances(
    predicted: str, target: str, edits: int, word_edits: int, words: int
) -> None:
    alphabet = tuple(" abcdefghijklmnopqrstuvwxyz")
    spec = TaskSpec("words", "transcribe", 1, 28, (1, 20), alphabet)
    path = [0, *(k for c in predicted for k in (1 + alphabet.index(c), 0))]  # a blank after each character
    y = torch.tensor([[*(1 + alphabet.index(c) for c in target), 0]])
    sums = kind_named("transcribe").sums(
        torch.eye(28)[path][None], Batch(torch.zeros(1, 1, len(path), 1), y), spec
    )
    assert sums["edits"].tolist() == [[edits, len(target)], [word_edits, words], [edits > 0, 1]]


def line(reading: str, truth: str, group: str = "p", confidence: float = 0.5) -> Line:
    characters = tuple(Character(c, k, k + 1, confidence) for k, c in enumerate(reading))
    return Line("", group, truth, ReadLine(reading, confidence, characters))


def test_an_interval_is_that_of_a_plain_bootstrap_over_groups() -> None:
    rng = np.random.default_rng(1)
    groups = [f"writer {k // 5}" for k in range(60)]
    lengths = rng.integers(10, 50, 60)
    edits = rng.binomial(lengths, np.repeat(rng.random(12) * 0.4, 5))
    low, high = error_interval(edits.tolist(), lengths.tolist(), groups) or (0, 0)
    draws = []
    for chosen in rng.integers(0, 12, (3000, 12)):
        rows = (5 * chosen[:, None] + np.arange(5)).ravel()
        draws.append(edits[rows].sum() / lengths[rows].sum())
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.012)
    assert error_interval([1, 2], [5, 0], ["a", "b"]) is None
    assert error_interval([1, 1], [5, 5], ["a", "b"]) == (0.2, 0.2)


def test_errors_by_page_and_by_character() -> None:
    lines = [
        line("ab", "abcd", "b"),
        line("abcdef", "abcdef", "b"),
        line("x", "yy", "a"),
        line("z", "z", "c"),
    ]
    assert [*page_errors(lines).items()] == [("a", (1.0, 1)), ("b", (0.2, 2)), ("c", (0.0, 1))]
    counts = confusions(
        [line("le chat", "la chat"), line("un", "un e"), line("aab ", "ab"), line("e", "a")]
    )
    assert counts == {("a", "e"): 2, ("", "a"): 1, (" ", ""): 1, ("e", ""): 1}


def test_honest_confidences_have_no_calibration_error() -> None:
    """Of characters with confidence 0.7, seven in ten are right; blanks at the ends do not count."""
    honest = [line(" abcdefgXYZ ", "abcdefghij", confidence=0.7)]
    assert reliability(honest) == [(pytest.approx(0.7), 0.7, 10)]
    assert calibration_error(reliability(honest)) == pytest.approx(0, abs=1e-12)
    boastful = [line("abcdefgXYZ", "abcdefghij", confidence=1.0), line("aX", "ab", confidence=0.3)]
    assert reliability(boastful) == [(pytest.approx(0.3), 0.5, 2), (1.0, 0.7, 10)]
    assert calibration_error(reliability(boastful)) == pytest.approx((0.2 * 2 + 0.3 * 10) / 12)


def test_reports_measure_the_lines_of_a_split_and_escape_their_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a<b>&", *("".join("ab"[n >> bit & 1] for bit in range(1 + n % 5)) for n in range(11))]
    task = read(write_lines(tmp_path, texts), validation=0.6)
    monkeypatch.setattr(type(task), "evaluation_batch", 2)
    config = configure(task="transcribe", data=str(tmp_path), model="md", hidden=4)
    network = build_network(config, task.spec)
    lines = evaluate_lines(network, task, "validation")
    assert [one.name for one in lines] == [one.group for one in lines] == task.names["validation"]
    assert [one.truth for one in lines] == target_texts((y for _, y in task.sets["validation"]), task.spec)
    edits = sum(one.counts.character_edits for one in lines)
    errors = evaluate(network, task, "validation")
    assert edits == round(errors["character_error"] * sum(one.counts.characters for one in lines))
    low, high = describe_lines(lines)["intervals"]["character_error"]
    assert low <= errors["character_error"] <= high
    section = text_sections(network, task)
    assert "&lt;" in section and "<b>" not in section and "confusions" in section
