"""Choose how the texts of a trained recogniser are read: temperature, and weights of a language model.

`calibrate` runs once, when training ends, on the validation split. The temperature calibrates the
confidences (Guo et al. 2017, arXiv:1706.04599): it minimises the negative log-likelihood of which
characters of the best path are right. The weights minimise the character errors of a beam search with
a character model of the training texts: they are chosen among the texts that searches end with, and the
search is repeated with them, since other weights lead to other texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, log, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from mdlstm_tk.data import Task, batches
from mdlstm_tk.data.metrics import target_texts
from mdlstm_tk.data.spec import Floats
from mdlstm_tk.runtime.character_model import CharacterModel
from mdlstm_tk.runtime.ctc import Fusion, best_path, posteriors, scaled_log_probs, search
from mdlstm_tk.runtime.decoding import Decoding
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.runtime.text_order import Direction, reorder
from mdlstm_tk.training.evaluation import predict

if TYPE_CHECKING:
    from mdlstm_tk.training.job import TrainingJob

BEAM = 16
MAX_LINES = 400  # of validation; more of them take longer and change little
TEMPERATURE_LINES = 100
COLDEST, HOTTEST = 0.25, 8.0  # temperatures that are tried
LM_WEIGHTS = np.linspace(0, 2, 21)
BONUSES = np.linspace(-1, 4, 26)
SEARCHES = 2
GENERATED_BATCHES, GENERATED_BATCH = 32, 64  # of a task without a fixed set of training texts
MARGIN = 1e-6  # of confidences from 0 and from 1, in a likelihood


@dataclass(frozen=True)
class Line:
    """A line of the validation split: its logits (T, 1 + characters), and its true text, as the image shows
    it."""

    logits: Floats
    visual: str


def calibrate(job: TrainingJob) -> None:
    """Write `lm.arpa.gz`, a model of the training texts, and `decoding.json` into the folder of a run.

    Args:
        job: a job of kind "transcribe" that has been trained; `job.network` holds the best weights.
    """
    task, run = job.task, job.run
    lm = CharacterModel.fit(training_texts(task, job.config.seed))
    lm.save(run.lm)
    lines = validation_lines(job)
    if not lines:
        return
    decoding = fit_decoding(lines, task.spec.classes, lm, task.spec.text_direction)
    run.write_decoding(decoding)


def training_texts(task: Task, seed: int) -> Sequence[str]:
    """The texts of the training split, in the order of reading; some, if a task generates them."""
    texts: Sequence[str] | None = getattr(task, "texts", None)
    if texts is not None:
        return texts
    generated = (task.batch(seed, step, GENERATED_BATCH) for step in range(GENERATED_BATCHES))
    return [text for batch in generated for text in target_texts(batch, task.spec)]


@torch.no_grad()
def validation_lines(job: TrainingJob) -> list[Line]:
    """The lines of the validation split, evenly chosen if there are more than `MAX_LINES`."""
    task, device = job.task, next(job.network.parameters()).device
    spec, lines = task.spec, []
    job.network.eval()  # training leaves it with dropout, and with statistics that follow its batches
    for batch in batches(task, "validation", job.config.seed, task.evaluation_batch):
        logits = predict(job.network, batch, device, job.config.precision).cpu().numpy()
        width, steps = batch.x.shape[2], logits.shape[1]
        widths = np.full(len(logits), width) if batch.sizes is None else batch.sizes[:, 1]
        for line, valid_width, y in zip(logits, widths.tolist(), batch.y, strict=True):
            visual = "".join(spec.classes[k - 1] for k in y if k > 0)
            lines.append(Line(line[: ceil(valid_width / step_width(steps, width))], visual))
    return evenly(lines, MAX_LINES)


def fit_decoding(
    lines: Sequence[Line], classes: Sequence[str], lm: CharacterModel, direction: Direction | None
) -> Decoding:
    """The decoding that fits lines best; deterministic.

    Args:
        lines: of data that the network was not trained on.
        classes: the characters.
        lm: of texts in the order of reading.
        direction: "rtl" if most texts run from right to left.
    """
    decoding = Decoding(temperature=fit_temperature(evenly(lines, TEMPERATURE_LINES), classes))
    for _ in range(SEARCHES):
        decoding = fit_weights(lines, classes, lm, direction, decoding)
    return decoding


def fit_temperature(lines: Sequence[Line], classes: Sequence[str]) -> float:
    """The temperature that maximises the likelihood of which characters are right."""
    index = {character: k for k, character in enumerate(classes, 1)}
    readings = []
    for line in lines:
        labels = best_path(line.logits)
        is_right = np.ones(len(labels), bool)
        for edit in Levenshtein.editops(labels.tolist(), [index[c] for c in line.visual]):
            if edit.tag != "insert":
                is_right[edit.src_pos] = False
        if len(labels):
            readings.append((line.logits, labels, is_right))
    if not readings:
        return 1.0

    def loss(log_temperature: float) -> float:
        total = 0.0
        for logits, labels, is_right in readings:
            log_probs = scaled_log_probs(logits, classes, exp(log_temperature))
            confidences = np.clip(1 / posteriors(log_probs, labels)[1].sum(axis=1), MARGIN, 1 - MARGIN)
            total -= float(np.log(np.where(is_right, confidences, 1 - confidences)).sum())
        return total

    return round(exp(_minimum(loss, log(COLDEST), log(HOTTEST))), 3)


def fit_weights(
    lines: Sequence[Line],
    classes: Sequence[str],
    lm: CharacterModel,
    direction: Direction | None,
    decoding: Decoding,
) -> Decoding:
    """The weights with the fewest character errors among the texts that searches with `decoding` end with;
    of equal ones those nearest to `decoding`."""
    weights, bonuses = LM_WEIGHTS[:, None, None], BONUSES[None, :, None]
    errors = np.zeros((len(LM_WEIGHTS), len(BONUSES)))
    fusion = Fusion(lm, classes, decoding, direction)
    for line in lines:
        log_probs = scaled_log_probs(line.logits, classes, decoding.temperature)
        texts, log_ctc = search(log_probs, fusion, BEAM)
        visual = ["".join(classes[k - 1] for k in text) for text in texts]
        logical = visual if direction is None else [reorder(text, direction) for text in visual]
        log_lm = np.array([lm.log_prob(text) for text in logical])
        scores = log_ctc + weights * log_lm + bonuses * np.array([len(text) for text in texts])
        edits = np.array([Levenshtein.distance(text, line.visual) for text in visual])
        errors += edits[scores.argmax(axis=-1)]
    gap = np.hypot(LM_WEIGHTS[:, None] - decoding.lm_weight, (BONUSES[None] - decoding.character_bonus) / 2)
    candidates = np.where(errors == errors.min(), gap, np.inf)
    row, column = np.unravel_index(candidates.argmin(), candidates.shape)
    lm_weight, bonus = float(LM_WEIGHTS[row]), float(BONUSES[column])
    return replace(decoding, lm_weight=round(lm_weight, 3), character_bonus=round(bonus, 3))


def evenly(lines: Sequence[Line], count: int) -> list[Line]:
    """At most `count` lines, at equal distances."""
    indices = np.linspace(0, len(lines) - 1, min(count, len(lines))).astype(int)
    return [lines[k] for k in indices]


def _minimum(function: Callable[[float], float], low: float, high: float, steps: int = 10) -> float:
    """The argument of the only minimum of a function, by golden section search."""
    ratio = (sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    f_left, f_right = function(left), function(right)
    for _ in range(steps):
        if f_left <= f_right:
            high, right, f_right = right, left, f_left
            left = high - ratio * (high - low)
            f_left = function(left)
        else:
            low, left, f_left = left, right, f_right
            right = low + ratio * (high - low)
            f_right = function(right)
    return (low + high) / 2
