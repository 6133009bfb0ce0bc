"""The kinds `transcribe` and `baselines`: texts and their order, loss, errors, networks, what a run chooses
and reports, and `read_lines`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.pages import draw_page, read, write_lines
from helpers.small_models import classifier, recogniser
from rapidfuzz.distance import Levenshtein
from torch import nn

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk._util.text_order import as_searched, reorder
from mdlstm_tk.data import Batch, TaskSpec
from mdlstm_tk.data.task import collate, pad
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import Character, CharacterModel, Decoding, ReadLine, measures, read_lines
from mdlstm_tk.text.baselines_training import draw_maps
from mdlstm_tk.text.calibration import (
    LM_FILE,
    LineLogits,
    calibrate,
    fit_temperature,
    fit_weights,
    training_texts,
)
from mdlstm_tk.text.ctc import read_logits
from mdlstm_tk.text.digit_strings import DigitStrings
from mdlstm_tk.text.measures import Line
from mdlstm_tk.text.networks import LineRecognizer, normalise_valid, standardise
from mdlstm_tk.text.transcribe_training import INVISIBLE, ctc_loss, normalise, predicted_texts, target_texts
from mdlstm_tk.training import Run, configure, load_checkpoint, make_task, train

KIND = kind_named("transcribe")
ALEF, BET, GIMEL = "\u05d0\u05d1\u05d2"
ORDERS = {  # logical order: visual order as the Unicode bidirectional algorithm has it
    "ab (c) 12": "ab (c) 12",
    f"{ALEF}{BET} {GIMEL}.": f".{GIMEL} {BET}{ALEF}",
    f"{ALEF}({BET})": f"({BET}){ALEF}",
    f"{ALEF} 12 {BET} 12/05/2023": f"12/05/2023 {BET} 12 {ALEF}",
    f"{ALEF} 3.5% {BET}": f"{BET} 3.5% {ALEF}",
    f"{ALEF} abc {BET}": f"{BET} abc {ALEF}",
    f"{ALEF}\u05b8{BET}\u05b6": f"{BET}\u05b6{ALEF}\u05b8",
    "\u0633\u0646\u0629 123": "123 \u0629\u0646\u0633",
    "\u0633 \u0663\u0664": "\u0663\u0664 \u0633",
    "\u078b\u07a8\u0788\u07ac": "\u0788\u07ac\u078b\u07a8",
}


def test_characters_are_learned_as_images_show_them_and_read_in_order(tmp_path: Path) -> None:
    mixed = f"abc {ALEF}{BET} 12 {GIMEL} de", f"abc {GIMEL} 12 {BET}{ALEF} de"
    assert (reorder(mixed[0], "ltr"), reorder(mixed[1], "ltr")) == mixed[::-1]
    x, y = np.random.default_rng(0).random((len(ORDERS), 6, 40)), np.array([*ORDERS])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    task = read(tmp_path / "a.npz")
    batch = task.batch(0, 0, len(ORDERS))
    assert task.spec.decoding["text_direction"] == "rtl"
    assert sorted(target_texts(batch.y, task.spec)) == sorted(ORDERS)
    shown = {"".join(task.spec.classes[k - 1] for k in row if k) for row in batch.y}
    assert shown == {*ORDERS.values()}
    spaced = np.stack([batch.y, np.zeros_like(batch.y)], axis=-1).reshape(len(ORDERS), -1)  # with blanks
    prediction = np.eye(task.spec.outputs, dtype=np.float32)[spaced]
    assert predicted_texts(prediction, task.spec) == target_texts(batch.y, task.spec)
    task = read(write_lines(tmp_path / "folder", ["é", "e\u0301", "e\u200f", "\ufeffe", "\u200e e  "]))
    assert (task.spec.classes, task.spec.outputs) == (("e", "é"), 3)  # however they were typed
    assert {normalise(f" caf{mark}e{mark}\u0301") for mark in map(chr, INVISIBLE)} == {"café"}


# The second text needs five steps of 8 columns, and has two.
X, TEXTS = torch.zeros(4, 8, 24, 1), torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 0], [1, 2, 1]])
SIZES = torch.tensor([[8, 24], [8, 16], [8, 24], [8, 24]])


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_and_does_not_see_padding(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where a text has no room, so that processes that share a batch learn what one does."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 3)))
    halves = slice(0, 2), slice(2, 4)
    parts = [ctc_loss(logits[half], Batch(X[half], TEXTS[half], SIZES[half]), 8) for half in halves]
    whole = ctc_loss(logits, Batch(X, TEXTS, SIZES), 8)
    assert torch.stack(parts).mean() == pytest.approx(whole.item())
    wide = Batch(nn.functional.pad(X, (0, 0, 0, 16)), TEXTS, SIZES)
    assert ctc_loss(nn.functional.pad(logits, (0, 0, 0, 2)), wide, 8) == pytest.approx(whole.item())
    spec = TaskSpec("t", "transcribe", 1, 3, (8, 24), ("a", "b"))
    for rows, is_told in ((slice(0, 4), False), ([1, 1], True)):
        batch = Batch(X[rows], TEXTS[rows], SIZES[rows])
        sums = KIND.sums(torch.zeros(len(batch.x), 3, 3), batch, spec)
        KIND.measures({name: each.numpy() for name, each in sums.items()}, spec)
        assert ("more steps" in caplog.text) == is_told


PAIRS = [("abc", "abc"), ("", "abc"), (" ab  c ", "ab c"), ("a bc", "abc de"), ("x", "yy"), ("abb", "bab")]


def test_errors_of_texts_are_edit_distances_without_blanks_at_the_ends() -> None:
    spec = TaskSpec("words", "transcribe", 1, 28, (1, 20), tuple(" abcdefghijklmnopqrstuvwxyz"))
    codes = [[[1 + spec.classes.index(c) for c in text] for text in pair] for pair in PAIRS]
    paths = [[0, *(j for k in reading for j in (k, 0))] for reading, _ in codes]
    path, y = (torch.from_numpy(pad(each, 0, np.int64)) for each in (paths, [truth for _, truth in codes]))
    sums = KIND.sums(torch.eye(28)[path], Batch(torch.zeros(6, 1, path.shape[1], 1), y), spec)
    errors = KIND.measures({name: each.numpy() for name, each in sums.items()}, spec)
    edits = [Levenshtein.distance(text.strip(), truth) for text, truth in PAIRS]
    words = [Levenshtein.distance(text.split(), truth.split()) for text, truth in PAIRS]
    assert [*errors.values()] == [sum(edits) / 21, sum(words) / 8, sum(map(bool, edits)) / 6]


def line(reading: str, truth: str, group: str = "p", confidence: float = 0.5) -> Line:
    characters = tuple(Character(c, k, k + 1, confidence) for k, c in enumerate(reading))
    return Line(group, truth, ReadLine(reading, confidence, characters))


def test_intervals_confusions_and_calibration_errors_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    groups, lengths = [f"writer {k // 5}" for k in range(60)], rng.integers(10, 50, 60)
    edits = rng.binomial(lengths, np.repeat(rng.random(12) * 0.4, 5))
    low, high = measures.error_interval(edits.tolist(), lengths.tolist(), groups) or (0, 0)
    rows = (5 * rng.integers(0, 12, (3000, 12))[..., None] + np.arange(5)).reshape(3000, -1)
    shares = edits[rows].sum(1) / lengths[rows].sum(1)
    assert (low, high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.012)
    assert measures.error_interval([1, 2], [5, 0], ["a", "b"]) is None
    lines = [line("ab", "abcd", "b"), line("abcdef", "abcdef", "b"), line("x", "yy", "a")]
    assert [*measures.page_errors(lines).items()] == [("a", (1.0, 1)), ("b", (0.2, 2))]
    pairs = [("le chat", "la chat"), ("un", "un e"), ("aab ", "ab"), ("e", "a")]
    found = measures.confusions([line(*pair) for pair in pairs])
    assert found == {("a", "e"): 2, ("", "a"): 1, (" ", ""): 1, ("e", ""): 1}
    boastful = [line(" abcdefgXYZ ", "abcdefghij", "", 1.0), line("aX", "ab", "", 0.3)]
    bins = measures.reliability(boastful)
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
    return error, sum(pair.counts.character_edits for pair in pairs)


def test_temperatures_undo_a_scale_and_weights_lower_the_errors_of_other_lines() -> None:
    for scale in (0.5, 1.0, 3.0):
        temperature = fit_temperature(noisy_lines(60, 0, 2.0, scale), SPEC, Decoding())
        assert temperature == pytest.approx(scale, rel=0.15)
        others = noisy_lines(60, 1, 2.0, scale)
        assert judged(others, Decoding(temperature))[0] < 0.05
        assert scale == 1.0 or judged(others, Decoding())[0] > 0.05
    lm, lines, others = (
        CharacterModel.fit(sentences(200, 2)),
        noisy_lines(40, 3, 1.7),
        noisy_lines(40, 4, 1.7),
    )
    decoding = fit_weights(lines, SPEC, lm, Decoding(fit_temperature(lines, SPEC, Decoding())))
    assert judged(others, decoding, beam=16, lm=lm)[1] < 0.5 * judged(others, Decoding())[1]
    assert fit_weights(noisy_lines(10, 5, 6.0), SPEC, lm, Decoding()) == Decoding()  # of equal ones
    surest = Decoding(lm_weight=2.0, character_bonus=0.0)  # with logits that are twice too large
    temperature = fit_temperature(noisy_lines(60, 3, 1.7, 2.0), SPEC, surest, lm)
    assert temperature == pytest.approx(2.0, rel=0.2)
    honest, others = replace(surest, lm_temperature=temperature), noisy_lines(60, 4, 1.7, 2.0)
    before, after = (judged(others, each, beam=16, lm=lm)[0] for each in (surest, honest))
    assert after < 0.7 * before


def test_runs_hold_a_model_of_their_texts_as_they_are_searched_and_a_decoding(
    reader: Run, tmp_path: Path
) -> None:
    best = load_checkpoint(reader.best)
    task = make_task(best.config)
    assert {*CharacterModel.load(reader.folder / LM_FILE).tokens} == {*"".join(training_texts(task))}
    metadata, decoding = Session(reader.folder.parent / "reader.onnx").metadata, best.spec.decoding
    assert Decoding.of(metadata.more) == Decoding.of(decoding) != Decoding()
    section = KIND.sections(best.network(), task, reader.folder)
    assert "confusions" in section and "<td>b</td>" in section
    made = training_texts(DigitStrings(KIND, 0))  # by the task itself
    assert len(made) > 1000 and {*"".join(made)} == {*"0123456789"}
    x = np.random.default_rng(0).random((2, 8, 40))
    np.savez(tmp_path / "a.npz", x=x, y=np.array([text := "\u05d0\u05b8\u05d1\u05b6"] * 2))  # with vowels
    calibrate(lambda batch: (torch.zeros(len(batch.x), 5, 5), batch), read(tmp_path / "a.npz"), tmp_path)
    lm, searched = CharacterModel.load(tmp_path / LM_FILE), as_searched(reorder(text, "rtl"), "rtl")
    assert searched != text and lm.log_prob([*searched]) > lm.log_prob([*text]) + 1


def test_batches_are_normalised_as_if_there_were_valid_positions_alone() -> None:
    """Outputs, gradients and statistics are those of torch for rows of the valid positions."""
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


def test_lines_are_standardised_also_empty_ones_and_the_shortcut_is_of_the_convolutions_alone() -> None:
    """In float16, which cannot count so many pixels."""
    x, sizes = 100 * torch.rand(1, 300, 300, 1), torch.tensor([[300, 290]])
    half = standardise(x.half(), sizes).float()
    torch.testing.assert_close(half, standardise(x, sizes), rtol=0, atol=1e-2)
    empty = torch.ones(2, 4, 5, 1, requires_grad=True)
    for sizes in (None, torch.tensor([[4, 5], [1, 1]])):
        (gradient,) = torch.autograd.grad(standardise(empty, sizes).square().sum(), empty)
        assert not gradient.any()
    network = LineRecognizer(1, 5, hidden=3)
    network(torch.rand(2, 16, 40, 1))[1].sum().backward()
    trained = {name.partition(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {"convolutions", "shortcut"}


BASELINES = kind_named("baselines")


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four pages of two lines, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("abcd"):
        draw_page(tmp_path / f"pages/{name}.xml", ("abab" * 4, "a" * k + "b" * (12 - k)))
    return tmp_path / "pages"


def test_a_perfect_prediction_of_lines_has_no_error_and_padding_does_not_count(pages: Path) -> None:
    task = read(pages, "baselines", resize="64x*")
    x, lines = task.sets["train"][0]
    samples = [(x, lines), (x[:, :60], (lines[1],))]
    both, *alone = (collate(BASELINES, each) for each in (samples, samples[:1], samples[1:]))
    prediction = 40 * np.stack([draw_maps(each, (32, x.shape[1] // 2)) for _, each in samples]) - 20
    prediction[1, :, 30:] = 20  # of padding

    def loss(prediction: np.ndarray, batch: Batch) -> float:
        return BASELINES.loss(torch.from_numpy(prediction), batch, task.spec).item()

    def measured(prediction: np.ndarray) -> dict[str, float]:
        sums = BASELINES.sums(torch.from_numpy(prediction), both, task.spec)
        return BASELINES.measures({name: each.numpy() for name, each in sums.items()}, task.spec)

    parts = [loss(prediction[:1], alone[0]), loss(prediction[1:, :, :30], alone[1])]
    assert loss(prediction, both) == pytest.approx(sum(parts) / 2, rel=1e-5) and max(parts) < 0.7
    assert measured(prediction) == {"line_error": 0, "missed": 0, "false": 0, "pixel_error": 0}
    wrong = measured(np.full_like(prediction, -20))
    assert wrong["line_error"] == wrong["missed"] == 1 and np.isnan(wrong["false"])
    half = prediction.copy()
    half[1] = -20  # 2 of 3 lines found
    assert [*measured(half).values()][:2] == pytest.approx([1 / 5, 1 / 3])
    panels = BASELINES.draw(alone[0], prediction[:1], task.spec)
    assert [panel.name for panel in panels] == ["page", "2 of 2 lines found, 0 false"]


@pytest.mark.slow
def test_training_and_an_export_that_finds_lines(pages: Path) -> None:
    settings = {"data": "pages", "resize": "64x*", "hidden": 4, "layers": 1, "steps": 2}
    result = train(configure(task="baselines", evaluate_every=1, **settings), "run")
    assert list(result["errors"]) == ["line_error", "missed", "false", "pixel_error"]
    done = mdlstm("export", "run", "--form", "scan", "-o", "baselines.onnx")
    assert done.code == 0 and Path("baselines.onnx").stat().st_size < 2**20, done.err
    done = mdlstm("read", "pages", "-m", "baselines.onnx", "-o", "found")
    assert done.code == 0 and len(list(Path("found").glob("*.xml"))) == 4, done.err


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


def test_texts_from_right_to_left_are_in_the_order_of_reading(tmp_path: Path) -> None:
    scores = {"weights": np.float32([[0, 40, -40]]), "start": np.float32([10, -15, 15])}
    path = recogniser(tmp_path / "m.onnx", scores, classes=(ALEF, BET), text_direction="rtl")
    pixels = np.full((4, 30), 0.5, np.float32)
    pixels[:, 5:8], pixels[:, 20:24] = 0, 1  # bet on the left, alef on the right
    session, lm = Session(path), CharacterModel.fit([ALEF + BET])
    for result in (*read_lines(session, [pixels]), *read_lines(session, [pixels], beam=4, lm=lm)):
        assert result.text == ALEF + BET and result.characters[0].left > result.characters[1].left


def test_what_would_be_read_wrong_is_refused(tmp_path: Path) -> None:
    """A language model must know the space, without which words would run together."""
    pixels, session = image(slice(3, 6)), Session(recogniser(tmp_path / "m.onnx"))
    of_floats = Session(recogniser(tmp_path / "f.onnx", unit_range=False))
    assert read_lines(of_floats, [pixels.astype(np.float32)])
    lm, others = CharacterModel.fit(["a)", ")a"], order=1), CharacterModel.fit(["0", "12"])
    spaced = Session(recogniser(tmp_path / "s.onnx", classes=("a", " ")))
    cases: list[Any] = [(session, {"beam": 0}), (session, {"lm": others}), (spaced, {"lm": lm})]
    for model, options in [*cases, (of_floats, {}), (Session(classifier(tmp_path / "c.onnx")), {})]:
        with pytest.raises(InputError):
            read_lines(model, [pixels], **options)
    assert read_lines(session, [pixels], lm=lm)
    brackets = recogniser(tmp_path / "b.onnx", classes=("a", "("), text_direction="rtl")
    assert read_lines(Session(brackets), [pixels], lm=CharacterModel.fit(["a)"]))
