"""Run a network on data and measure its errors; write the result of a finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk.data import Batch, Split, Task, batches
from mdlstm_tk.data.spec import Floats
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.networks import count_parameters
from mdlstm_tk.training.run_folder import Run


def predict(network: nn.Module, batch: Batch, device: torch.device, precision: str = "fp32") -> Tensor:
    """The output of a network for a batch, as float32.

    Args:
        network: on `device`.
        batch: its x (N, *grid, C) and, if extents differ, sizes (N, D) are the input.
        device: to compute on.
        precision: "fp32", or "bf16" for autocast to bfloat16.
    """
    inputs = [torch.from_numpy(batch.x).to(device)]
    if batch.sizes is not None:
        inputs.append(torch.from_numpy(batch.sizes).to(device))
    # Entering autocast takes time even where it changes nothing.
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        prediction: Tensor = network(*inputs)
    return prediction.float()


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    context: DistributedContext | None = None,
    on_batch: Callable[[Batch, Floats], None] = lambda batch, prediction: None,
) -> dict[str, float]:
    """The errors of a network on a split by name; {} if the split has no samples.

    Args:
        network: is switched to eval mode.
        task: source of the samples.
        split: which samples.
        config: its seed and precision are used.
        context: shares the batches among several processes; all get the same result.
        on_batch: called with each batch of this process and its prediction.
    """
    if task.count(split) == 0:
        return {}
    device = next(network.parameters()).device
    context = context or DistributedContext(0, 1, device)
    network.eval()
    measured: dict[str, tuple[float, float]] = {}
    shard = slice(context.rank, None, context.world_size)
    for batch in batches(task, split, config.seed, task.evaluation_batch, shard):
        prediction = predict(network, batch, device, config.precision).cpu().numpy()
        on_batch(batch, prediction)
        for name, (error, count) in task.measure(prediction, batch).items():
            error_sum, count_sum = measured.get(name, (0.0, 0.0))
            measured[name] = (error_sum + error, count_sum + count)
    names = context.broadcast(list(measured))  # a process other than the main one may have no batch
    measured = {name: measured.get(name, (0.0, 0.0)) for name in names}
    sums = context.all_reduce_sum([value for pair in measured.values() for value in pair])
    return mean_errors(names, sums)


def mean_errors(names: Sequence[str] | Mapping[str, Any], sums: Sequence[float]) -> dict[str, float]:
    """Errors by name, from alternating sums and counts."""
    return {
        name: error / count if count else math.nan
        for name, error, count in zip(names, sums[::2], sums[1::2], strict=True)
    }


def evaluate_run(run: Run, task: Task) -> dict[str, Any]:
    """Measure the best checkpoint of a finished run and write `result.json`.

    The errors are those on the test split, or on the validation split if there is no test split.

    Args:
        run: a run with a best checkpoint.
        task: the task it was trained on.

    Returns:
        The content of `result.json`: task, model, parameters, step, split and errors by name; "seconds" of
        the optimizer steps, summed over interruptions, their rate "steps_per_second", and apart from them
        "validation_seconds" and "compilation_seconds", see `TrainingTimes`.
    """
    checkpoint = load_checkpoint(run.best, run.code)
    network, times = checkpoint.network(), run.read_times()
    split: Split = "test" if task.count("test") else "validation"
    result = {
        "task": task.name,
        "model": checkpoint.config.model,
        "parameters": count_parameters(network),
        "step": checkpoint.step,
        "seconds": round(times.training, 1),
        "steps_per_second": round(times.steps / times.training, 3) if times.training else None,
        "validation_seconds": round(times.validation, 1),
        "compilation_seconds": round(times.compilation, 1),
        "split": split,
        "errors": evaluate(network, task, split, checkpoint.config),
    }
    with atomic_write(run.result) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
