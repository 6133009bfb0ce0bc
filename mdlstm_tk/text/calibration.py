"""Choose how the texts of a trained recogniser are read: temperatures, and weights of a language model.

`calibrate` runs once, when training ends, on the validation split. The temperatures calibrate the
confidences (Guo et al. 2017, arXiv:1706.04599): they maximise the likelihood of which characters are right,
on the best path, and in what is read with the language model. The weights minimise the character errors of
a beam search with a character model of the training texts, as in minimum error rate training (Och 2003,
P03-1021): they are chosen among the texts that searches end with, and the search is repeated with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cache
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import as_searched
from mdlstm_tk.data.task import Dataset, Task, TaskSpec
from mdlstm_tk.io import Floats
from mdlstm_tk.kinds.kind import Predict
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import BEAM, Decoding, Scorer, best_path, log_softmax, posteriors, search
from mdlstm_tk.text.measures import right_characters
from mdlstm_tk.text.transcribe_training import line_steps, visual_text

LM_FILE = "lm.arpa.gz"  # of a run: a character model of the training texts
LM_ORDER = 8  # of it: longer n-grams foretell other hands' texts no better
MAX_LINES = 400  # of validation; more of them take longer and change little
TEMPERATURE_LINES = 100
COLDEST, HOTTEST = 0.25, 8.0  # temperatures
LM_WEIGHTS = np.linspace(0, 2, 21)
BONUSES = np.linspace(-1, 4, 26)
SEARCHES = 3
SMOOTHING = 5  # weights along each axis whose errors count: a single sum depends on chance
GENERATED_BATCHES, GENERATED_BATCH = 32, 64  # of a task without a fixed set of training texts
MINIMUM_STEPS = 10  # of a golden section search for it
MARGIN = 1e-6  # of confidences from 0 and from 1, in a likelihood

T = TypeVar("T")
Reading = tuple[Callable[[float], Floats], npt.NDArray[np.bool_]]
"""The alternatives (L, 1 + characters) of the characters of a line at a temperature, see `posteriors`; and
which of the characters are right, (L,)."""


class LineLogits(NamedTuple):
    """The logits (T, 1 + characters) of a line, and its true text, as the image shows it."""

    logits: Floats
    visual: str


def calibrate(predict: Predict, task: Task, folder: Path) -> dict[str, Any]:
    """Write `lm.arpa.gz`, a model of the training texts, into the folder of a run, and return the fields of
    the `Decoding` that suits the validation data. See `Kind.calibrate`."""
    spec, direction = task.spec, task.spec.decoding.get("text_direction")
    lm = CharacterModel.fit([[*as_searched(text, direction)] for text in training_texts(task)], LM_ORDER)
    lm.save(folder / LM_FILE)
    lines = validation_lines(predict, task)
    few = spread(lines, TEMPERATURE_LINES)
    decoding = Decoding(temperature=fit_temperature(few, spec, Decoding()))
    decoding = fit_weights(lines, spec, lm, decoding)
    return asdict(replace(decoding, lm_temperature=fit_temperature(few, spec, decoding, lm)))


def training_texts(task: Task) -> list[str]:
    """The texts of the training split, as images show them; some, if a task generates them."""
    if isinstance(task, Dataset):
        return [visual_text(y, task.spec) for _, y in task.sets["train"]]
    generated = (task.batch(0, step, GENERATED_BATCH) for step in range(GENERATED_BATCHES))
    return [visual_text(y, task.spec) for batch in generated for y in batch.y]


def validation_lines(predict: Predict, task: Task) -> list[LineLogits]:
    """The lines of the validation split, evenly chosen if there are more than `MAX_LINES`."""
    columns = task.spec.decoding.get("columns_per_step")
    indices, lines, index = {*spread(range(task.count("validation")), MAX_LINES)}, list[LineLogits](), 0
    for prediction, batch in map(predict, task.evaluation_batches("validation", 0)):
        counts = line_steps(batch, prediction.shape[1], columns)
        for line, count, y in zip(prediction.numpy(), counts.tolist(), batch.y, strict=True):
            if index in indices:  # a view would keep the whole batch
                lines.append(LineLogits(line[:count].copy(), visual_text(y, task.spec)))
            index += 1
    return lines


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of the items, evenly spaced, starting with the first one."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def fit_temperature(
    lines: Iterable[LineLogits], spec: TaskSpec, decoding: Decoding, lm: CharacterModel | None = None
) -> float:
    """The temperature at which confidences are most likely, given which characters are right; 1 if none is
    read. It is that of the logits, on the best path; or with a language model that of the alternatives to
    what is read with it."""
    scorer = Scorer(lm, spec.classes, decoding, spec.decoding.get("text_direction"))

    def reading(line: LineLogits) -> Reading:
        log_probs = log_softmax(line.logits, decoding.temperature)
        labels = best_path(line.logits) if lm is None else search(log_probs, scorer, BEAM)[0][0]
        is_right = right_characters(visual_text(labels, spec), line.visual)
        if lm is None:
            return lambda t: posteriors(log_softmax(line.logits, t), labels)[1], is_right
        weighed = posteriors(log_probs, labels)[1]
        scorer.weigh(labels, weighed)
        return lambda t: weighed ** (1 / t), is_right

    readings = [*map(reading, lines)]
    if not any(len(is_right) for _, is_right in readings):
        return 1.0

    @cache
    def loss(log_temperature: float) -> float:
        total = 0.0
        for alternatives, is_right in readings:
            shares = 1 / alternatives(exp(log_temperature)).sum(axis=1)
            confidences = np.clip(shares, MARGIN, 1 - MARGIN)
            total -= float(np.log(np.where(is_right, confidences, 1 - confidences)).sum())
        return total

    low, high, ratio = log(COLDEST), log(HOTTEST), (sqrt(5) - 1) / 2
    for _ in range(MINIMUM_STEPS):
        middle = [round(place, 9) for place in (high - ratio * (high - low), low + ratio * (high - low))]
        low, high = (low, middle[1]) if loss(middle[0]) <= loss(middle[1]) else (middle[0], high)
    return round(exp((low + high) / 2), 3)


def fit_weights(
    lines: Sequence[LineLogits], spec: TaskSpec, lm: CharacterModel, decoding: Decoding
) -> Decoding:
    """The weights with the fewest character errors, with those of similar weights, among all texts that
    searches end with; of equal ones those nearest to `decoding`, which the first search uses. `lm` is of
    texts as they are searched. Deterministic."""
    direction = spec.decoding.get("text_direction")
    candidates: list[dict[str, tuple[float, ...]]] = [{} for _ in lines]
    for _ in range(SEARCHES):
        scorer = Scorer(lm, spec.classes, decoding, direction)
        for line, texts in zip(lines, candidates, strict=True):
            log_probs = log_softmax(line.logits, decoding.temperature)
            for labels, log_ctc in zip(*search(log_probs, scorer, BEAM), strict=True):
                visual = visual_text(labels, spec)
                if visual not in texts:
                    edits = Levenshtein.distance(visual, line.visual)
                    log_lm = lm.log_prob([*as_searched(visual, direction)])
                    texts[visual] = log_ctc, log_lm, len(visual), edits
        decoding = _best_weights(candidates, decoding)
    return decoding


def _best_weights(candidates: Sequence[dict[str, tuple[float, ...]]], decoding: Decoding) -> Decoding:
    """The best weights for texts of lines, each with its log P(text | image), log P(text), length and
    character errors."""
    errors = np.zeros((len(LM_WEIGHTS), len(BONUSES)))
    for texts in candidates:
        log_ctc, log_lm, length, edits = np.array([*texts.values()]).T
        scores = log_ctc + LM_WEIGHTS[:, None, None] * log_lm + BONUSES[None, :, None] * length
        errors += edits[scores.argmax(axis=-1)]
    padded = np.pad(errors, SMOOTHING // 2, mode="edge")
    smoothed = sliding_window_view(padded, (SMOOTHING, SMOOTHING)).sum(axis=(2, 3))
    gap = np.hypot(LM_WEIGHTS[:, None] - decoding.lm_weight, (BONUSES[None] - decoding.character_bonus) / 2)
    row, column = np.unravel_index(np.where(smoothed == smoothed.min(), gap, np.inf).argmin(), gap.shape)
    lm_weight, bonus = float(LM_WEIGHTS[row]), float(BONUSES[column])
    return replace(decoding, lm_weight=round(lm_weight, 3), character_bonus=round(bonus, 3))
