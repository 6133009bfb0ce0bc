"""Standardisation as part of a network, so that an exported model takes and returns raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from mdlstm_tk._util.checks import check_unmasked
from mdlstm_tk._util.masking import Sizes
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.tiling.stages import TileStages, stages_of

Numbers = Sequence[float] | npt.NDArray[Any]


class Normalized(nn.Module):
    """A network with standardised inputs, and with outputs scaled back to the range of the targets.

    Args:
        network: maps standardised x, and sizes if there are any, to the prediction.
        mean: mean of each channel of x.
        std: standard deviation of each channel of x.
        target_mean: mean of each output; empty if the outputs of the network are not to be scaled.
        target_std: standard deviation of each output; empty if the outputs are not to be scaled.
        device: where these numbers are; it must be the network's.
        dtype: type of these numbers, torch's default if not given; it must be the network's.
    """

    mean: Tensor
    std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Numbers,
        std: Numbers,
        target_mean: Numbers = (),
        target_std: Numbers = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.scales_targets = len(target_mean) > 0
        buffers = {"mean": mean, "std": std, "target_mean": target_mean, "target_std": target_std}
        for one, other in (("mean", "std"), ("target_mean", "target_std")):
            if len(buffers[one]) != len(buffers[other]):
                counts = f"{len(buffers[one])} and {len(buffers[other])}"
                raise InputError(f"{one} and {other} must be equally many numbers, got {counts}")
        if not len(mean):
            raise InputError("mean and std must be a number for each channel, got none")
        dtype = dtype or torch.get_default_dtype()  # not that of an array
        for name, values in buffers.items():
            check_unmasked(name, values)
            if len(values):
                numbers = torch.tensor(
                    values, device="cpu", dtype=dtype
                )  # tensors on "meta" have no values
                is_std = name.endswith("std")
                if not (numbers.isfinite().all() and (not is_std or (numbers > 0).all())):
                    rule = "numbers above 0" if is_std else "finite numbers"
                    raise InputError(
                        f"{name} must be {rule} in {numbers.dtype}, got {list(map(float, values))}"
                    )
                self.register_buffer(name, torch.tensor(values, device=device, dtype=dtype))

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Any:
        """Map raw x (N, *grid, C) to the prediction of the network, in the units of the targets."""
        _check_features("x", x, len(self.mean))
        x = (x - self.mean) / self.std
        y: Any = self.network(x) if sizes is None else self.network(x, sizes)
        if not self.scales_targets:
            return y
        for each in y if isinstance(y, tuple) else [y]:  # with auxiliary predictions
            _check_features("the prediction", each, len(self.target_mean))
        if isinstance(y, tuple):
            return tuple(each * self.target_std + self.target_mean for each in y)
        return y * self.target_std + self.target_mean

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles.

        Raises:
            InputError: the network within cannot run in tiles.
        """
        inner = stages_of(self.network)
        first, *later_stages = inner.stages
        maps = [_Standardised(self.mean, self.std), first.before]
        before = nn.Sequential(*(module for module in maps if module is not None))
        head = inner.head
        if self.scales_targets:
            positions = prod(inner.upsample)  # their features are side by side before they are spread
            scaled = _Rescaled(self.target_mean.repeat(positions), self.target_std.repeat(positions))
            head = scaled if head is None else nn.Sequential(head, scaled)
        return replace(inner, stages=[replace(first, before=before), *later_stages], head=head)


class _Standardised(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _Rescaled(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, y: Tensor) -> Tensor:
        return y * self.std + self.mean


def _check_features(label: str, values: Tensor, count: int) -> None:
    if values.shape[-1] != count:
        raise InputError(
            f"{label} has {counted(values.shape[-1], 'channel')}, but mean and std are of {count}; give a "
            "number for each"
        )
