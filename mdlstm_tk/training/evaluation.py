"""Run a network on data, and measure it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk.data.task import Batch, Split, Task
from mdlstm_tk.io import Array
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training.distributed import Group


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch as tensors."""
    tensors = (
        each if each is None else torch.as_tensor(each).to(device, non_blocking=True) for each in batch
    )
    return Batch(*tensors)


def predict(network: nn.Module, batch: Any, precision: str = "fp32") -> tuple[Tensor, ...]:
    """The prediction of a network, and further ones that it may have in training, as float32.

    Args:
        network: on the device of the batch.
        batch: tensors; x (N, *grid, C) and, if extents differ, sizes (N, D) are the input.
        precision: "fp32", or "bf16" for autocast to bfloat16.
    """
    inputs = [batch.x] if batch.sizes is None else [batch.x, batch.sizes]
    # Entering autocast takes time even where it changes nothing.
    bf16 = precision == "bf16"
    with torch.autocast(batch.x.device.type, torch.bfloat16) if bf16 else nullcontext():
        outputs = network(*inputs)
    return tuple(each.float() for each in (outputs if isinstance(outputs, tuple) else (outputs,)))


def predictor(network: nn.Module) -> Callable[[Batch], tuple[Tensor, Batch]]:
    """A function that returns the prediction of a network for a batch, and the batch as tensors, on the
    CPU."""
    device = next(network.parameters()).device

    @torch.no_grad()
    def run(batch: Batch) -> tuple[Tensor, Batch]:
        network.eval()
        return predict(network, on_device(batch, device))[0].cpu(), on_device(batch, torch.device("cpu"))

    return run


@torch.no_grad()
def add_up(
    network: nn.Module,
    task: Task,
    split: Split,
    seed: int = 0,
    group: Group | None = None,
    look: Callable[[Batch, Tensor], None] | None = None,
) -> dict[str, Array]:
    """The sums of a split, see `Kind.sums`; {} if it has no samples.

    Args:
        network: is switched to eval mode.
        task, split: the samples.
        seed: of samples that are generated.
        group: shares the batches among several processes; all get the same result.
        look: called with each batch of this process and its prediction.
    """
    network.eval()
    group = group or Group(device=next(network.parameters()).device)
    sums_of = getattr(task, "sums", kind_named(task.spec.kind).sums)
    totals: dict[str, Tensor] = {}
    for arrays in task.evaluation_batches(split, seed, group.shard):
        batch = on_device(arrays, group.device)
        prediction = predict(network, batch)[0]  # in float32, as exported files compute
        for name, value in sums_of(prediction, batch, task.spec).items():
            totals[name] = totals.get(name, 0) + value.double()
        if look is not None:
            look(batch, prediction)
    parts = group.gather({name: each.cpu().numpy() for name, each in totals.items()})
    sums: dict[str, Array] = {}
    for part in parts:  # in the order of the processes, so that all get the same sums
        sums |= {name: sums.get(name, 0.0) + values for name, values in part.items()}
    return sums


def measures_of(task: Task, sums: dict[str, Array]) -> dict[str, float]:
    """The measures of a split from its sums: the task's own, or those of its kind; {} without sums."""
    measures = getattr(task, "measures", kind_named(task.spec.kind).measures)
    return dict(measures(sums, task.spec)) if sums else {}


def evaluate(
    network: nn.Module, task: Task, split: Split, seed: int = 0, group: Group | None = None
) -> dict[str, float]:
    """The measures of a network on a split by name; {} if it has no samples. Arguments as of `add_up`."""
    return measures_of(task, add_up(network, task, split, seed, group))
