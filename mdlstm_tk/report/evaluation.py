"""Evaluate a network sample by sample: which samples to show, its worst errors, and what it confuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from torch import nn

from mdlstm_tk.data import UNLABELLED, Batch, Kind, Split, Task, TaskSpec, batches
from mdlstm_tk.data.metrics import predicted_texts, target_texts
from mdlstm_tk.report.panels import Panel, sample_panels
from mdlstm_tk.runtime.postprocessing import labels, probabilities
from mdlstm_tk.training import TrainConfig, evaluate

EXAMPLES: dict[Kind, int] = {"grid": 3, "classify": 18, "segment": 3, "transcribe": 8, "density": 6}


class Edit(NamedTuple):
    """One step from the predicted text to the true one.

    Attributes:
        predicted: a character of the predicted text; "" if one has to be inserted.
        truth: the character of the true text at the same place; "" if the predicted one has to be removed.
    """

    predicted: str
    truth: str

    @property
    def is_error(self) -> bool:
        return self.predicted != self.truth


@dataclass(frozen=True)
class Example:
    """A sample and its prediction, as a page shows them.

    Attributes:
        spec: of the task.
        name: name of the sample.
        batch: the sample as a batch of one.
        output: the network's output for that batch.
        error: the sample's error, measured as the task measures it.
    """

    spec: TaskSpec
    name: str
    batch: Batch
    output: npt.NDArray[np.float32]
    error: float

    @property
    def panels(self) -> list[Panel]:
        return sample_panels(self.batch, self.output, self.spec)

    @property
    def prediction(self) -> str:
        """The predicted class or text."""
        if self.spec.kind == "classify":
            return self.spec.classes[int(labels(self.output)[0])]
        return predicted_texts(self.output, self.spec)[0]

    @property
    def truth(self) -> str:
        """The true class or text."""
        if self.spec.kind == "classify":
            return self.spec.classes[int(self.batch.y[0])]
        return target_texts(self.batch, self.spec)[0]

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return float(probabilities(self.output).max())

    @property
    def edits(self) -> list[Edit]:
        """Alignment of the predicted and the true text."""
        return align(self.prediction, self.truth)

    @property
    def severity(self) -> tuple[float, float]:
        """Sort key of the worst samples: the error; of wrong classes, the most confident one first."""
        return self.error, self.confidence if self.spec.kind == "classify" else 0.0


@dataclass
class SplitEvaluation:
    """The evaluation of a network on a split.

    Attributes:
        split: which split.
        count: number of samples.
        errors: errors by name, as `mdlstm_tk.training.evaluate` returns them.
        examples: samples that represent the split; see `example_indices`.
        worst: of the other samples, those with the largest errors, in decreasing order.
        confusion: (K, K) number of samples or positions by true class (rows) and predicted class
            (columns); None if the task has no classes.
        edits: how often each error occurs in the alignment of predicted and true texts.
    """

    split: Split
    count: int
    errors: dict[str, float] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    confusion: npt.NDArray[np.int64] | None = None
    edits: Counter[Edit] = field(default_factory=Counter)


def evaluate_split(network: nn.Module, task: Task, config: TrainConfig) -> SplitEvaluation:
    """Run a network on all samples of the split that influenced training least."""
    split, spec = display_split(task), task.spec
    evaluation = SplitEvaluation(split, task.count(split))
    if spec.kind in ("classify", "segment"):
        evaluation.confusion = np.zeros((len(spec.classes),) * 2, dtype=np.int64)
    limit = EXAMPLES[spec.kind]
    chosen = set(example_indices(task, split, config.seed, limit))
    samples_seen = 0

    def collect(batch: Batch, prediction: npt.NDArray[Any]) -> None:
        nonlocal samples_seen
        for k in range(len(batch.x)):
            sample, output = batch.sample(k), prediction[k : k + 1]
            error, count = next(iter(task.measure(output, sample).values()))
            name = task.sample_name(split, samples_seen)
            example = Example(spec, name, sample, output, error / count if count else 0.0)
            if samples_seen in chosen:
                evaluation.examples.append(example)
            elif example.error > 0:
                evaluation.worst.append(example)
            samples_seen += 1
        evaluation.worst.sort(key=lambda example: example.severity, reverse=True)
        del evaluation.worst[limit:]
        if evaluation.confusion is not None:
            labelled = batch.y != UNLABELLED
            np.add.at(evaluation.confusion, (batch.y[labelled], labels(prediction)[labelled]), 1)
        if spec.kind == "transcribe":
            pairs = zip(predicted_texts(prediction, spec), target_texts(batch, spec), strict=True)
            evaluation.edits.update(edit for pair in pairs for edit in align(*pair) if edit.is_error)

    evaluation.errors = evaluate(network, task, split, config, on_batch=collect)
    return evaluation


def align(predicted: str, truth: str) -> list[Edit]:
    """Align two texts with as few errors (insertions, deletions, substitutions) as possible."""
    return [
        Edit(left, right)
        for op in Levenshtein.opcodes(predicted, truth)
        for left, right in zip_longest(
            predicted[op.src_start : op.src_end], truth[op.dest_start : op.dest_end], fillvalue=""
        )
    ]


def display_split(task: Task) -> Split:
    """Return the split to show predictions on: the one that influenced training least."""
    return "test" if task.count("test") else "validation" if task.count("validation") else "train"


def example_indices(task: Task, split: Split, seed: int, count: int) -> list[int]:
    """Return the indices of up to `count` samples that represent a split; equal for equal arguments.

    Data sets are often sorted by class. Of a classification task every class is therefore shown if
    `count` allows, with its samples spread evenly. Masks are chosen so that together they show as many
    classes as possible, and the others, as the samples of other tasks, are spread over the split.

    Args:
        task: source of the samples.
        split: which samples.
        seed: of samples that are generated.
        count: how many at most.

    Returns:
        Indices in increasing order, in the order in which `evaluate` reads the split.
    """
    total = task.count(split)
    if task.spec.kind not in ("classify", "segment"):
        return _spread(range(total), count)
    targets = (y for batch in batches(task, split, seed, task.evaluation_batch) for y in batch.y)
    if task.spec.kind == "segment":
        return _covering([set(np.unique(mask[mask != UNLABELLED]).tolist()) for mask in targets], count)
    classes = np.array(list(targets))
    names, sizes = np.unique(classes, return_counts=True)
    quotas = np.zeros(len(names), dtype=int)
    if count < len(names):
        quotas[_spread(range(len(names)), count)] = 1
    else:
        for _ in range(min(count, total)):  # one sample at a time goes to the class that has fewest of them
            quotas[np.where(quotas < sizes, quotas, total).argmin()] += 1
    of_class = (
        _spread(np.flatnonzero(classes == name).tolist(), int(q))
        for name, q in zip(names, quotas, strict=True)
    )
    return sorted(index for indices in of_class for index in indices)


def example_batch(task: Task, split: Split, seed: int, index: int) -> Batch:
    """Return sample `index` of a split as a batch of one."""
    size = task.evaluation_batch
    step, position = divmod(index, size)
    shard = slice(0, task.count(split) - step * size)
    return task.batch(seed, step, size, split, shard).sample(position)


def _covering(classes: Sequence[set[int]], count: int) -> list[int]:
    """Choose up to `count` samples that together hold as many classes as possible, the rest spread."""
    chosen: list[int] = []
    missing = set().union(*classes)
    while missing and len(chosen) < count:
        chosen.append(max(range(len(classes)), key=lambda k: len(classes[k] & missing)))
        missing -= classes[chosen[-1]]
    others = [k for k in range(len(classes)) if k not in chosen]
    return sorted(chosen + _spread(others, count - len(chosen)))


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Choose up to `count` of the items, evenly spaced, starting with the first one."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]
