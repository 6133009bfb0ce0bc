"""Run a network on data, and measure its errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdlstm_tk._util.checks import checked
from mdlstm_tk.data import Batch, Split, Task, TaskSpec, batches
from mdlstm_tk.data.spec import Array, Floats
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import training_of
from mdlstm_tk.kinds.training_kind import Sums
from mdlstm_tk.models import Normalized
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.progress import OWN_KEYS


def predict(network: nn.Module, batch: Batch, device: torch.device, precision: str = "fp32") -> Tensor:
    """The prediction of a network for a batch, as float32; of several ones the first.

    Args:
        network: on `device`.
        batch: its x (N, *grid, C) and, if extents differ, sizes (N, D) are the input.
        device: to compute on.
        precision: "fp32", or "bf16" for autocast to bfloat16.

    Returns:
        By the kind of the task, see `mdlstm_tk.models.register`: (N, *grid, outputs), (N, outputs),
        (N, T, outputs), or (N, *grid, C).
    """
    return predictions(network, batch, device, precision)[0]


def predictions(
    network: nn.Module,
    batch: Batch,
    device: torch.device,
    precision: str = "fp32",
    spec: TaskSpec | None = None,
) -> tuple[Tensor, ...]:
    """As `predict`, with the auxiliary predictions that a network may have in training after the first.

    Raises:
        InputError: the batch, or a prediction for it, is none of the task that `spec` describes.
    """
    expected = spec.shape_of_prediction(batch) if spec is not None else ()
    inputs = [torch.from_numpy(batch.x).to(device)]
    if batch.sizes is not None:
        if not _takes_sizes(network):
            raise InputError(
                "samples differ in size, and the network takes no sizes; make them equal with --resize or "
                "--crop, or use another --model"
            )
        inputs.append(torch.from_numpy(batch.sizes).to(device))
    # Entering autocast takes time even where it changes nothing.
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        outputs: Tensor | tuple[Tensor, ...] = network(*inputs)
    results = tuple(each.float() for each in (outputs if isinstance(outputs, tuple) else (outputs,)))
    for shape in (tuple(result.shape) for result in results if expected):
        pairs = zip_longest(expected, shape, fillvalue=-1)
        if any(extent not in (None, actual) for extent, actual in pairs):
            text = str(expected).replace("None", "any")
            raise InputError(f"the network returns a prediction of shape {shape}, expected {text}")
    return results


def _takes_sizes(network: nn.Module) -> bool:
    """False if a network cannot be given the sizes of samples beside x."""
    while isinstance(network, DistributedDataParallel | Normalized):
        network = network.network if isinstance(network, Normalized) else network.module
    try:
        signature(network.forward).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a module that was traced has no signature
        pass
    return True


def measure(task: Task, prediction: Tensor, batch: Batch) -> Sums:
    """The errors of a prediction as {name: (sum, count)}; see `Task.measure`.

    Unless the task overrides that method, the sums stay on the device of the prediction.
    """
    prediction = prediction.detach()
    if has_own_measures(task):
        measured: Sums = dict(task.measure(prediction.cpu().numpy(), batch))
        if taken := measured.keys() & OWN_KEYS:
            raise InputError(
                f"the task '{task.name}' measures '{min(taken)}', which records of training call something "
                "else; give it another name"
            )
        return measured
    return training_of(task.spec.kind).measures(prediction, batch, task.spec)


@checked
def evaluate(
    network: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    context: DistributedContext | None = None,
    on_batch: Callable[[Batch, Floats], None] | None = None,
) -> dict[str, float]:
    """The measures of a network on a split by name; {} if the split has no samples.

    They are computed in float32, as exported files compute, also where training uses bfloat16.

    Args:
        network: is switched to eval mode. It runs on the device that it is on.
        task: source of the samples.
        split: which samples.
        config: its seed is used.
        context: shares the batches among several processes; all get the same result.
        on_batch: called with each batch of this process and its prediction.

    Raises:
        InputError: there is no such split, or an argument is of another type.
    """
    return measure_split(network, task, split, config, context, on_batch)[0]


@torch.no_grad()
def measure_split(
    network: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    context: DistributedContext | None = None,
    on_batch: Callable[[Batch, Floats], None] | None = None,
) -> tuple[dict[str, float], dict[str, Array]]:
    """As `evaluate`; also returns the sums of `TrainingKind.statistics` over the split. Of tasks with
    measures of their own there are none."""
    network.eval()
    if task.count(split) == 0:
        return {}, {}
    device = next(network.parameters()).device
    context = context or DistributedContext(0, 1, device)
    kind = training_of(task.spec.kind)
    totals: dict[str, tuple[float, float]] = {}
    sums: dict[str, Array] = {}
    for batch in batches(task, split, config.seed, task.evaluation_batch, context.shard):
        prediction = predictions(network, batch, device, spec=task.spec)[0]
        if on_batch is not None:
            on_batch(batch, prediction.cpu().numpy())
        for name, (error, count) in measure(task, prediction, batch).items():
            error_sum, count_sum = totals.get(name, (0.0, 0.0))
            totals[name] = (error_sum + float(error), count_sum + count)
        if not has_own_measures(task):
            for name, values in kind.statistics(prediction, batch, task.spec).items():
                sums[name] = sums.get(name, 0.0) + values.double().cpu().numpy()
    names = context.all_names(totals)  # a process may have no batch, or only batches of some measures
    totals = {name: totals.get(name, (0.0, 0.0)) for name in names}
    reduced = context.all_reduce_sum([value for pair in totals.values() for value in pair])
    errors, parts = mean_errors(names, reduced), context.all_gather([sums])
    sums = {}
    for part in parts:  # in the order of the processes, so that all get the same sums
        sums |= {name: sums.get(name, 0.0) + values for name, values in part.items()}
    return errors | (kind.summarize(errors, sums, task.spec) if sums else {}), sums


def has_own_measures(task: Task) -> bool:
    """True if the measures of a task are its own, and not those of its kind."""
    return type(task).measure is not Task.measure


def best_measure(task: Task, config: TrainConfig) -> tuple[str, bool] | None:
    """The measure that `config.best_by` names, and True if higher values are better; None if the task
    chooses the best weights itself, see `Task.score`.

    Raises:
        InputError: the task has no such measure, or no validation data.
    """
    name, kind = config.best_by, training_of(task.spec.kind)
    if not name:
        return None
    if not task.count("validation"):
        raise InputError(
            "best_by (--best-by) needs validation data, of which there are none; hold some out with "
            "--validation 0.1, or leave it out"
        )
    if has_own_measures(task):
        raise InputError(
            f"best_by (--best-by): the task '{task.name}' has measures of its own; leave it out"
        )
    known = {**dict.fromkeys(kind.error_names, False), **kind.further_measures}
    if name not in known:
        raise InputError(f"best_by (--best-by) must be one of {', '.join(known)}, got '{name}'")
    return name, known[name]


def score(task: Task, config: TrainConfig, errors: Mapping[str, float]) -> float:
    """The number that the best weights have the lowest of, from the measures of a validation."""
    best = best_measure(task, config)
    if best is None:
        return task.score(errors)
    name, is_higher_better = best
    return -errors[name] if is_higher_better else errors[name]


def mean_errors(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Errors by name, from alternating sums and counts."""
    return {
        name: error / count if count else math.nan
        for name, error, count in zip(names, sums[::2], sums[1::2], strict=True)
    }
