"""Temperature, weights of the language model, and the model itself, chosen when a training ends."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import write_texts
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import as_searched, reorder
from mdlstm_tk.data import Task
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import CharacterModel, Decoding, DigitStrings, calibration
from mdlstm_tk.text.calibration import (
    LineLogits,
    fit_lm_temperature,
    fit_temperature,
    fit_weights,
    spread,
    training_texts,
    validation_lines,
)
from mdlstm_tk.text.ctc import Fusion, transcribe_logits
from mdlstm_tk.text.decoding import LM_FILE
from mdlstm_tk.text.encoding import fit_texts, normalise
from mdlstm_tk.text.reading import Line, calibration_error, reliability
from mdlstm_tk.training import Run, build_network, configure, load_checkpoint, make_task, train
from mdlstm_tk.training.evaluation import predictor

QUICK = {"task": "transcribe", "hidden": 4, "batch_size": 4, "steps": 3, "evaluate_every": 3, "warmup": 0}
WORDS = ("le", "chat", "chien", "et", "la", "tache", "cache", "niche", "latin", "chante")
CLASSES = sorted(set("".join(WORDS)) | {" "})


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 4)) for _ in range(count)]


def noisy_lines(texts: list[str], signal: float, scale: float = 1.0, seed: int = 0) -> list[LineLogits]:
    """Lines whose logits, divided by `scale`, are the true posteriors of characters seen through noise: one
    step for each character, and a blank after it."""
    rng = np.random.default_rng(seed)
    lines = []
    for text in texts:
        logits = np.full((2 * len(text), len(CLASSES) + 1), -40.0)
        logits[1::2, 0] = 40.0
        seen = signal * np.eye(len(CLASSES))[[CLASSES.index(c) for c in text]]
        logits[::2, 1:] = signal * (seen + rng.normal(size=seen.shape))
        lines.append(LineLogits(scale * logits, text))
    return lines


def error_of_confidences(lines: list[LineLogits], temperature: float) -> float:
    decoding = Decoding(temperature)
    readings = [transcribe_logits(line.logits, CLASSES, decoding=decoding) for line in lines]
    pairs = zip(lines, readings, strict=True)
    return calibration_error(reliability([Line("", "", line.visual, reading) for line, reading in pairs]))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    lines = noisy_lines(sentences(60, 0), signal=2.0, scale=scale)
    temperature = fit_temperature(lines, CLASSES)
    assert temperature == pytest.approx(scale, rel=0.15)
    others = noisy_lines(sentences(60, 1), signal=2.0, scale=scale, seed=1)
    assert error_of_confidences(others, temperature) < 0.05
    assert scale == 1.0 or error_of_confidences(others, 1.0) > 0.05


def test_weights_lower_the_errors_of_other_lines() -> None:
    lm = CharacterModel.fit(sentences(200, 2))
    lines = noisy_lines(sentences(40, 3), signal=1.7)
    decoding = fit_weights(lines, CLASSES, lm, None, Decoding(fit_temperature(lines, CLASSES)))
    assert decoding.lm_weight > 0

    def errors(**options: object) -> int:
        others = noisy_lines(sentences(40, 4), signal=1.7, seed=4)
        texts = [transcribe_logits(line.logits, CLASSES, **options).text for line in others]  # type: ignore[arg-type]
        return sum(
            Levenshtein.distance(text, line.visual) for text, line in zip(texts, others, strict=True)
        )

    assert errors(decoding=decoding, beam=16, lm=lm) < 0.5 * errors()


def test_confidences_with_a_language_model_are_calibrated_by_a_temperature_of_their_own() -> None:
    lm = CharacterModel.fit(sentences(200, 2))
    surest = Decoding(lm_weight=2.0, character_bonus=0.0)  # with logits that are twice too large
    lines = noisy_lines(sentences(60, 3), signal=1.7, scale=2.0)
    decoding = fit_lm_temperature(lines, CLASSES, lm, None, surest)
    assert decoding.lm_temperature == pytest.approx(2.0, rel=0.2)

    def error(decoding: Decoding) -> float:
        others = noisy_lines(sentences(60, 4), signal=1.7, scale=2.0, seed=4)
        pairs = [
            (line, transcribe_logits(line.logits, CLASSES, decoding=decoding, beam=16, lm=lm))
            for line in others
        ]
        return calibration_error(reliability([Line("", "", line.visual, read) for line, read in pairs]))

    assert error(decoding) < 0.7 * error(surest)


def test_of_equal_weights_the_nearest_are_chosen() -> None:
    lines = noisy_lines(sentences(10, 5), signal=6.0)
    lm = CharacterModel.fit(sentences(50, 6))
    assert fit_weights(lines, CLASSES, lm, None, Decoding()) == Decoding()


def test_lines_without_texts_keep_the_default_temperature() -> None:
    blank = LineLogits(np.eye(len(CLASSES) + 1)[[0, 0]] * 9, "le")
    assert fit_temperature([blank], CLASSES) == 1.0


def test_of_many_lines_only_those_that_are_used_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(**QUICK, data=str(write_texts(tmp_path, 12)), validation=0.6, model="md", resize="")
    task = make_task(config)
    predict = predictor(build_network(config, task.spec))
    expected = spread(validation_lines(predict, task), 3)
    monkeypatch.setattr(calibration, "MAX_LINES", 3)
    lines = validation_lines(predict, task)
    assert [line.visual for line in lines] == [line.visual for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line.logits.base is None  # no view of a batch
        np.testing.assert_array_equal(line.logits, other.logits)


def test_runs_hold_a_model_of_their_texts_and_a_decoding(tmp_path: Path) -> None:
    config, run = configure(**QUICK, data=str(write_texts(tmp_path / "lines", 12))), Run(tmp_path / "run")
    seen: list[tuple[Task, dict[str, torch.Tensor]]] = []
    train(config, run.folder, on_end=lambda _, task, network: seen.append((task, network.state_dict())))
    ((task, weights),) = seen
    lm = CharacterModel.load(run.folder / LM_FILE)
    assert set(lm.vocabulary[3:]) == set("".join(training_texts(task)))
    assert len(training_texts(task)) == task.count("train")
    best = load_checkpoint(run.best)
    decoding = Decoding.among(best.spec.decoding)
    assert asdict(decoding).items() <= best.spec.decoding.items() and decoding != Decoding()
    metadata = Session(export_run(run, form="scan").path, device="cpu").metadata
    assert Decoding.of(metadata) == decoding and metadata.more["text_direction"] == "ltr"
    # batch normalisation would follow the validation lines in training mode
    assert [name for name, each in best.tensors.items() if not torch.equal(weights[name], each)] == []


def test_the_model_of_vowelled_texts_has_learned_them_as_they_are_searched(tmp_path: Path) -> None:
    texts = ["\u05d0\u05b8\u05d1\u05b6", "\u05d1\u05b6\u05d0\u05b8"] * 6
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((12, 8, 40)), y=np.array(texts))
    train(configure(**QUICK, data=str(tmp_path / "a.npz")), tmp_path / "run")
    lm = CharacterModel.load(tmp_path / "run" / LM_FILE)
    searched = as_searched(reorder(texts[0], "rtl"), "rtl")
    assert searched != texts[0] and lm.log_prob(searched) > lm.log_prob(texts[0]) + 1


def test_a_search_scores_texts_as_the_model_that_was_fitted_to_them() -> None:
    """Composed, the two points of a letter would change places, as they come in reverse."""
    text = normalise("\u05d1\u05bc\u05b0\u05e8\u05b5\u05d0\u05e9\u05c1\u05b4\u05d9\u05ea (\u05d0 12)")
    labels = fit_texts([text], [text])
    assert labels.encode is not None
    searched = as_searched(reorder(text, "rtl"), "rtl")
    lm = CharacterModel.fit_sequences([searched] * 5, 8)
    fusion = Fusion(lm, labels.classes, Decoding(lm_weight=1.0, character_bonus=0.0), "rtl")
    state, total = fusion.start, 0.0
    for k in [*labels.encode(text)[::-1], 0]:
        scores, states = fusion.after(state)
        state, total = int(states[k]), total + float(scores[k])
    assert total == pytest.approx(lm.log_prob_of(searched)) and total > -3


def test_tasks_that_make_their_texts_have_some_for_a_model() -> None:
    texts = training_texts(DigitStrings(kind_named("transcribe"), 0))
    assert len(texts) > 1000
    assert set("".join(texts)) == set("0123456789")
