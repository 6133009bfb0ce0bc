"""Data-parallel training: one process, or several, which `in_processes` or torchrun starts."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdlstm_tk._util.sizes import parse_device
from mdlstm_tk.errors import DeviceError, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process among the processes that train together.

    Attributes:
        rank: index of this process; rank 0 is the main process, the only one that writes files.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def shard(self) -> slice:
        """The samples of each batch that this process handles.

        Batches may be sorted by size: of neighbours, each process takes one, so that none waits for the one
        that has all large samples.
        """
        return slice(self.rank, None, self.world_size)

    def share(self, batch_size: int) -> int:
        """The number of samples of each training batch that this process handles.

        Raises:
            InputError: `batch_size` is not divisible by the number of processes.
        """
        if batch_size % self.world_size:
            raise InputError(
                f"batch_size {batch_size} cannot be shared evenly by {self.world_size} processes; "
                "choose a multiple of their number"
            )
        return batch_size // self.world_size

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sums of `values` over all processes."""
        sums = self.sum_on_device(values)
        return sums if isinstance(sums, list) else sums.tolist()

    def sum_on_device(self, values: Sequence[Tensor | float]) -> Tensor | list[float]:
        """The sums of numbers over all processes, in float64.

        On a GPU they are a tensor there, and the call does not synchronize.
        """
        if self.world_size == 1 and self.device.type == "cpu":
            return [float(value) for value in values]
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        tensor = torch.stack(
            [v.to(**options) if isinstance(v, Tensor) else torch.full((), v, **options) for v in values]
        )
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist() if self.device.type == "cpu" else tensor

    def all_gather(self, values: list[T]) -> list[T]:
        """The values of all processes, concatenated in rank order. They are pickled."""
        if self.world_size == 1:
            return values
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def all_names(self, names: Iterable[str]) -> list[str]:
        """The names that any of the processes passes, each once."""
        return list(dict.fromkeys(self.all_gather(list(names))))

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the buffers of the main one, such as the statistics of its batches."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def main_number(self, value: float) -> float:
        """The number that the main process passes, in float64. On a GPU the call synchronizes."""
        if self.world_size == 1:
            return value
        number = torch.full((), value, dtype=torch.float64, device=self.device)
        dist.broadcast(number, src=0)
        return number.item()

    def broadcast(self, value: T) -> T:
        """The value that the main process passes."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def init(device: str) -> DistributedContext:
    """Join the processes that torchrun started, or train alone.

    Processes on CPUs communicate with gloo, on GPUs with NCCL. A later call names the same type of device.

    Raises:
        InputError: `device` is not a device name, or is one GPU for several processes of this machine.
        DeviceError: the device does not exist.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return DistributedContext(0, 1, pick_device(device))
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif device.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise InputError(f"several processes cannot share {device}; give --device cuda for one GPU each")
    rank_device = pick_device(device)
    if not dist.is_initialized():
        if rank_device.type == "cuda":
            torch.cuda.set_device(rank_device)
        dist.init_process_group("nccl" if rank_device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), rank_device)


def pick_device(device: str) -> torch.device:
    """The torch device that "auto", "cpu", "cuda" or "cuda:N" stands for.

    Raises:
        InputError: another name.
        DeviceError: the device does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, index = parse_device(device)
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise DeviceError(
            f"device '{device}' does not exist: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return torch.device(device)
