"""The kind `transcribe`: characters, order, loss and errors of texts, what a run chooses and reports, and
`read_lines`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.crafted_models import node
from helpers.pages import read, write_lines, write_texts
from helpers.small_models import classifier, recogniser, write_model
from PIL import Image
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import as_searched, is_right_to_left, reorder
from mdlstm_tk.data import Batch, TaskSpec
from mdlstm_tk.data.task import pad
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.text import Character, CharacterModel, Decoding, DigitStrings, ReadLine, measures, read_lines
from mdlstm_tk.text.calibration import (
    LM_FILE,
    LineLogits,
    fit_lm_temperature,
    fit_temperature,
    fit_weights,
    training_texts,
)
from mdlstm_tk.text.ctc import read_logits
from mdlstm_tk.text.measures import Line
from mdlstm_tk.text.transcribe_training import (
    INVISIBLE,
    ctc_loss,
    fit_texts,
    normalise,
    predicted_texts,
    target_texts,
)
from mdlstm_tk.training import Run, build_network, configure, evaluate, load_checkpoint, train

KIND = kind_named("transcribe")
ALEF, BET, GIMEL = "\u05d0\u05d1\u05d2"
ORDERS = [  # direction, logical order, visual order as the Unicode bidirectional algorithm has it
    ("ltr", "ab (c) 12!", "ab (c) 12!"),
    ("rtl", "ab (c) 12", "ab (c) 12"),
    ("rtl", f"{ALEF}{BET} {GIMEL}", f"{GIMEL} {BET}{ALEF}"),
    ("rtl", f"{ALEF}{BET}.", f".{BET}{ALEF}"),
    ("rtl", f"{ALEF}({BET})", f"({BET}){ALEF}"),
    ("rtl", f"{ALEF} 12 {BET}", f"{BET} 12 {ALEF}"),
    ("rtl", f"{ALEF} 12/05/2023", f"12/05/2023 {ALEF}"),
    ("rtl", f"{ALEF} 3.5% {BET}", f"{BET} 3.5% {ALEF}"),
    ("rtl", f"{ALEF} abc {BET}", f"{BET} abc {ALEF}"),
    ("ltr", f"abc {ALEF}{BET} 12 {GIMEL} de", f"abc {GIMEL} 12 {BET}{ALEF} de"),
    ("rtl", f"{ALEF}\u05b8{BET}\u05b6", f"{BET}\u05b6{ALEF}\u05b8"),
    ("rtl", "\u0633\u0646\u0629 123", "123 \u0629\u0646\u0633"),
    ("rtl", "\u0633 \u0663\u0664", "\u0663\u0664 \u0633"),
    ("rtl", "\u078b\u07a8\u0788\u07ac", "\u0788\u07ac\u078b\u07a8"),
    ("rtl", "", ""),
]


@pytest.mark.parametrize(("direction", "logical", "visual"), ORDERS)
def test_the_visual_order_is_that_of_unicode_and_turns_back(
    direction: Any, logical: str, visual: str
) -> None:
    assert reorder(logical, direction) == visual
    assert reorder(visual, direction) == logical
    assert is_right_to_left(f"{ALEF}{BET} a 123") and not is_right_to_left(f"{ALEF} abc 123")


def test_the_characters_of_the_texts_are_the_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However they were typed, in the order in which images show them, and none without a sample."""
    texts = ["é", unicodedata.normalize("NFD", "é"), "e\u200f", "\ufeffe", "\u200e e  "]
    task = read(write_lines(tmp_path / "folder", texts))
    assert (task.spec.classes, task.spec.outputs) == (("e", "é"), 3)
    assert sorted(target_texts(task.batch(0, 0, 5).y, task.spec)) == ["e", "e", "e", "é", "é"]
    for mark in map(chr, INVISIBLE):
        assert fit_texts(["a"], [normalise(f"cafe{mark}\u0301")]).classes == ("a", "c", "f", "é")
    assert "characters without samples to train on: cfé" in caplog.text
    texts = [f"{ALEF}{BET} 12", f"({BET}) {GIMEL}.", f"{GIMEL}{ALEF} ab"]
    x = np.random.default_rng(0).random((3, 6, 40))
    np.savez(tmp_path / "a.npz", x=x, y=np.array(texts))
    task = read(tmp_path / "a.npz")
    batch = task.batch(0, 0, 3)
    assert task.spec.decoding["text_direction"] == "rtl"
    assert sorted(target_texts(batch.y, task.spec)) == sorted(texts)
    shown = {"".join(task.spec.classes[k - 1] for k in row if k) for row in batch.y}
    assert shown == {reorder(text, "rtl") for text in texts}
    spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(3, -1)  # a blank after each
    prediction = np.eye(task.spec.outputs, dtype=np.float32)[spaced]
    assert predicted_texts(prediction, task.spec) == target_texts(batch.y, task.spec)


# The second text needs five steps of 8 columns, and has two.
X, TEXTS = torch.zeros(4, 8, 24, 1), torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 0], [1, 2, 1]])
SIZES = torch.tensor([[8, 24], [8, 16], [8, 24], [8, 24]])


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_and_does_not_see_padding(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where a text has no room, so that processes that share a batch learn what one does."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 3)))
    slices = slice(0, 2), slice(2, 4)
    parts = [ctc_loss(logits[part], Batch(X[part], TEXTS[part], SIZES[part]), 8) for part in slices]
    whole = ctc_loss(logits, Batch(X, TEXTS, SIZES), 8)
    assert torch.stack(parts).mean() == pytest.approx(whole.item())
    wide = Batch(torch.nn.functional.pad(X, (0, 0, 0, 16)), TEXTS, SIZES)
    assert ctc_loss(torch.nn.functional.pad(logits, (0, 0, 0, 2)), wide, 8) == pytest.approx(whole.item())
    spec = TaskSpec("t", "transcribe", 1, 3, (8, 24), ("a", "b"))
    for rows, is_told in ((slice(0, 4), False), ([1, 1], True)):
        batch = Batch(X[rows], TEXTS[rows], SIZES[rows])
        sums = KIND.sums(torch.zeros(len(batch.x), 3, 3), batch, spec)
        KIND.measures({name: each.numpy() for name, each in sums.items()}, spec)
        assert ("more steps" in caplog.text) == is_told


ALPHABET = tuple(" abcdefghijklmnopqrstuvwxyz")
PAIRS = [
    ("abc", "abc"),
    ("", "abc"),
    (" ab  c ", "ab c"),
    ("a bc", "abc de"),
    ("x", "yy"),
    ("abba", "baab"),
]


def test_errors_of_texts_are_edit_distances_without_blanks_at_the_ends() -> None:
    spec = TaskSpec("words", "transcribe", 1, 28, (1, 20), ALPHABET)
    paths = [[0, *(k for c in text for k in (1 + ALPHABET.index(c), 0))] for text, _ in PAIRS]
    logits = torch.eye(28)[torch.from_numpy(pad(paths, 0, np.int64))]
    y = torch.from_numpy(pad([[1 + ALPHABET.index(c) for c in truth] for _, truth in PAIRS], 0, np.int64))
    sums = KIND.sums(logits, Batch(torch.zeros(len(PAIRS), 1, logits.shape[1], 1), y), spec)
    expected = np.zeros((3, 2), int)
    for text, truth in PAIRS:
        edits = Levenshtein.distance(text.strip(), truth)
        words = Levenshtein.distance(text.split(), truth.split())
        expected += [[edits, len(truth)], [words, len(truth.split())], [edits > 0, 1]]
    assert sums["edits"].tolist() == expected.tolist()
    errors = KIND.measures({name: each.numpy() for name, each in sums.items()}, spec)
    assert errors == {"character_error": 13 / 22, "word_error": 5 / 8, "string_error": 5 / 6}


def line(reading: str, truth: str, group: str = "p", confidence: float = 0.5) -> Line:
    characters = tuple(Character(c, k, k + 1, confidence) for k, c in enumerate(reading))
    return Line("", group, truth, ReadLine(reading, confidence, characters))


def test_intervals_confusions_and_calibration_errors_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    groups, lengths = [f"writer {k // 5}" for k in range(60)], rng.integers(10, 50, 60)
    edits = rng.binomial(lengths, np.repeat(rng.random(12) * 0.4, 5))
    low, high = measures.error_interval(edits.tolist(), lengths.tolist(), groups) or (0, 0)
    rows = (5 * rng.integers(0, 12, (3000, 12))[..., None] + np.arange(5)).reshape(3000, -1)
    shares = edits[rows].sum(1) / lengths[rows].sum(1)
    assert (low, high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.012)
    assert measures.error_interval([1, 2], [5, 0], ["a", "b"]) is None
    lines = [
        line("ab", "abcd", "b"),
        line("abcdef", "abcdef", "b"),
        line("x", "yy", "a"),
        line("z", "z", "c"),
    ]
    assert [*measures.page_errors(lines).items()] == [("a", (1.0, 1)), ("b", (0.2, 2)), ("c", (0.0, 1))]
    pairs = [("le chat", "la chat"), ("un", "un e"), ("aab ", "ab"), ("e", "a")]
    found = measures.confusions([line(*pair) for pair in pairs])
    assert found == {("a", "e"): 2, ("", "a"): 1, (" ", ""): 1, ("e", ""): 1}
    honest = measures.reliability([line(" abcdefgXYZ ", "abcdefghij", confidence=0.7)])  # seven in ten
    assert honest == [(pytest.approx(0.7), 0.7, 10)] and measures.calibration_error(honest) < 1e-12
    boastful = measures.reliability([line("abcdefgXYZ", "abcdefghij", "", 1.0), line("aX", "ab", "", 0.3)])
    assert boastful == [(pytest.approx(0.3), 0.5, 2), (1.0, 0.7, 10)]
    assert measures.calibration_error(boastful) == pytest.approx((0.2 * 2 + 0.3 * 10) / 12)


def test_reports_measure_the_lines_of_a_split_and_escape_their_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a<b>&", *("".join("ab"[n >> bit & 1] for bit in range(1 + n % 5)) for n in range(11))]
    task = read(write_lines(tmp_path, texts), validation=0.6)
    monkeypatch.setattr(type(task), "evaluation_batch", 2)
    network = build_network(
        configure(task="transcribe", data=str(tmp_path), model="md", hidden=4), task.spec
    )
    lines = measures.evaluate_lines(network, task, "validation")
    assert [one.name for one in lines] == [one.group for one in lines] == task.names["validation"]
    assert [one.truth for one in lines] == target_texts((y for _, y in task.sets["validation"]), task.spec)
    error = evaluate(network, task, "validation")["character_error"]
    characters = sum(one.counts.characters for one in lines)
    assert sum(one.counts.character_edits for one in lines) == round(error * characters)
    low, high = measures.describe_lines(lines)["intervals"]["character_error"]
    assert low <= error <= high
    section = measures.text_sections(network, task)
    assert "&lt;" in section and "<b>" not in section and "confusions" in section


WORDS = ("le", "chat", "chien", "et", "la", "tache", "cache", "niche", "latin", "chante")
CLASSES = tuple(sorted({*"".join(WORDS), " "}))
SPEC = TaskSpec("words", "transcribe", 1, 1 + len(CLASSES), (64, 64), CLASSES)


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 4)) for _ in range(count)]


def noisy_lines(count: int, seed: int, signal: float, scale: float = 1.0) -> list[LineLogits]:
    """Lines whose logits, divided by `scale`, are the true posteriors of characters seen through noise: one
    step for each character, and a blank after it."""
    rng, lines = np.random.default_rng(seed), []
    for text in sentences(count, seed):
        logits = np.full((2 * len(text), len(CLASSES) + 1), -40.0)
        logits[1::2, 0] = 40.0
        seen = signal * np.eye(len(CLASSES))[[CLASSES.index(c) for c in text]]
        logits[::2, 1:] = signal * (seen + rng.normal(size=seen.shape))
        lines.append(LineLogits(scale * logits, text))
    return lines


def judged(lines: Sequence[LineLogits], decoding: Decoding, **options: Any) -> tuple[float, int]:
    """The expected calibration error of lines that are read with a decoding, and their character errors."""
    readings = [read_logits(each.logits, CLASSES, decoding, **options) for each in lines]
    pairs = [Line("", "", each.visual, reading) for each, reading in zip(lines, readings, strict=True)]
    error = measures.calibration_error(measures.reliability(pairs))
    return error, sum(pair.counts.character_edits for pair in pairs)


def test_temperatures_undo_a_scale_and_weights_lower_the_errors_of_other_lines() -> None:
    for scale in (0.5, 1.0, 3.0):
        temperature = fit_temperature(noisy_lines(60, 0, 2.0, scale), SPEC)
        assert temperature == pytest.approx(scale, rel=0.15)
        others = noisy_lines(60, 1, 2.0, scale)
        assert judged(others, Decoding(temperature))[0] < 0.05
        assert scale == 1.0 or judged(others, Decoding())[0] > 0.05
    assert fit_temperature([LineLogits(np.eye(len(CLASSES) + 1)[[0, 0]] * 9, "le")], SPEC) == 1.0
    lm, lines, others = (
        CharacterModel.fit(sentences(200, 2)),
        noisy_lines(40, 3, 1.7),
        noisy_lines(40, 4, 1.7),
    )
    decoding = fit_weights(lines, SPEC, lm, Decoding(fit_temperature(lines, SPEC)))
    assert judged(others, decoding, beam=16, lm=lm)[1] < 0.5 * judged(others, Decoding())[1]
    assert fit_weights(noisy_lines(10, 5, 6.0), SPEC, lm, Decoding()) == Decoding()  # of equal ones
    surest = Decoding(lm_weight=2.0, character_bonus=0.0)  # with logits that are twice too large
    temperature = fit_lm_temperature(noisy_lines(60, 3, 1.7, 2.0), SPEC, lm, surest)
    assert temperature == pytest.approx(2.0, rel=0.2)
    honest, others = replace(surest, lm_temperature=temperature), noisy_lines(60, 4, 1.7, 2.0)
    before, after = (judged(others, each, beam=16, lm=lm)[0] for each in (surest, honest))
    assert after < 0.7 * before


QUICK = {"task": "transcribe", "hidden": 4, "batch_size": 4, "steps": 3, "evaluate_every": 3, "warmup": 0}


def test_runs_hold_a_model_of_their_texts_as_they_are_searched_and_a_decoding(tmp_path: Path) -> None:
    config, run = configure(**QUICK, data=str(write_texts(tmp_path / "lines", 12))), Run(tmp_path / "run")
    seen: list[Any] = []
    train(config, run.folder, on_end=lambda _, task, network: seen.append((task, network.state_dict())))
    ((task, weights),) = seen
    assert len(training_texts(task)) == task.count("train")
    assert {*CharacterModel.load(run.folder / LM_FILE).tokens} == {*"".join(training_texts(task))}
    best = load_checkpoint(run.best)
    decoding = Decoding.of(best.spec.decoding)
    assert asdict(decoding).items() <= best.spec.decoding.items() and decoding != Decoding()
    metadata = Session(export_run(run, form="scan").path, device="cpu").metadata
    assert Decoding.of(metadata.more) == decoding and metadata.more["text_direction"] == "ltr"
    # batch normalisation would follow the validation lines in training mode
    assert [name for name, each in best.tensors.items() if not torch.equal(weights[name], each)] == []
    texts = ["\u05d0\u05b8\u05d1\u05b6", "\u05d1\u05b6\u05d0\u05b8"] * 6  # with vowels
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((12, 8, 40)), y=np.array(texts))
    train(configure(**QUICK, data=str(tmp_path / "a.npz")), tmp_path / "rtl")
    lm, searched = (
        CharacterModel.load(tmp_path / "rtl" / LM_FILE),
        as_searched(reorder(texts[0], "rtl"), "rtl"),
    )
    assert searched != texts[0] and lm.log_prob(searched) > lm.log_prob(texts[0]) + 1
    made = training_texts(DigitStrings(KIND, 0))  # by the task itself
    assert len(made) > 1000 and {*"".join(made)} == {*"0123456789"}


def image(*letters: slice, height: int = 4, width: int = 30) -> np.ndarray:
    """A white image with a letter a, which is black, at some columns."""
    pixels = np.full((height, width), 255, np.uint8)
    for letter in letters:
        pixels[:, letter] = 0
    return pixels


def edges(line: ReadLine) -> list[tuple[float, float]]:
    return [(c.left, c.right) for c in line.characters]


def test_texts_have_places_and_confidences_whatever_the_width(tmp_path: Path) -> None:
    session = Session(recogniser(tmp_path / "m.onnx", temperature=0.05))
    first, second = read_lines(session, [image(slice(3, 6), slice(12, 20)), image(width=7)])
    assert (first.text, second.text, second.characters) == ("aa", "", ())
    np.testing.assert_allclose(edges(first), [(3, 6), (12, 20)], atol=0.2)
    assert 0.9 < first.characters[0].confidence <= 1 and 0.9 < second.confidence <= 1
    (flat,) = read_lines(Session(recogniser(tmp_path / "f.onnx", temperature=2)), [image(slice(3, 6))])
    assert flat.text == "a" and flat.characters[0].confidence < first.characters[0].confidence
    images = [image(*(slice(3 * k, 3 * k + 2) for k in range(n)), width=3 * n + 1) for n in (5, 1, 3, 1)]
    assert read_lines(session, [images[0][..., None]]) == read_lines(session, images[:1])
    assert [each.text for each in read_lines(session, images)] == ["aaaaa", "a", "aaa", "a"]
    assert read_lines(session, []) == []
    preprocessing = {"channels": 1, "resize": [4, None]}
    resized = Session(recogniser(tmp_path / "r.onnx", temperature=0.05, preprocessing=preprocessing))
    large = image(slice(20, 40), height=16, width=80)
    (result,) = read_lines(resized, [np.repeat(large[..., None], 3, axis=-1)])  # grey in colour
    np.testing.assert_allclose(edges(result), [(20, 40)], atol=3)


def test_edges_end_with_the_image(tmp_path: Path) -> None:
    """The last step covers columns that the image does not have."""
    nodes = [
        node("Transpose", "x", "planes", perm=[0, 3, 1, 2]),
        node("AveragePool", "planes", "means", kernel_shape=[4, 8], strides=[4, 8], ceil_mode=1),
        node("Squeeze", "means one", "steps"),
        node("Transpose", "steps", "columns", perm=[0, 2, 1]),
        node("MatMul", "columns weights", "m"),
        node("Add", "m start", "y"),
    ]
    constants = {"one": np.int64([2]), "weights": np.float32([[99, 0, 0]]), "start": np.float32([0, 50, 0])}
    fields = {"kind": "transcribe", "classes": ("a", "b"), "window": None, "columns_per_step": 8}
    path = write_model(tmp_path / "m.onnx", nodes, constants, outputs=3, axes=3, **fields)
    pixels = image(slice(32, 35), width=35)
    (found,) = read_lines(Session(path), [pixels])
    Image.fromarray(pixels).save(tmp_path / "line.png")
    (result,) = infer_paths([tmp_path / "line.png"], path)
    for character in (found.characters[0]._asdict(), result.rows[0]["characters"][0]):
        assert character["character"] == "a" and 24 < character["left"] < 33 and character["right"] == 35
    for steps, width, expected in ((51, 203, 4), (10, 73, 8), (30, 30, 1), (48, 200, 200 / 48)):
        assert (
            step_width(steps, width) == step_width(steps, width, 1000) == expected
        )  # of a wrong file, too
    assert step_width(5, 33, 8) == 8  # 7 would fit as well


def test_texts_from_right_to_left_are_in_the_order_of_reading(tmp_path: Path) -> None:
    scores = {"weights": np.float32([[0, 40, -40]]), "start": np.float32([10, -15, 15])}
    path = recogniser(tmp_path / "m.onnx", scores, classes=(ALEF, BET), text_direction="rtl")
    pixels = np.full((4, 30), 0.5, np.float32)
    pixels[:, 5:8], pixels[:, 20:24] = 0, 1  # bet on the left, alef on the right
    session, lm = Session(path), CharacterModel.fit([ALEF + BET])
    for result in (*read_lines(session, [pixels]), *read_lines(session, [pixels], beam=4, lm=lm)):
        assert result.text == ALEF + BET and result.characters[0].left > result.characters[1].left


def test_what_would_be_read_wrong_is_refused_or_warned_of(tmp_path: Path) -> None:
    """A language model must know the space, without which words would run together; other characters are
    named if its file has no <unk>."""
    pixels, session = image(slice(3, 6)), Session(recogniser(tmp_path / "m.onnx"))
    of_floats = Session(recogniser(tmp_path / "f.onnx", unit_range=False))
    assert read_lines(of_floats, [pixels.astype(np.float32)])
    lm, others = CharacterModel.fit(["a)", ")a"], order=1), CharacterModel.fit(["0", "12"])
    cases: list[Any] = [(session, {"beam": 0}, "beam"), (session, {"lm": others}, "lm")]
    cases += [
        (of_floats, {}, r"images\[0\] .*\[0, 1\]"),
        (Session(classifier(tmp_path / "c.onnx")), {}, "classify"),
    ]
    for classes in ("a ", " a"):
        spaced = Session(recogniser(tmp_path / f"{classes}.onnx", classes=tuple(classes)))
        cases.append((spaced, {"lm": lm}, "space"))
    for model, options, message in cases:
        with pytest.raises(InputError, match=message):
            read_lines(model, [pixels], **options)
    assert read_lines(session, [pixels], lm=lm)
    lm.save(tmp_path / "lm.arpa")
    text = (tmp_path / "lm.arpa").read_text().replace("ngram 1=5", "ngram 1=4").splitlines()
    (tmp_path / "lm.arpa").write_text("\n".join(each for each in text if "<unk>" not in each))
    with pytest.warns(UserWarning, match="lm lacks .*: b$"):
        read_lines(session, [pixels], lm=CharacterModel.load(tmp_path / "lm.arpa"))
    brackets = recogniser(tmp_path / "b.onnx", classes=("a", "("), text_direction="rtl")
    assert read_lines(Session(brackets), [pixels], lm=CharacterModel.load(tmp_path / "lm.arpa"))
