"""The memory that training takes, before the machine runs out of it: Linux then kills without a word."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from mdlstm_tk.data.task import Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import Group
from mdlstm_tk.training.networks import build_network, count_parameters

WEIGHT_COPIES = 6  # the weights, their average and a copy to write, gradients, two moments
BACKWARD_FACTOR = 1.3  # of what is kept for backward, for gradients and temporary results


def check_memory(config: TrainConfig, task: Task, group: Group) -> None:
    """Refuse a training that needs more memory than there is.

    What the network keeps for backward is counted by running it on torch's meta device. A network that
    needs values for that is not counted.

    Raises:
        InputError: not enough memory is available, or the network cannot be built.
    """
    samples, extents = group.share(config.batch_size), task.largest_batch(config.seed, config.batch_size)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network = build_network(config, task.spec).train()
            network(torch.empty(samples, *extents, task.spec.channels))
    except InputError:
        raise
    except Exception:  # of a network that needs values
        return
    needed = WEIGHT_COPIES * 4 * count_parameters(network) + int(BACKWARD_FACTOR * sum(kept.values()))
    is_cuda = group.device.type == "cuda"
    needed *= 1 if is_cuda else group.size
    available = torch.cuda.mem_get_info(group.device)[0] if is_cuda else available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"training needs about {needed / 1e9:.2g} GB of memory, but there are {available / 1e9:.2g}; "
            "try a smaller --batch-size, --crop, --resize or --hidden, or larger --windows"
        )


def available_memory() -> int | None:
    """Bytes that this process can still get without swapping; None if the system does not tell. In a
    container they are at most what its limit leaves to this process."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    with suppress(OSError, ValueError):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()) - resident)
    return max(free, 0)


def keep_freed_memory() -> None:
    """Let the C library keep what a step has freed for the next one, until the process ends.

    Otherwise it returns large blocks to the system, which clears them page by page when they are asked for
    again: up to a fifth of a step. Only glibc can be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of the settings in malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # the most that older ones take
