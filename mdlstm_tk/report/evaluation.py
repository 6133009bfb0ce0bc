"""How well a network does, sample by sample: examples, the worst ones, and what is taken for what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from mdlstm_tk.data import UNLABELLED, Batch, Kind, Split, Task
from mdlstm_tk.data.metrics import texts
from mdlstm_tk.report.text_alignment import Edit, align
from mdlstm_tk.runtime.postprocessing import labels, probabilities, transcripts
from mdlstm_tk.training import TrainConfig, evaluate
from mdlstm_tk.viz.run_pictures import shown_stream

SHOWN: dict[Kind, int] = {"grid": 3, "classify": 18, "segment": 3, "transcribe": 8}


@dataclass(frozen=True)
class Example:
    """A sample and what the network makes of it.

    Attributes:
        number: of the sample in its split, from 0.
        batch: it alone.
        prediction: for it alone.
        error: by the task's own measure, as far as it is of one sample.
    """

    number: int
    batch: Batch
    prediction: npt.NDArray[np.float32]
    error: float


@dataclass
class Judgement:
    """How well a network does on a split.

    Attributes:
        split: which.
        count: of samples.
        errors: as `evaluate` gives them.
        first: the split's first samples.
        worst: those of all others that it did worst on, the worst first; none that is right.
        confusion: (K, K) how many samples or cells of each class (rows) were taken for each (columns).
        edits: how often each edit is needed to make a truth of a predicted text.
    """

    split: Split
    count: int
    errors: dict[str, float] = field(default_factory=dict)
    first: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    confusion: npt.NDArray[np.int64] | None = None
    edits: Counter[Edit] = field(default_factory=Counter)


def judge(network: nn.Module, task: Task, config: TrainConfig) -> Judgement:
    """Run a network over all of the split that chose least."""
    split, spec = shown_stream(task), task.spec
    found = Judgement(split, task.count(split))
    if spec.kind in ("classify", "segment"):
        found.confusion = np.zeros((len(spec.classes),) * 2, dtype=np.int64)
    shown = SHOWN[spec.kind]
    seen = 0

    def look(batch: Batch, prediction: npt.NDArray[Any]) -> None:
        nonlocal seen
        for k in range(len(batch.x)):
            one, predicted = batch.sample(k), prediction[k : k + 1]
            total, count = next(iter(task.measure(predicted, one).values()))
            example = Example(seen, one, predicted, total / count if count else 0.0)
            if seen < shown:
                found.first.append(example)
            elif example.error > 0:
                found.worst.append(example)
            seen += 1
        found.worst.sort(key=lambda example: _badness(example, spec.kind), reverse=True)
        del found.worst[shown:]
        if found.confusion is not None:
            known = batch.y != UNLABELLED
            np.add.at(found.confusion, (batch.y[known], labels(prediction)[known]), 1)
        if spec.kind == "transcribe":
            for said, truth in zip(transcripts(prediction, spec.classes), texts(batch, spec), strict=True):
                found.edits.update(edit for edit in align(said, truth) if edit.said != edit.truth)

    found.errors = evaluate(network, task, split, config, on_batch=look)
    return found


def _badness(example: Example, kind: Kind) -> tuple[float, float]:
    """By the error; mistakes of a classifier by how sure it was."""
    sure = probabilities(example.prediction).max() if kind == "classify" else 0.0
    return example.error, float(sure)
