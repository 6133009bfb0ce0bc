"""Estimate the memory that training takes, before the machine runs out of it."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mdlstm_tk.data import KINDS, Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.models.heads import NETWORKS
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.networks import build_network, count_parameters, weights_of

FLOAT_BYTES = 4
WEIGHT_COPIES = 4  # the weights themselves, gradients, two moments of Adam
# What a step takes beside that which the network keeps for backward, relative to it: gradients, and
# temporary results of the largest layer. Measured at 1.05 to 1.25.
BACKWARD_FACTOR = 1.3
# Copies of a prediction that loss, its gradient and the error metrics make.
PREDICTION_COPIES = 5
# Copies of a batch: its samples, the distorted ones, the padded batch, and the standardised one.
BATCH_COPIES = 4
LIBRARY_BYTES = 150 * 2**20  # compiled kernels, and Matplotlib, which draws the run in the end
UNKNOWN_PROCESS_BYTES = 600 * 2**20  # Python, torch and Numba, where the system does not tell


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes at most.

    Attributes:
        process: what the process takes now, before training, and libraries that it has yet to load.
        weights: weights, gradients, the optimizer's state, and the average of the weights.
        batch: what the network keeps and computes for a batch.
        cache: decoded images that are kept, and batches that workers prepare ahead.
    """

    process: int
    weights: int
    batch: int
    cache: int

    @property
    def total(self) -> int:
        return self.process + self.weights + self.batch + self.cache


def check_weights(config: TrainConfig, spec: TaskSpec) -> None:
    """Check that there is memory to train the weights of a network, before they take any.

    Raises:
        InputError: there is not, or there is no such network.
    """
    weights, available = weights_of(config, spec), available_memory()
    if weights is None or available is None:
        return
    needed = WEIGHT_COPIES * FLOAT_BYTES * sum(shape.numel() for shape, _ in weights.values())
    if needed > available:
        raise InputError(
            f"to train the weights of model '{config.model}' would take {_format(needed)} of memory, but "
            f"{_format(available)} are available; try a smaller --hidden or --layers"
        )


def check_memory(
    network: nn.Module, config: TrainConfig, task: Task, samples: int, device: torch.device
) -> str:
    """Compare what training takes with what is available.

    Args:
        network: the network of the configuration.
        config: what to train.
        task: the task; a batch of samples of its largest size is assumed.
        samples: samples of a batch that this process handles.
        device: device of the training.

    Returns:
        A line that says both; "" if the network does not run without data, so that nothing is known.

    Raises:
        InputError: not enough memory is available; the message says which options to change.
    """
    estimate = estimate_memory(network, config, task, samples)
    if estimate is None:
        return ""
    needed, available = estimate.total - estimate.process, available_memory()
    if device.type == "cuda":
        needed, available = estimate.weights + estimate.batch, torch.cuda.mem_get_info(device)[0]
    place = f" on {device}" if device.type == "cuda" else ""
    if available is None:
        return f"training needs about {_format(estimate.total)} of memory"
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if needed * processes > available:
        advice = _advise(config, task, samples, (available / processes - estimate.cache) / 1.05)
        raise InputError(
            f"training would need about {_format(needed * processes)} more memory{place}, but "
            f"{_format(available)} are available; {advice}"
        )
    total = needed if device.type == "cuda" else estimate.total
    return f"training needs about {_format(total)} of memory{place}; {_format(available)} are available"


def estimate_memory(
    network: nn.Module, config: TrainConfig, task: Task, samples: int
) -> MemoryEstimate | None:
    """Estimate the memory of a training process; None if the network cannot run without data.

    The network runs on torch's meta device, which computes shapes alone; what it keeps for backward is
    counted exactly.

    Args:
        network: see `check_memory`; it is not changed.
        config: see `check_memory`.
        task: see `check_memory`.
        samples: see `check_memory`.
    """
    kept = _kept_for_backward(network, task, samples)
    if kept is None:
        return None
    spec = task.spec
    input_bytes = samples * spec.channels * FLOAT_BYTES
    for extent in spec.size:
        input_bytes *= extent
    copies = WEIGHT_COPIES + bool(config.average)
    cache = int(getattr(task, "cache_bytes", 0)) * max(config.workers, 1)
    cache += 2 * config.workers * input_bytes  # each worker prepares two batches ahead
    return MemoryEstimate(
        process=_process_bytes() + LIBRARY_BYTES,
        weights=copies * FLOAT_BYTES * count_parameters(network),
        batch=kept + BATCH_COPIES * input_bytes,
        cache=cache,
    )


def available_memory() -> int | None:
    """Bytes that this process can still get without swapping; None if the system does not tell.

    On Linux, the limit of the container counts as well. Elsewhere it is all free memory, or the
    physical memory if the system tells nothing else.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        system = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        names = getattr(os, "sysconf_names", {})
        key = next((key for key in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES") if key in names), None)
        return os.sysconf(key) * os.sysconf("SC_PAGE_SIZE") if key else None
    limits = [
        _container_memory("/sys/fs/cgroup", "memory.max", "memory.current"),
        _container_memory("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ]
    return min([system, *(limit for limit in limits if limit is not None)])


def _container_memory(folder: str, limit_file: str, usage_file: str) -> int | None:
    """What a control group leaves; file caches that it counts can be dropped."""
    try:
        limit, usage = (int(Path(folder, name).read_text()) for name in (limit_file, usage_file))
        statistics = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is none, or its limit is "max"
        return None
    return max(limit - usage + int(statistics.get("inactive_file", 0)), 0)


def _process_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return UNKNOWN_PROCESS_BYTES


def _kept_for_backward(network: nn.Module, task: Task, samples: int) -> int | None:
    """Bytes that a training step holds at most for a batch of the largest size."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    try:
        shadow = copy.deepcopy(network).to("meta").train()
        x = torch.empty(samples, *task.spec.size, task.spec.channels, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            prediction: Tensor = shadow(x)
        prediction_bytes = prediction.numel() * FLOAT_BYTES
    except Exception:  # a network of the user's own may need values
        return None
    return int(BACKWARD_FACTOR * sum(storages.values())) + PREDICTION_COPIES * prediction_bytes


def _advise(config: TrainConfig, task: Task, samples: int, limit: float) -> str:
    """Options that make training fit into `limit` bytes, with values that were tried."""

    def fits(changed: TrainConfig, count: int = samples) -> bool:
        estimate = estimate_memory(build_network(changed, task.spec), changed, task, count)
        return estimate is not None and estimate.weights + estimate.batch <= limit

    advice = []
    levels = config.windows.split(",")
    window = 2
    while config.task in NETWORKS and window <= min(task.spec.size):
        changed = replace(config, windows=",".join([str(window), *levels[1:]]))
        if fits(changed):
            advice.append(f"--windows {changed.windows}")
            break
        window *= 2
    count = samples // 2
    while count and not fits(config, count):
        count //= 2
    if count:
        advice.append(f"--batch-size {max(config.batch_size * count // samples, 1)}")
    if config.task in KINDS:
        half = "x".join(str(-(-extent // 2)) for extent in task.spec.size)
        advice += [f"--resize {half}"] if task.spec.preprocessing else []
        advice += [f"--crop {half}"] if task.spec.kind != "transcribe" else []
    else:
        advice.append("a smaller --size")
    *others, last = advice or ["a smaller --hidden"]
    return f"try {' or '.join(filter(None, (', '.join(others), last)))}"


def _format(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
