"""Evaluate a network sample by sample: which samples to show, its worst errors, and what it confuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mdlstm_tk.data import Batch, DatasetTask, Split, Task, TaskSpec, batches
from mdlstm_tk.data.task import read_batch
from mdlstm_tk.kinds import training_of
from mdlstm_tk.report.panels import Panel
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.evaluation import measure_split, predict
from mdlstm_tk.training.run_folder import Run


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
        return training_of(self.spec.kind).panels(self.batch, self.output, self.spec, self.name)


@dataclass(frozen=True)
class SplitEvaluation:
    """The evaluation of a network on a split.

    Attributes:
        split: which split, see `split_to_show`.
        count: number of samples.
        errors: errors by name, as `mdlstm_tk.training.evaluate` returns them.
        examples: samples that represent the split, see `example_indices`.
        worst: of the other samples, those with the largest errors, in decreasing order.
        sums: over the split, see `TrainingKind.statistics`.
        pairs: (N, K) targets and predictions of all samples, if both are numbers without a grid.
    """

    split: Split
    count: int
    errors: dict[str, float]
    examples: Sequence[Example]
    worst: Sequence[Example]
    sums: Mapping[str, npt.NDArray[Any]]
    pairs: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None

    @property
    def confusion(self) -> npt.NDArray[np.int64] | None:
        """(K, K) number of samples or positions by true class (rows) and predicted class (columns); None if
        the task has no classes."""
        return self.sums["confusion"].astype(np.int64) if "confusion" in self.sums else None


def evaluate_split(network: nn.Module, task: Task, config: TrainConfig) -> SplitEvaluation:
    """Run a network on all samples of the split that influenced training least."""
    label, task, split = split_to_show(task)
    kind = training_of(task.spec.kind)
    severities: list[tuple[float, float]] = []  # error, confidence
    targets: list[npt.NDArray[Any]] = []
    outputs: list[npt.NDArray[Any]] = []

    def collect(batch: Batch, prediction: npt.NDArray[Any]) -> None:
        targets.extend(batch.y)
        outputs.extend(prediction if batch.y.shape == prediction.shape[:2] == prediction.shape else ())
        for k in range(len(batch.x)):
            output = prediction[k : k + 1]
            severities.append((_error(task, batch.sample(k), output), kind.confidence(output)))

    errors, sums = measure_split(network, task, split, config, on_batch=collect)
    ranking = sorted(range(len(severities)), key=severities.__getitem__, reverse=True)
    indices = example_indices(task, split, config.seed, kind.examples, targets)
    worst = [k for k in ranking if severities[k][0] > 0 and k not in set(indices)][: kind.examples]
    examples, worst_examples = (
        make_examples(network, task, split, config, each) for each in (indices, worst)
    )
    pairs = (np.stack(targets), np.stack(outputs)) if outputs else None
    return SplitEvaluation(label, task.count(split), errors, examples, worst_examples, sums, pairs)


@torch.no_grad()
def make_examples(
    network: nn.Module, task: Task, split: Split, config: TrainConfig, indices: Iterable[int]
) -> list[Example]:
    """Run a network on single samples of a split."""
    examples = []
    device = next(network.parameters()).device
    for index in indices:
        batch = example_batch(task, split, config.seed, index)
        output = predict(network, batch, device).cpu().numpy()
        name = task.sample_name(split, index)
        examples.append(Example(task.spec, name, batch, output, _error(task, batch, output)))
    return examples


def _error(task: Task, batch: Batch, output: npt.NDArray[Any]) -> float:
    """Return the first error of a sample, as the task measures it; 0 if it measures none."""
    error, count = next(iter(task.measure(output, batch).values()), (0.0, 0))
    return error / count if count else 0.0


def with_decoding(task: Task, run: Run, step: int) -> Task:
    """A task whose outputs become answers as in a run with the weights of a step."""
    spec = training_of(task.spec.kind).decoded_spec(task.spec, run, step)
    if spec is task.spec:
        return task
    decoded = copy(task)
    decoded.spec = spec
    return decoded


def split_to_show(task: Task) -> tuple[Split, Task, Split]:
    """Return the split to show predictions on, which is the one that influenced training least; and a task
    and its split that read the samples of that one in order, as their names are, and without distortion."""
    splits: tuple[Split, ...] = "test", "validation"
    for split in splits:
        if task.count(split):
            return split, task, split
    if isinstance(task, DatasetTask):
        return "train", task.in_order(), "validation"
    return "train", task, "train"


def example_indices(
    task: Task, split: Split, seed: int, count: int, targets: Iterable[npt.NDArray[Any]] | None = None
) -> list[int]:
    """Return the indices of up to `count` samples that represent a split, as its kind chooses them; equal
    for equal arguments.

    Args:
        task: source of the samples.
        split: which samples.
        seed: of samples that are generated.
        count: how many at most.
        targets: of all samples in the order of the split, if the caller has read them.

    Returns:
        Indices in increasing order, in the order in which `evaluate` reads the split.
    """

    def read_targets() -> Iterable[npt.NDArray[Any]]:
        if targets is not None:
            return targets
        return (y for batch in batches(task, split, seed, task.evaluation_batch) for y in batch.y)

    return training_of(task.spec.kind).choose_examples(task.count(split), count, read_targets)


def example_batch(task: Task, split: Split, seed: int, index: int) -> Batch:
    """Return sample `index` of a split as a batch of one. No other sample is read."""
    step, position = divmod(index, task.evaluation_batch)
    return read_batch(task, seed, step, task.evaluation_batch, split, slice(position, position + 1))
