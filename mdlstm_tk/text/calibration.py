"""Choose how the texts of a trained recogniser are read: temperatures, and weights of a language model.

`calibrate` runs once, when training ends, on the validation split. The temperatures calibrate the
confidences (Guo et al. 2017, arXiv:1706.04599): they minimise the negative log-likelihood of which
characters are right, of the best path, and of what is read with the language model. The weights
minimise the character errors of a beam search with a character model of the training texts, as in minimum
error rate training (Och 2003, P03-1021): they are chosen among the texts that searches end with, and the
search is repeated with them for more texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from rapidfuzz.distance import Levenshtein

from mdlstm_tk._util.text_order import Direction, as_searched
from mdlstm_tk.data.task import Dataset, Task
from mdlstm_tk.io import Floats
from mdlstm_tk.kinds.kind import Predict
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import Fusion, best_path, scaled_log_probs, search
from mdlstm_tk.text.ctc_loss import line_steps
from mdlstm_tk.text.decoding import BEAM, LM_FILE, Decoding
from mdlstm_tk.text.measures import right_characters, visual_text
from mdlstm_tk.text.posteriors import posteriors

T = TypeVar("T")
LM_ORDER = 8  # of the training texts' model: longer n-grams foretell other hands' texts no better
MAX_LINES = 400  # of validation; more of them take longer and change little
TEMPERATURE_LINES = 100
COLDEST, HOTTEST = 0.25, 8.0  # temperatures that are tried
LM_WEIGHTS = np.linspace(0, 2, 21)
BONUSES = np.linspace(-1, 4, 26)
SEARCHES = 3
SMOOTHING = 5  # weights along each axis whose errors count: a single sum depends on chance
GENERATED_BATCHES, GENERATED_BATCH = 32, 64  # of a task without a fixed set of training texts
MINIMUM_STEPS = 10  # of the search for a temperature
MARGIN = 1e-6  # of confidences from 0 and from 1, in a likelihood

_Reading = tuple[Callable[[float], Floats], npt.NDArray[np.bool_]]
"""The alternatives (L, 1 + characters) of the characters of a line at a temperature, see `posteriors`; and
which of the characters are right, (L,)."""


@dataclass(frozen=True)
class LineLogits:
    """A line of the validation split: its logits (T, 1 + characters), and its true text, as the image shows
    it."""

    logits: Floats
    visual: str


def calibrate(predict: Predict, task: Task, folder: Path) -> dict[str, Any]:
    """Write `lm.arpa.gz`, a model of the training texts, into the folder of a run, and return the fields of
    the `Decoding` that suits the validation data.

    Args:
        predict: see `Kind.calibrate`.
        task: of kind "transcribe".
        folder: of the run.
    """
    spec, direction = task.spec, task.spec.decoding.get("text_direction")
    texts = [as_searched(visual, direction) for visual in training_texts(task)]
    lm = CharacterModel.fit_sequences(texts, LM_ORDER)
    lm.save(folder / LM_FILE)
    lines = validation_lines(predict, task)
    decoding = Decoding(temperature=fit_temperature(spread(lines, TEMPERATURE_LINES), spec.classes))
    decoding = fit_weights(lines, spec.classes, lm, direction, decoding)
    lines = spread(lines, TEMPERATURE_LINES)
    return asdict(fit_lm_temperature(lines, spec.classes, lm, direction, decoding))


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


def fit_temperature(lines: Sequence[LineLogits], classes: Sequence[str]) -> float:
    """The temperature that maximises the likelihood of which characters are right."""

    def reading(line: LineLogits) -> _Reading:
        labels = best_path(line.logits)

        def alternatives(temperature: float) -> Floats:
            return posteriors(scaled_log_probs(line.logits, classes, temperature), labels)[1]

        return alternatives, right_characters([classes[k - 1] for k in labels], line.visual)

    return _best_temperature(map(reading, lines))


def fit_lm_temperature(
    lines: Sequence[LineLogits],
    classes: Sequence[str],
    lm: CharacterModel,
    direction: Direction | None,
    decoding: Decoding,
) -> Decoding:
    """`decoding` with the `lm_temperature` that maximises the likelihood of which characters are right in
    texts that are read with it."""
    fusion = Fusion(lm, classes, decoding, direction)

    def reading(line: LineLogits) -> _Reading:
        log_probs = scaled_log_probs(line.logits, classes, decoding.temperature)
        labels = search(log_probs, fusion, BEAM)[0][0]
        weighed = posteriors(log_probs, labels)[1]
        fusion.weigh(labels, weighed)
        is_right = right_characters([classes[k - 1] for k in labels], line.visual)
        return (lambda temperature: weighed ** (1 / temperature)), is_right

    return replace(decoding, lm_temperature=_best_temperature(map(reading, lines)))


def _best_temperature(readings: Iterable[_Reading]) -> float:
    """The temperature that maximises the likelihood of which characters are right; 1 if there are none."""
    kept = [(alternatives, is_right) for alternatives, is_right in readings if len(is_right)]
    if not kept:
        return 1.0

    def loss(log_temperature: float) -> float:
        total = 0.0
        for alternatives, is_right in kept:
            shares = 1 / alternatives(exp(log_temperature)).sum(axis=1)
            confidences = np.clip(shares, MARGIN, 1 - MARGIN)
            total -= float(np.log(np.where(is_right, confidences, 1 - confidences)).sum())
        return total

    return round(exp(_minimum(loss, log(COLDEST), log(HOTTEST))), 3)


def fit_weights(
    lines: Sequence[LineLogits],
    classes: Sequence[str],
    lm: CharacterModel,
    direction: Direction | None,
    decoding: Decoding,
) -> Decoding:
    """The weights with the fewest character errors, with those of similar weights, among all texts that
    searches end with; of equal ones those nearest to `decoding`. Deterministic.

    Args:
        lines: of data that the network was not trained on.
        classes: the characters.
        lm: of texts as they are searched, see `as_searched`.
        direction: "rtl" if most texts run from right to left.
        decoding: its temperature is kept; the first search uses its weights.
    """
    candidates: list[dict[str, tuple[float, ...]]] = [{} for _ in lines]
    for _ in range(SEARCHES):
        fusion = Fusion(lm, classes, decoding, direction)
        for line, texts in zip(lines, candidates, strict=True):
            log_probs = scaled_log_probs(line.logits, classes, decoding.temperature)
            for labels, log_ctc in zip(*search(log_probs, fusion, BEAM), strict=True):
                visual = "".join(classes[k - 1] for k in labels)
                if visual not in texts:
                    edits = Levenshtein.distance(visual, line.visual)
                    log_lm = lm.log_prob_of(as_searched(visual, direction))
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


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """The argument of the only minimum of a function, by golden section search."""
    ratio = (sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    f_left, f_right = function(left), function(right)
    for _ in range(MINIMUM_STEPS):
        if f_left <= f_right:
            high, right, f_right = right, left, f_left
            left = high - ratio * (high - low)
            f_left = function(left)
        else:
            low, left, f_left = left, right, f_right
            right = low + ratio * (high - low)
            f_right = function(right)
    return (low + high) / 2
