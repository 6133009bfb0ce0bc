"""Several processes that train together, as torchrun starts them: each takes its share of every batch."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdlstm_tk._util.sizes import parse_device
from mdlstm_tk.errors import DeviceError, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process among those that train together. The one of rank 0 alone writes and prints."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def shard(self) -> slice:
        """The samples of each batch that this process handles: of neighbours, which are of similar size,
        each process has one."""
        return slice(self.rank, None, self.size)

    def share(self, batch_size: int) -> int:
        """The samples of a batch that this process handles.

        Raises:
            InputError: they cannot be shared evenly.
        """
        if batch_size % self.size:
            raise InputError(f"batch_size {batch_size} cannot be shared evenly by {self.size} processes")
        return batch_size // self.size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the buffers of the main one, such as the statistics of its batches."""
        for buffer in network.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, src=0)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        parts: list[T] = [value] * self.size
        dist.all_gather_object(parts, value)
        return parts

    def broadcast(self, value: T) -> T:
        """The value of the main process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def seed(self, seed: int) -> None:
        """Seed dropout. `torch.manual_seed` seeds all kinds of device, which takes longer than the backward
        pass of a small layer."""
        torch.default_generator.manual_seed(seed % 2**63)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed % 2**63)


def join(device: str) -> Group:
    """Join the processes that torchrun started, or train alone. Processes on CPUs communicate with gloo, on
    GPUs with NCCL.

    Raises:
        DeviceError: the device does not exist.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group(pick_device(device))
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        atexit.register(leave)
    return Group(pick_device(device), dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Leave the processes that `join` joined. Gloo's threads would end an interpreter that exits with
    "terminate called without an active exception" now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise DeviceError(f"device '{device}' does not exist: {seen}; use --device cpu")
    return torch.device(device)
