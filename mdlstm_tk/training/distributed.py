"""One process or many: who leads, what each takes, and how they add up. Many are started by torchrun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from mdlstm_tk.errors import DeviceError, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 leads, and alone writes.
        world: how many there are.
        device: of this one.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, count: int) -> slice:
        """What of `count` samples is this process's.

        Raises:
            InputError: they cannot be shared evenly.
        """
        if count % self.world:
            raise InputError(f"batch_size {count} cannot be shared by {self.world} processes evenly")
        share = count // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def leader(self, value: T) -> T:
        """What the leader's value is."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def join(device: str) -> Ranks:
    """This process's place: alone, or as torchrun says, with gloo between CPUs and NCCL between GPUs.

    Raises:
        InputError: no such kind of device.
        DeviceError: the device is not there.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(0, 1, pick_device(device))
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = pick_device(device)
    if not dist.is_initialized():
        if place.type == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size(), place)


def pick_device(device: str) -> torch.device:
    """The torch device that "auto", "cpu", "cuda" or "cuda:N" stands for.

    Raises:
        InputError: another name.
        DeviceError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device '{device}' is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return torch.device(device)
