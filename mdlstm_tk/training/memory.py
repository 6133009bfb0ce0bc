"""Estimate the memory that training takes, before the machine runs out of it."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import Task
from mdlstm_tk.data.spec import Extents
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import model_options
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.networks import build_network, count_parameters, windows_of

FLOAT_BYTES = 4
WEIGHT_COPIES = 5  # the weights themselves, gradients, two moments of Adam, the best weights so far
# Memory of a step beside what the network keeps for backward, relative to it: gradients, and temporary
# results of the largest layer. Measured at 1.05 to 1.25.
BACKWARD_FACTOR = 1.3
PREDICTION_COPIES = 5  # of loss, its gradient and the error metrics
BATCH_COPIES = 4  # the samples, the distorted ones, the padded batch, and the standardised one
LIBRARY_BYTES = 150 * 2**20  # compiled kernels, and Matplotlib, which draws the run in the end


class MemoryEstimate(NamedTuple):
    """Bytes that training takes at most, beyond what the process has now.

    Attributes:
        weights: weights, gradients, the optimizer's state, the average and the best of the weights.
        batch: what the network keeps and computes for a batch.
        cache: decoded images in memory, batches that workers prepare ahead, and libraries.
    """

    weights: int
    batch: int
    cache: int


def keep_freed_memory() -> None:
    """Let the C library keep memory that a step has freed for the next step, until the process ends.

    Otherwise it returns large blocks to the system, which clears them page by page when the next step asks
    for them again: up to a fifth of a step, and more if several threads touch them. Only glibc can be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of the settings in malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # the most that older ones take


def check_memory(config: TrainConfig, task: Task, samples: int, device: torch.device) -> str:
    """Compare the memory that training takes with what is available, before the network is built.

    Args:
        config: what to train.
        task: the task; its largest batch is assumed.
        samples: samples of a batch that this process handles.
        device: device of the training.

    Returns:
        A line that states both; "" if the memory is unknown, as the network does not run without data.

    Raises:
        InputError: not enough memory is available; the message names the setting that helps.
    """
    estimate = estimate_memory(config, task, samples)
    if estimate is None:
        return ""
    demand, available, location = sum(estimate), available_memory(), ""
    if device.type == "cuda":
        demand, location = estimate.weights + estimate.batch, f" on {device}"
        # torch keeps what earlier runs of this process have freed
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        available = torch.cuda.mem_get_info(device)[0] + kept
    else:
        demand *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    text = f"training needs about {_format(demand)} more memory{location}"
    if available is None:
        return text
    if demand > available:
        advice = _advise(config, task, estimate)
        raise InputError(f"{text}, but {_format(available)} are available; try {advice}")
    return f"{text}; {_format(available)} are available"


def estimate_memory(config: TrainConfig, task: Task, samples: int) -> MemoryEstimate | None:
    """Estimate the memory of training; None if the network cannot be built or run without data.

    The network is built and run on torch's meta device, which computes shapes alone; what it keeps for
    backward is counted exactly.

    Args: as of `check_memory`.

    Raises:
        InputError: there is no such network, or it is too large for any machine.
    """
    spec, extents = task.spec, task.largest_batch(config.seed, config.batch_size)
    try:
        with torch.device("meta"):
            network = build_network(config, spec)
        backward = _backward_bytes(network, task, samples, extents)
    except InputError:
        raise
    except Exception as error:
        if any(text in str(error).lower() for text in ("overflow", "too large", "storage size")):
            raise InputError(
                f"the network '{config.model}' is too large for any machine; try a smaller hidden or layers"
            ) from None
        return None  # a network of the user's own may need values
    input_bytes = samples * spec.channels * FLOAT_BYTES * prod(extents)
    cache = task.cache_bytes * max(config.workers, 1)
    return MemoryEstimate(
        weights=(WEIGHT_COPIES + bool(config.average)) * FLOAT_BYTES * count_parameters(network),
        batch=backward + BATCH_COPIES * input_bytes,
        cache=cache + 2 * config.workers * input_bytes + LIBRARY_BYTES,  # two batches for each worker
    )


def available_memory() -> int | None:
    """Bytes that this process can still get without swapping; None if the system does not tell.

    On Linux this is the free memory, in a container at most what its limit leaves to this process.
    Elsewhere it is all memory of the machine.
    """
    memory = _machine_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration, ValueError):
        return memory
    return free if memory is None else min(free, max(memory - resident, 0))


def _machine_memory() -> int | None:
    """Bytes of memory of this machine or container; None if unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            memory = min(memory, int(Path(path).read_text()))
    return memory


def _backward_bytes(network: nn.Module, task: Task, samples: int, extents: Extents) -> int:
    """Bytes that a training step holds at most for a batch of these extents."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    x = torch.empty(samples, *extents, task.spec.channels, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        outputs: Tensor | tuple[Tensor, ...] = network.train()(x)
    predictions = outputs if isinstance(outputs, tuple) else (outputs,)
    nbytes = int(BACKWARD_FACTOR * sum(storages.values()))
    return nbytes + PREDICTION_COPIES * FLOAT_BYTES * sum(prediction.numel() for prediction in predictions)


def _advise(config: TrainConfig, task: Task, estimate: MemoryEstimate) -> str:
    """The setting that most of the memory depends on."""
    largest = max(estimate)
    if estimate.weights == largest:
        return "a smaller --hidden or --layers"
    if estimate.cache == largest:
        return "a smaller --cache, or fewer --workers"
    if config.batch_size > 1:
        return f"--batch-size {max(config.batch_size // 4, 1)}, or less"
    if "windows" in model_options(config.model, task.spec.kind):
        first, *later = windows_of(config, task.spec)
        larger = [tuple(2 * extent for extent in first), *later]
        return f"--windows {','.join(map(format_size, larger))}, or larger"
    return "a smaller --crop or --resize" if config.data else "a smaller --size"


def _format(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
