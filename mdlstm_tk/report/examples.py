"""Samples to look at: some that represent a split, and those with the largest errors."""

from __future__ import annotations

from bisect import insort
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mdlstm_tk.data.task import Batch, Split, Task
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.panels import Panel
from mdlstm_tk.training.evaluation import add_up, measures_of, predict

SHOWN, WORST = 12, 6
SHOWN_ROWS = 4  # of samples with several pictures each


class Example(NamedTuple):
    """A sample, the pictures of it and of its prediction, and its error: the first measure of it alone."""

    name: str
    panels: list[Panel]
    error: float


class Evaluation(NamedTuple):
    """The samples of a split, measured: `examples` represent it, and `worst` are others with the largest
    errors, in decreasing order."""

    split: Split
    measures: dict[str, float]
    outputs: dict[str, dict[str, float]]
    examples: list[Example]
    worst: list[Example]


def look_at(
    network: nn.Module, task: Task, seed: int, untrained: nn.Module | None = None
) -> Evaluation | None:
    """Measure a network on the split that influenced it least, and draw some of its samples.

    Pictures are drawn while the batches go by, so that no more than one batch is in memory.

    Args:
        network: the trained one.
        task, seed: the samples.
        untrained: the network before its training, of which the same samples are drawn, too.

    Returns:
        None if nothing is for testing and nothing for validation.
    """
    splits: tuple[Split, ...] = ("test", "validation")
    split = next((each for each in splits if task.count(each)), None)
    if split is None:
        return None
    kind, spec = kind_named(task.spec.kind), task.spec
    total = task.count(split)
    shown = {k * total // SHOWN for k in range(SHOWN)}  # samples are sorted by size alone
    examples: list[Example] = []
    worst: list[tuple[float, int, Example]] = []  # in increasing order
    indices = count()

    def example(batch: Batch, prediction: Tensor, index: int, error: float) -> Example:
        arrays = Batch(*map(_array, batch))
        panels = kind.draw(arrays, _array(prediction), spec)
        names = [panel.name for panel in panels]
        if untrained is not None and index in shown and "prediction" in names:
            k, before = names.index("prediction"), _array(predict(untrained, batch)[0])
            panels.insert(k, replace(kind.draw(arrays, before, spec)[k], name="before training"))
        return Example(task.names[split][index] if task.names else f"sample {index}", panels, error)

    def look(batch: Any, prediction: Tensor) -> None:
        for k, index in zip(range(len(batch.x)), indices, strict=False):
            one: Any = Batch(*(each if each is None else each[k : k + 1] for each in batch))
            output = prediction[k : k + 1]
            sums = getattr(task, "sums", kind.sums)(output, one, spec)
            measures = measures_of(task, {name: _array(each) for name, each in sums.items()})
            error = float(np.nan_to_num(next(iter(measures.values()), 0.0)))
            if index in shown:
                examples.append(example(one, output, index, error))
            elif error > (worst[0][0] if len(worst) == WORST else 0.0):
                insort(worst, (error, -index, example(one, output, index, error)))
                del worst[:-WORST]

    with torch.no_grad():
        sums = add_up(network, task, split, seed, look=look)
    if examples and len(examples[0].panels) > 1:
        examples = examples[:: -(-len(examples) // SHOWN_ROWS)]
    outputs = {} if hasattr(task, "sums") else kind.outputs(sums, spec)
    ranked = [each for _, _, each in reversed(worst)]
    return Evaluation(split, measures_of(task, sums), outputs, examples, ranked)


def _array(tensor: Any) -> Any:
    return tensor if tensor is None else tensor.cpu().numpy()
