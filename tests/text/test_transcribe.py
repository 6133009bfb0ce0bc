"""The kinds `transcribe` and `baselines`: texts and their order, loss, errors, what a run chooses, and
`read_lines`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pages import read, transcription, write_lines
from helpers.small_models import classifier, recogniser
from rapidfuzz.distance import Levenshtein
from torch import nn

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk._util.text_order import as_searched, reorder
from mdlstm_tk.data import Batch, TaskSpec
from mdlstm_tk.data.task import collate
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import CharacterModel, Decoding, calibration, measures, read_lines
from mdlstm_tk.text.baselines_training import draw_maps
from mdlstm_tk.text.calibration import LM_FILE, LineLogits, fit_temperature, fit_weights, training_texts
from mdlstm_tk.text.ctc import read_logits
from mdlstm_tk.text.digit_strings import DigitStrings
from mdlstm_tk.text.measures import Line
from mdlstm_tk.text.networks import normalise_valid, standardise
from mdlstm_tk.text.transcribe_training import count_edits, predicted_texts, target_texts

KIND, BASELINES = kind_named("transcribe"), kind_named("baselines")
NOTHING: Any = None  # a spec that does not matter
ALEF, BET, GIMEL = "\u05d0\u05d1\u05d2"
ORDERS = {  # logical order: visual order as the Unicode bidirectional algorithm has it
    "ab (c) 12": "ab (c) 12",
    f"{ALEF}({BET}) {GIMEL}.": f".{GIMEL} ({BET}){ALEF}",
    f"{ALEF} 12 {BET} 12/05/2023": f"12/05/2023 {BET} 12 {ALEF}",
    f"{ALEF} 3.5% {BET}": f"{BET} 3.5% {ALEF}",
    f"{ALEF} abc {BET}": f"{BET} abc {ALEF}",
    f"{ALEF}\u05b8{BET}\u05b6": f"{BET}\u05b6{ALEF}\u05b8",
    "\u0633\u0646\u0629 123": "123 \u0629\u0646\u0633",
    "\u0633 \u0663\u0664 \u078b\u07a8\u0788\u07ac": "\u0788\u07ac\u078b\u07a8 \u0663\u0664 \u0633",
}


def measured(kind: Any, prediction: Any, batch: Batch, spec: TaskSpec) -> list[float]:
    sums = kind.sums(torch.as_tensor(prediction), batch, spec)
    return [*kind.measures({name: each.numpy() for name, each in sums.items()}, spec).values()]


def test_characters_are_learned_as_images_show_them_and_read_in_order(tmp_path: Path) -> None:
    mixed = f"abc {ALEF}{BET} 12 {GIMEL} de", f"abc {GIMEL} 12 {BET}{ALEF} de"
    assert (reorder(mixed[0], "ltr"), reorder(mixed[1], "ltr")) == mixed[::-1]
    x, count = np.random.default_rng(0).random((len(ORDERS), 6, 40)), len(ORDERS)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([*ORDERS]))
    task = read(tmp_path / "a.npz")
    batch, spec = task.batch(0, 0, count), task.spec
    shown = {"".join(spec.classes[k - 1] for k in row if k) for row in batch.y}
    assert spec.decoding["text_direction"] == "rtl" and shown == {*ORDERS.values()}
    spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(count, -1)  # with blanks
    prediction = np.eye(spec.outputs, dtype=np.float32)[spaced]
    assert predicted_texts(prediction, spec) == (texts := target_texts(batch.y, spec))
    assert sorted(texts) == sorted(ORDERS)
    spec = read(write_lines(tmp_path / "folder", ["é", "e\u0301", "e\u200f", "\ufeffe", "\u200e e  "])).spec
    assert (spec.classes, spec.outputs) == (("e", "é"), 3)  # however they were typed


# The second text needs five steps of 8 columns, and has two.
X, Y = torch.zeros(4, 8, 24, 1), torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 0], [1, 2, 1]])
SIZES = torch.tensor([[8, 24], [8, 16], [8, 24], [8, 24]])


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_and_does_not_see_padding(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where a text has no room, so that processes that share a batch learn what one does."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 3)))
    spec = TaskSpec("t", "transcribe", 1, 3, (8, 24), ("a", "b"), decoding={"columns_per_step": 8})
    cases = [(logits[part], Batch(X[part], Y[part], SIZES[part])) for part in (slice(2), slice(2, 4))]
    wide, wider = nn.functional.pad(X, (0, 0, 0, 16)), nn.functional.pad(logits, (0, 0, 0, 2))
    cases += [(logits, Batch(X, Y, SIZES)), (wider, Batch(wide, Y, SIZES))]
    first, second, whole, padded = (KIND.loss(*case, spec).item() for case in cases)
    assert (first + second) / 2 == pytest.approx(whole) == padded
    for rows, is_told in ((slice(4), False), ([1, 1], True)):
        measured(KIND, logits[rows], Batch(X[rows], Y[rows], SIZES[rows]), spec)
        assert ("more steps" in caplog.text) == is_told


PAIRS = [("abc", "abc"), ("", "abc"), (" ab  c ", "ab c"), ("a bc", "abc de"), ("x", "yy"), ("abb", "bab")]


def line(reading: str, truth: str, confidence: float = 0.5) -> Line:
    return Line("", truth, transcription(reading, confidence))


def test_errors_intervals_confusions_and_calibration_are_those_of_their_definitions() -> None:
    """Errors are edit distances without blanks at the ends."""
    spec = TaskSpec("words", "transcribe", 1, 28, (1, 20), tuple(" abcdefghijklmnopqrstuvwxyz"))
    y = torch.zeros(2, 6, 15, dtype=torch.long)
    for k, pair in enumerate(PAIRS):
        for side, (text, step) in enumerate(zip(pair, (2, 1), strict=True)):  # with blanks between
            codes = [1 + spec.classes.index(c) for c in text]
            y[side, k, step - 1 : step * len(text) : step] = torch.tensor(codes)
    edits = [Levenshtein.distance(text.strip(), truth) for text, truth in PAIRS]
    words = [Levenshtein.distance(text.split(), truth.split()) for text, truth in PAIRS]
    errors = measured(KIND, torch.eye(28)[y[0]], Batch(torch.zeros(6, 1, 15, 1), y[1]), spec)
    assert errors == [sum(edits) / 21, sum(words) / 8, sum(map(bool, edits)) / 6]
    rng = np.random.default_rng(1)
    groups, lengths = [f"writer {k // 5}" for k in range(60)], rng.integers(10, 50, 60)
    edits = rng.binomial(lengths, np.repeat(rng.random(12) * 0.4, 5)).tolist()
    rows = (5 * rng.integers(0, 12, (3000, 12))[..., None] + np.arange(5)).reshape(3000, -1)
    expected = np.quantile(np.array(edits)[rows].sum(1) / lengths[rows].sum(1), [0.025, 0.975])
    assert measures.error_interval(edits, lengths.tolist(), groups) == pytest.approx(expected, abs=0.012)
    found = measures.confusions(map(line, ("le chat", "un", "aab ", "e"), ("la chat", "un e", "ab", "a")))
    assert found == {("a", "e"): 2, ("", "a"): 1, (" ", ""): 1, ("e", ""): 1}
    bins = measures.reliability([line(" abcdefgXYZ ", "abcdefghij", 1.0), line("aX", "ab", 0.3)])
    assert bins == [(pytest.approx(0.3), 0.5, 2), (1.0, 0.7, 10)]
    assert measures.calibration_error(bins) == pytest.approx((0.2 * 2 + 0.3 * 10) / 12)


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
    pairs = [Line("", each.visual, reading) for each, reading in zip(lines, readings, strict=True)]
    error = measures.calibration_error(measures.reliability(pairs))
    return error, sum(count_edits(pair.read.text, pair.truth).character_edits for pair in pairs)


def test_temperatures_undo_a_scale_and_weights_lower_the_errors_of_other_lines() -> None:
    for scale in (0.5, 1.0, 3.0):
        temperature = fit_temperature(noisy_lines(30, 0, 2.0, scale), SPEC, Decoding())
        assert temperature == pytest.approx(scale, rel=0.15)
        assert judged(noisy_lines(30, 1, 2.0, scale), Decoding(temperature))[0] < 0.05
    lm, lines = CharacterModel.fit(sentences(200, 2)), noisy_lines(40, 3, 1.7)
    decoding = fit_weights(lines, SPEC, lm, Decoding(fit_temperature(lines, SPEC, Decoding())))
    others = noisy_lines(40, 4, 1.7)
    assert judged(others, decoding, beam=16, lm=lm)[1] < 0.5 * judged(others, Decoding())[1]
    assert fit_weights(noisy_lines(10, 5, 6.0), SPEC, lm, Decoding()) == Decoding()  # of equal ones
    surest = Decoding(lm_weight=2.0, character_bonus=0.0)  # with logits that are twice too large
    temperature = fit_temperature(noisy_lines(60, 3, 1.7, 2.0), SPEC, surest, lm)
    assert temperature == pytest.approx(2.0, rel=0.2)
    honest, others = replace(surest, lm_temperature=temperature), noisy_lines(60, 4, 1.7, 2.0)
    before, after = (judged(others, each, beam=16, lm=lm)[0] for each in (surest, honest))
    assert after < 0.7 * before


def test_a_language_model_is_fitted_to_the_texts_of_a_task_as_they_are_searched(tmp_path: Path) -> None:
    made = training_texts(DigitStrings(KIND, 0))  # by the task itself
    assert len(made) > 1000 and {*"".join(made)} == {*"0123456789"}
    x = np.random.default_rng(0).random((2, 8, 40))
    np.savez(tmp_path / "a.npz", x=x, y=np.array([text := "\u05d0\u05b8\u05d1\u05b6"] * 2))  # with vowels
    task = read(tmp_path / "a.npz")
    calibration.calibrate(lambda batch: (torch.zeros(len(batch.x), 5, 5), batch), task, tmp_path)
    lm, searched = CharacterModel.load(tmp_path / LM_FILE), as_searched(reorder(text, "rtl"), "rtl")
    assert searched != text and lm.log_prob([*searched]) > lm.log_prob([*text]) + 1


def test_batches_are_normalised_as_if_there_were_valid_positions_alone() -> None:
    """Outputs, gradients and statistics are those of torch for rows of the valid positions; and lines are
    standardised in float16, and have a gradient if they are empty."""
    norms: list[Any] = [kind(2, momentum=0.1).double() for kind in (nn.BatchNorm2d, nn.BatchNorm1d)]
    x, factors = (torch.randn(3, 2, 6, 9, dtype=torch.float64) for _ in range(2))
    valid = valid_mask((6, 9), sizes := torch.tensor([[6, 9], [3, 9], [6, 1]]))
    for norm in norms:
        norm.weight.data, norm.bias.data = torch.tensor([[0.7, -1.3], [0.2, 0.4]], dtype=torch.float64)
    padded, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = normalise_valid(norms[0], padded * 1, sizes).relu()
    expected = norms[1](plain.movedim(1, -1)[valid]).relu()
    torch.testing.assert_close(y.movedim(1, -1)[valid], expected)
    assert not y.movedim(1, -1)[~valid].any()
    (y * factors).sum().backward()
    (expected * factors.movedim(1, -1)[valid]).sum().backward()
    torch.testing.assert_close(padded.grad, plain.grad)
    own, torchs = ([*(p.grad for p in norm.parameters()), *norm.buffers()] for norm in norms)
    torch.testing.assert_close(own, torchs)
    x, sizes = 100 * torch.rand(1, 300, 300, 1), torch.tensor([[300, 290]])  # more than float16 counts
    assert (standardise(x.half(), sizes) - standardise(x, sizes)).abs().max() < 1e-2
    empty = torch.ones(2, 4, 5, 1, requires_grad=True)
    for sizes in (None, torch.tensor([[4, 5], [1, 1]])):
        (gradient,) = torch.autograd.grad(standardise(empty, sizes).square().sum(), empty)
        assert not gradient.any()


def test_a_perfect_prediction_of_lines_has_no_error_and_padding_does_not_count() -> None:
    x, lines = np.zeros((64, 96, 1), np.float32), [np.float32([[5, y], [70, y]]) for y in (13, 33)]
    samples = [(x, lines), (x[:, :60], [np.float32([[5, 33], [50, 33]])])]
    both, *alone = (collate(BASELINES, each) for each in (samples, samples[:1], samples[1:]))
    prediction = 40 * np.stack([draw_maps(each, (32, 48)) for _, each in samples]) - 20
    prediction[1, :, 30:] = 20  # of padding
    batches = [(prediction, both), (prediction[:1], alone[0]), (prediction[1:, :, :30], alone[1])]
    whole, *parts = (BASELINES.loss(torch.from_numpy(y), batch, NOTHING).item() for y, batch in batches)
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-5) and max(parts) < 0.7
    assert measured(BASELINES, prediction, both, NOTHING) == [0, 0, 0, 0]
    half = prediction.copy()
    half[1] = -20  # 2 of 3 lines found
    assert measured(BASELINES, half, both, NOTHING)[:3] == pytest.approx([1 / 5, 1 / 3, 0])
    nothing = measured(BASELINES, np.full_like(half, -20), both, NOTHING)
    assert nothing[:2] == [1, 1] and np.isnan(nothing[2])
    panels = BASELINES.draw(alone[0], prediction[:1], NOTHING)
    assert [panel.name for panel in panels] == ["page", "2 of 2 lines found, 0 false"]


def test_lines_are_read_whatever_their_width_and_wrong_readings_are_refused(tmp_path: Path) -> None:
    """A language model must know the space, without which words would run together."""
    session = Session(recogniser(tmp_path / "m.onnx", temperature=0.05))
    images = [np.tile(np.uint8([0, 0, 255]), (4, n)) for n in (5, 3, 3, 1)]
    images[1][:] = 255
    found = read_lines(session, images)
    assert [each.text for each in found] == ["aaaaa", "", "aaa", "a"] and read_lines(session, []) == []
    np.testing.assert_allclose([c[1:3] for c in found[2].characters], [(0, 2), (3, 5), (6, 8)], atol=0.2)
    assert 0.9 < found[0].characters[0].confidence <= 1 and 0.9 < found[1].confidence <= 1
    resize = {"channels": 1, "resize": [4, None]}
    resized = Session(recogniser(tmp_path / "r.onnx", temperature=0.05, preprocessing=resize))
    large = np.repeat(np.uint8([255, 0, 255, 255]), 20)[None, :, None].repeat(16, axis=0)
    (grey,), (colour,) = (read_lines(resized, [np.repeat(large, k, axis=-1)]) for k in (1, 3))
    assert grey == colour and grey.characters[0][1:3] == pytest.approx((20, 40), abs=3)
    of_floats = Session(recogniser(tmp_path / "f.onnx", unit_range=False))
    assert read_lines(of_floats, [images[0].astype(np.float32)])
    lm, others = CharacterModel.fit(["a)", ")a"], order=1), CharacterModel.fit(["0", "12"])
    spaced = Session(recogniser(tmp_path / "s.onnx", classes=("a", " ")))
    cases: list[Any] = [(session, {"beam": 0}), (session, {"lm": others}), (spaced, {"lm": lm})]
    for model, options in [*cases, (of_floats, {}), (Session(classifier(tmp_path / "c.onnx")), {})]:
        with pytest.raises(InputError):
            read_lines(model, images, **options)
    brackets = recogniser(tmp_path / "b.onnx", classes=("a", "("), text_direction="rtl")
    assert read_lines(session, images, lm=lm) and read_lines(Session(brackets), images, lm=lm)
