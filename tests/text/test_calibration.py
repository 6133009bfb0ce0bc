"""Temperature, weights of the language model, and the model itself, chosen when a training ends."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pages import write_texts
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import as_searched, reorder
from mdlstm_tk.data import Task, TaskSpec
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import CharacterModel, Decoding, DigitStrings
from mdlstm_tk.text.calibration import (
    LM_FILE,
    LineLogits,
    fit_lm_temperature,
    fit_temperature,
    fit_weights,
    training_texts,
)
from mdlstm_tk.text.ctc import read_logits
from mdlstm_tk.text.measures import Line, calibration_error, reliability
from mdlstm_tk.training import Run, configure, load_checkpoint, train

QUICK = {"task": "transcribe", "hidden": 4, "batch_size": 4, "steps": 3, "evaluate_every": 3, "warmup": 0}
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


def dishonesty(lines: list[LineLogits], decoding: Decoding, **options: Any) -> float:
    """The expected calibration error of lines that are read with a decoding."""
    readings = [read_logits(line.logits, CLASSES, decoding, **options) for line in lines]
    pairs = zip(lines, readings, strict=True)
    return calibration_error(reliability([Line("", "", line.visual, read) for line, read in pairs]))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    temperature = fit_temperature(noisy_lines(60, 0, 2.0, scale), SPEC)
    assert temperature == pytest.approx(scale, rel=0.15)
    others = noisy_lines(60, 1, 2.0, scale)
    assert dishonesty(others, Decoding(temperature)) < 0.05
    assert scale == 1.0 or dishonesty(others, Decoding()) > 0.05
    assert fit_temperature([LineLogits(np.eye(len(CLASSES) + 1)[[0, 0]] * 9, "le")], SPEC) == 1.0


def test_weights_lower_the_errors_of_other_lines() -> None:
    lm, lines = CharacterModel.fit(sentences(200, 2)), noisy_lines(40, 3, 1.7)
    decoding = fit_weights(lines, SPEC, lm, Decoding(fit_temperature(lines, SPEC)))

    def errors(*decoding: Decoding, **options: Any) -> int:
        return sum(
            Levenshtein.distance(read_logits(line.logits, CLASSES, *decoding, **options).text, line.visual)
            for line in noisy_lines(40, 4, 1.7)
        )

    assert errors(decoding, beam=16, lm=lm) < 0.5 * errors()
    assert fit_weights(noisy_lines(10, 5, 6.0), SPEC, lm, Decoding()) == Decoding()  # of equal ones


def test_confidences_with_a_language_model_are_calibrated_by_a_temperature_of_their_own() -> None:
    lm = CharacterModel.fit(sentences(200, 2))
    surest = Decoding(lm_weight=2.0, character_bonus=0.0)  # with logits that are twice too large
    temperature = fit_lm_temperature(noisy_lines(60, 3, 1.7, 2.0), SPEC, lm, surest)
    assert temperature == pytest.approx(2.0, rel=0.2)
    decoding = replace(surest, lm_temperature=temperature)
    before, after = (
        dishonesty(noisy_lines(60, 4, 1.7, 2.0), d, beam=16, lm=lm) for d in (surest, decoding)
    )
    assert after < 0.7 * before


def test_runs_hold_a_model_of_their_texts_and_a_decoding(tmp_path: Path) -> None:
    config, run = configure(**QUICK, data=str(write_texts(tmp_path / "lines", 12))), Run(tmp_path / "run")
    seen: list[tuple[Task, dict[str, torch.Tensor]]] = []
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


def test_the_model_of_vowelled_texts_has_learned_them_as_they_are_searched(tmp_path: Path) -> None:
    texts = ["\u05d0\u05b8\u05d1\u05b6", "\u05d1\u05b6\u05d0\u05b8"] * 6
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((12, 8, 40)), y=np.array(texts))
    train(configure(**QUICK, data=str(tmp_path / "a.npz")), tmp_path / "run")
    lm = CharacterModel.load(tmp_path / "run" / LM_FILE)
    searched = as_searched(reorder(texts[0], "rtl"), "rtl")
    assert searched != texts[0] and lm.log_prob(searched) > lm.log_prob(texts[0]) + 1


def test_tasks_that_make_their_texts_have_some_for_a_model() -> None:
    texts = training_texts(DigitStrings(kind_named("transcribe"), 0))
    assert len(texts) > 1000 and {*"".join(texts)} == {*"0123456789"}
