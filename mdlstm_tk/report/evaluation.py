"""Evaluate a network sample by sample: which samples to show, its worst errors, and what it confuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk.data import UNLABELLED, Batch, DatasetTask, Split, Task, TaskSpec, batches
from mdlstm_tk.report.panels import Panel, sample_panels
from mdlstm_tk.runtime.decoding import Decoding
from mdlstm_tk.runtime.postprocessing import labels, probabilities
from mdlstm_tk.text.reading import Line, evaluate_lines
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.evaluation import evaluate, predict

EXAMPLES: dict[str, int] = {"grid": 3, "classify": 18, "segment": 3, "transcribe": 6, "density": 6}
WORST_LINES = 50
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A sample and its prediction, as a page shows them.

    Attributes:
        spec: of the task.
        name: name of the sample.
        batch: the sample as a batch of one.
        output: the network's output for that batch.
        error: the sample's error, measured as the task measures it.
        line: of kind "transcribe", how the sample was read.
    """

    spec: TaskSpec
    name: str
    batch: Batch
    output: npt.NDArray[np.float32]
    error: float
    line: Line | None = None

    @property
    def panels(self) -> list[Panel]:
        return sample_panels(self.batch, self.output, self.spec, self.name)

    @property
    def prediction(self) -> str:
        """The predicted class."""
        return self.spec.classes[int(labels(self.output)[0])]

    @property
    def truth(self) -> str:
        """The true class."""
        return self.spec.classes[int(self.batch.y[0])]

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return float(probabilities(self.output).max())


@dataclass(frozen=True)
class SplitEvaluation:
    """The evaluation of a network on a split.

    Attributes:
        split: which split, see `display_split`.
        count: number of samples.
        errors: errors by name, as `mdlstm_tk.training.evaluate` returns them.
        examples: samples that represent the split, see `example_indices`; of lines, those whose error is
            about the median.
        worst: of the other samples, those with the largest errors, in decreasing order.
        confusion: (K, K) number of samples or positions by true class (rows) and predicted class
            (columns); None if the task has no classes.
        lines: of kind "transcribe", how each sample was read.
    """

    split: Split
    count: int
    errors: dict[str, float]
    examples: list[Example]
    worst: list[Example]
    confusion: npt.NDArray[np.int64] | None
    lines: list[Line]


def evaluate_split(
    network: nn.Module, task: Task, config: TrainConfig, decoding: Decoding
) -> SplitEvaluation:
    """Run a network on all samples of the split that influenced training least; texts are read by
    `decoding`."""
    label, task = display_split(task), in_order(task)
    split, kind, seed = display_split(task), task.spec.kind, config.seed
    confusion: npt.NDArray[np.int64] | None = None
    if kind in ("classify", "segment"):
        confusion = np.zeros((len(task.spec.classes),) * 2, dtype=np.int64)
    lines: list[Line] = []
    severities: list[tuple[float, float]] = []  # error; of wrong classes, the most confident one first
    targets: list[npt.NDArray[Any]] = []

    def collect(batch: Batch, prediction: npt.NDArray[Any]) -> None:
        targets.extend(batch.y)
        for k in range(len(batch.x)):
            output = prediction[k : k + 1]
            confidence = float(probabilities(output).max()) if kind == "classify" else 0.0
            severities.append((_error(task, batch.sample(k), output), confidence))
        if confusion is not None:
            labelled = batch.y != UNLABELLED
            np.add.at(confusion, (batch.y[labelled], labels(prediction)[labelled]), 1)

    if kind == "transcribe":
        errors, lines = evaluate_lines(network, task, split, config, decoding=decoding)
        severities = [(line.character_error, 0.0) for line in lines]
    else:
        errors = evaluate(network, task, split, config, on_batch=collect)
    ranking = sorted(range(len(severities)), key=severities.__getitem__, reverse=True)
    wrong = [k for k in ranking if severities[k][0] > 0]
    if kind == "transcribe":
        worst = wrong[:WORST_LINES]
        middle = max(len(worst), (len(ranking) - EXAMPLES[kind]) // 2)
        indices = ranking[middle : middle + EXAMPLES[kind]]
    else:
        indices = example_indices(task, split, seed, EXAMPLES[kind], targets)
        worst = [k for k in wrong if k not in set(indices)][: EXAMPLES[kind]]
    examples, worst_examples = (
        make_examples(network, task, split, config, each, lines) for each in (indices, worst)
    )
    return SplitEvaluation(label, task.count(split), errors, examples, worst_examples, confusion, lines)


@torch.no_grad()
def make_examples(
    network: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    indices: Iterable[int],
    lines: Sequence[Line] = (),
) -> list[Example]:
    """Run a network on single samples of a split; `lines` are their readings."""
    examples = []
    device = next(network.parameters()).device
    for index in indices:
        batch = example_batch(task, split, config.seed, index)
        output = predict(network, batch, device).cpu().numpy()
        name, line = task.sample_name(split, index), lines[index] if lines else None
        examples.append(Example(task.spec, name, batch, output, _error(task, batch, output), line))
    return examples


def _error(task: Task, batch: Batch, output: npt.NDArray[Any]) -> float:
    """Return the first error of a sample, as the task measures it."""
    error, count = next(iter(task.measure(output, batch).values()))
    return error / count if count else 0.0


def display_split(task: Task) -> Split:
    """Return the split to show predictions on: the one that influenced training least."""
    return "test" if task.count("test") else "validation" if task.count("validation") else "train"


def in_order(task: Task) -> Task:
    """Return a task that reads the samples of the split to show in order, as their names are, and without
    distortion: training samples, of a data set without others, are those of its validation split."""
    if display_split(task) != "train" or not isinstance(task, DatasetTask):
        return task
    view = copy(task)
    view.sets = {"validation": task.sets["train"]}
    view.names = {"validation": task.names.get("train", ())}
    view.groups = {"validation": task.groups.get("train", ())}
    return view


def example_indices(
    task: Task, split: Split, seed: int, count: int, targets: Iterable[npt.NDArray[Any]] | None = None
) -> list[int]:
    """Return the indices of up to `count` samples that represent a split; equal for equal arguments.

    Data sets are often sorted by class. Of a classification task every class is therefore shown if
    `count` allows, with its samples spread evenly. Masks are chosen so that together they show as many
    classes as possible, and the others, as the samples of other tasks, are spread over the split.

    Args:
        task: source of the samples.
        split: which samples.
        seed: of samples that are generated.
        count: how many at most.
        targets: of all samples in the order of the split, if the caller has read them.

    Returns:
        Indices in increasing order, in the order in which `evaluate` reads the split.
    """
    total = task.count(split)
    if task.spec.kind not in ("classify", "segment"):
        return spread(range(total), count)
    if targets is None:
        targets = (y for batch in batches(task, split, seed, task.evaluation_batch) for y in batch.y)
    if task.spec.kind == "segment":
        return _covering([set(np.unique(mask[mask != UNLABELLED]).tolist()) for mask in targets], count)
    classes = np.array(list(targets))
    names, sizes = np.unique(classes, return_counts=True)
    quotas = np.zeros(len(names), dtype=int)
    if count < len(names):
        quotas[spread(range(len(names)), count)] = 1
    else:
        for _ in range(min(count, total)):  # one sample at a time goes to the class that has fewest of them
            quotas[np.where(quotas < sizes, quotas, total).argmin()] += 1
    indices_by_class = (
        spread(np.flatnonzero(classes == name).tolist(), int(q))
        for name, q in zip(names, quotas, strict=True)
    )
    return sorted(index for indices in indices_by_class for index in indices)


def example_batch(task: Task, split: Split, seed: int, index: int) -> Batch:
    """Return sample `index` of a split as a batch of one. No other sample is read."""
    step, position = divmod(index, task.evaluation_batch)
    return task.batch(seed, step, task.evaluation_batch, split, slice(position, position + 1))


def _covering(classes: Sequence[set[int]], count: int) -> list[int]:
    """Choose up to `count` samples that together hold as many classes as possible."""
    indices: list[int] = []
    missing = set().union(*classes)
    while missing and len(indices) < count:
        indices.append(max(range(len(classes)), key=lambda k: len(classes[k] & missing)))
        missing -= classes[indices[-1]]
    remaining = [k for k in range(len(classes)) if k not in indices]
    return sorted(indices + spread(remaining, count - len(indices)))


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose up to `count` of the items, evenly spaced, starting with the first one."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]
