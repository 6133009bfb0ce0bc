"""What is exported: a network, and the inputs that it takes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.sizes import format_size

AXES = {1: "T", 2: "H W", 3: "D H W"}
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A network and what it takes.

    Attributes:
        module: a copy in eval mode, on the CPU, in float32.
        grid: the extents to export for; None: any.
        ndim: D.
        channels: C.
        channels_last: whether x is (N, *grid, C), else it is (N, C, *grid).
        sizes: whether sizes are an input.
        others: further inputs: an example batch of each.
        y: the shape that comes out for a batch of 2 on the grid, or on the example's.
    """

    module: nn.Module
    grid: Grid | None
    ndim: int
    channels: int
    channels_last: bool
    sizes: bool
    others: dict[str, Tensor]
    y: tuple[int, ...]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        grid: Grid | None,
        channels: int | None,
        channels_last: bool | None,
        sizes: bool,
        others: Mapping[str, Tensor],
    ) -> Subject:
        """Find out what is not given.

        Raises:
            InputError: the channels cannot be told, or the network does not take such inputs.
        """
        name = type(module).__name__
        layer = next((m for m in module.modules() if isinstance(m, MDLSTM)), None)
        if layer is None and channels is None:
            raise InputError(f"{name} has no MDLSTM layer that tells the channels of x; give channels=")
        if channels is None:
            channels = layer.input_size if layer else 0
        if channels_last is None:
            channels_last = layer is None or layer.channels_last
        ndim = len(grid) if grid else (layer.ndim if layer else 2)
        takes = inspect.signature(module.forward).parameters.values()
        named = {p.name for p in takes}
        for wanted in [*(["sizes"] if sizes else []), *others]:
            if wanted not in named and not any(p.kind is p.VAR_KEYWORD for p in takes):
                raise InputError(f"{name}.forward takes no '{wanted}', it takes {', '.join(named)}")
        module = copy.deepcopy(module).cpu().float().eval()
        named_others = {key: value.detach().cpu() for key, value in others.items()}
        subject = cls(module, grid, ndim, channels, channels_last, sizes, named_others, ())
        return cls(module, grid, ndim, channels, channels_last, sizes, named_others, subject._try())

    @property
    def example_grid(self) -> Grid:
        """The grid, or the extents to show a network that takes any: none of them 1."""
        return self.grid or (5, 7, 3, 4, *(3,) * self.ndim)[: self.ndim]

    @property
    def grid_axes(self) -> range:
        """Of x."""
        return range(1, self.ndim + 1) if self.channels_last else range(2, self.ndim + 2)

    def shape(self, grid: Grid, batch: int) -> tuple[int, ...]:
        """Of x."""
        return (batch, *grid, self.channels) if self.channels_last else (batch, self.channels, *grid)

    def named(self, batch: int) -> dict[str, Tensor]:
        """The further inputs for a batch: the examples' samples, over and over."""
        return {name: value[torch.arange(batch) % len(value)] for name, value in self.others.items()}

    def examples(self) -> dict[str, Tensor]:
        """All inputs for a batch of 2."""
        examples = {"x": torch.zeros(self.shape(self.example_grid, 2))}
        if self.sizes:
            examples["sizes"] = torch.tensor([self.example_grid] * 2)
        return examples | self.named(2)

    def metadata(self, form: str, dtype: str, about: Mapping[str, Any]) -> Metadata:
        """What the file says of itself."""
        axes = AXES.get(self.ndim, " ".join(f"E{d + 1}" for d in range(self.ndim)))
        return Metadata(
            version=__version__,
            grid=self.grid,
            form=form,
            layout=f"N {axes} C" if self.channels_last else f"N C {axes}",
            channels=self.channels,
            outputs=self.y[-1 if self.channels_last or not self.window else 1] if len(self.y) > 1 else 1,
            inputs=tuple(self.examples()),
            window=self.window,
            dtype=dtype,
            **about,
        )

    @property
    def window(self) -> Grid | None:
        """Extents of x that one position of y stands for; None if y has no grid."""
        if len(self.y) != self.ndim + 2:
            return None
        layers = [m for m in self.module.modules() if isinstance(m, MDLSTM) and m.ndim == self.ndim]
        known = [prod(layer.window[d] for layer in layers) for d in range(self.ndim)]
        found = []
        for d, axis in enumerate(self.grid_axes):
            extent, given = self.y[axis], self.example_grid[d]
            fitting = [w for w in (known[d], *range(1, given + 1)) if -(-given // w) == extent]
            if not fitting:
                return None
            found.append(fitting[0])
        return tuple(found)

    @torch.no_grad()
    def _try(self) -> tuple[int, ...]:
        x, *_ = examples = list(self.examples().values())
        try:
            y = self.module(x, **dict(zip(list(self.examples())[1:], examples[1:], strict=True)))
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the network does not take a {format_size(self.example_grid)} grid of {self.channels} "
                f"channels: {reason}"
            ) from error
        if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != 2:
            came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise InputError(
                f"{type(self.module).__name__} must give one tensor (N, …); for a batch of 2 came {came}"
            )
        return tuple(y.shape)
