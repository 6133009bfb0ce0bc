"""Standardisation as part of a network, so that an exported model takes and returns raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes
from mdlstm_tk.errors import InputError
from mdlstm_tk.tiling.stages import TileStages, stages_of


class Normalized(nn.Module):
    """A network with standardised inputs, and with outputs scaled back to the range of the targets.

    Args:
        network: maps standardised x, and sizes if there are any, to the prediction.
        mean, std: mean and standard deviation of each channel of x.
        target_mean, target_std: of each output; empty if the outputs of the network are not to be scaled.
    """

    mean: Tensor
    std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        target_mean: Sequence[float] = (),
        target_std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.columns_per_step = getattr(network, "columns_per_step", None)
        self.scales_targets = len(target_mean) > 0
        numbers = {"mean": mean, "std": std}
        if self.scales_targets:
            numbers |= {"target_mean": target_mean, "target_std": target_std}
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Any:
        """Map raw x (N, *grid, C) to the prediction of the network, in the units of the targets.

        Raises:
            InputError: x, or the prediction, has more or fewer channels than there are numbers.
        """
        _check_channels("x", x, self.mean, self.std)
        x = (x - self.mean) / self.std
        y: Any = self.network(x) if sizes is None else self.network(x, sizes)
        if not self.scales_targets:
            return y
        if isinstance(y, tuple):  # with auxiliary predictions
            return tuple(map(self._rescaled, y))
        return self._rescaled(y)

    def _rescaled(self, y: Tensor) -> Tensor:
        _check_channels("the prediction", y, self.target_mean, self.target_std)
        return y * self.target_std + self.target_mean

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles.

        Raises:
            InputError: the network within cannot run in tiles.
        """
        inner = stages_of(self.network)
        first, *later_stages = inner.stages
        before = nn.Sequential(_Standardised(self.mean, self.std), first.before or nn.Identity())
        head = inner.head
        if self.scales_targets:
            positions = prod(inner.upsample)  # their features are side by side before they are spread
            scaled = _Rescaled(self.target_mean.repeat(positions), self.target_std.repeat(positions))
            head = nn.Sequential(head or nn.Identity(), scaled)
        return replace(inner, stages=[replace(first, before=before), *later_stages], head=head)


class _Standardised(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _Rescaled(_Standardised):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


def _check_channels(label: str, x: Tensor, mean: Tensor, std: Tensor) -> None:
    """Numbers for one channel would be taken for all, and one channel would become several."""
    if not x.shape[-1] == len(mean) == len(std):
        counts = f"{len(mean)} and {len(std)} numbers; give one for each"
        raise InputError(f"{label} has {x.shape[-1]} channels, but mean and std are {counts}")
