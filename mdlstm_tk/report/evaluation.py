"""Evaluate a network sample by sample: examples, its worst errors, and which classes it confuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from mdlstm_tk.data import UNLABELLED, Batch, Kind, Split, Task
from mdlstm_tk.data.metrics import target_texts
from mdlstm_tk.report.text_alignment import Edit, align
from mdlstm_tk.runtime.postprocessing import labels, probabilities, transcripts
from mdlstm_tk.training import TrainConfig, evaluate
from mdlstm_tk.viz.examples import display_split, example_indices

EXAMPLES: dict[Kind, int] = {"grid": 3, "classify": 18, "segment": 3, "transcribe": 8, "density": 6}


@dataclass(frozen=True)
class Example:
    """A sample and its prediction.

    Attributes:
        index: index of the sample in its split, from 0.
        batch: the sample as a batch of one.
        prediction: the network's output for that batch.
        error: the sample's error, measured as the task measures it.
    """

    index: int
    batch: Batch
    prediction: npt.NDArray[np.float32]
    error: float


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
    """Run a network on all samples of the split that influenced training least.

    Args:
        network: the trained network.
        task: source of the samples.
        config: configuration of the run.
    """
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
            example = Example(samples_seen, sample, output, error / count if count else 0.0)
            if samples_seen in chosen:
                evaluation.examples.append(example)
            elif example.error > 0:
                evaluation.worst.append(example)
            samples_seen += 1
        evaluation.worst.sort(key=lambda example: _severity(example, spec.kind), reverse=True)
        del evaluation.worst[limit:]
        if evaluation.confusion is not None:
            labelled = batch.y != UNLABELLED
            np.add.at(evaluation.confusion, (batch.y[labelled], labels(prediction)[labelled]), 1)
        if spec.kind == "transcribe":
            pairs = zip(transcripts(prediction, spec.classes), target_texts(batch, spec), strict=True)
            evaluation.edits.update(edit for pair in pairs for edit in align(*pair) if edit.is_error)

    evaluation.errors = evaluate(network, task, split, config, on_batch=collect)
    return evaluation


def _severity(example: Example, kind: Kind) -> tuple[float, float]:
    """Sort key of the worst samples: the error; of wrong classes, the most confident one first."""
    confidence = probabilities(example.prediction).max() if kind == "classify" else 0.0
    return example.error, float(confidence)
