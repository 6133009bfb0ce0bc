"""The network to export, and the inputs that it takes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.sizes import format_size

AXIS_NAMES = {1: "T", 2: "H W", 3: "D H W"}
Grid = tuple[int, ...]


@dataclass(frozen=True)
class ExportSpec:
    """A network and the inputs that it is exported with.

    Attributes:
        module: a copy of the network in eval mode, on the CPU, in float32.
        grid: extents to export for; None stands for any.
        ndim: D, the number of grid axes.
        channels: C.
        channels_last: whether x is (N, *grid, C); otherwise it is (N, C, *grid).
        padded: whether `sizes` (N, D) is an input.
        extra_inputs: an example batch of each further input, by name.
        y_shape: shape of y for a batch of 2 on `example_grid`.
    """

    module: nn.Module
    grid: Grid | None
    ndim: int
    channels: int
    channels_last: bool
    padded: bool
    extra_inputs: dict[str, Tensor]
    y_shape: tuple[int, ...] = ()

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        grid: Grid | None,
        channels: int | None,
        channels_last: bool | None,
        padded: bool,
        extra_inputs: Mapping[str, Tensor],
    ) -> ExportSpec:
        """Complete the arguments of `export_onnx` from the network itself, and run it once.

        Raises:
            InputError: `channels` is None and the network has no MDLSTM layer, or the network does not
                accept such inputs.
        """
        class_name = type(module).__name__
        layer = next((m for m in module.modules() if isinstance(m, MDLSTM)), None)
        if layer is None and channels is None:
            raise InputError(
                f"{class_name} has no MDLSTM layer to take the channels of x from; give channels="
            )
        if channels is None:
            channels = layer.input_size if layer else 0
        if channels_last is None:
            channels_last = layer is None or layer.channels_last
        ndim = len(grid) if grid else (layer.ndim if layer else 2)
        parameters = inspect.signature(module.forward).parameters.values()
        parameter_names = {p.name for p in parameters}
        takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for name in [*(["sizes"] if padded else []), *extra_inputs]:
            if name not in parameter_names and not takes_any_name:
                raise InputError(
                    f"{class_name}.forward has no argument '{name}', it has {', '.join(parameter_names)}"
                )
        spec = cls(
            module=copy.deepcopy(module).cpu().float().eval(),
            grid=grid,
            ndim=ndim,
            channels=channels,
            channels_last=channels_last,
            padded=padded,
            extra_inputs={name: value.detach().cpu() for name, value in extra_inputs.items()},
        )
        return replace(spec, y_shape=spec._run_once())

    @property
    def example_grid(self) -> Grid:
        """The grid; for a network that takes any, small extents other than 1."""
        return self.grid or (5, 7, 3, 4, *(3,) * self.ndim)[: self.ndim]

    @property
    def grid_axes(self) -> range:
        """The axes of x that are grid axes."""
        return range(1, self.ndim + 1) if self.channels_last else range(2, self.ndim + 2)

    def x_shape(self, grid: Grid, batch: int) -> tuple[int, ...]:
        """The shape of x on a grid."""
        return (batch, *grid, self.channels) if self.channels_last else (batch, self.channels, *grid)

    def extra_batch(self, batch: int) -> dict[str, Tensor]:
        """The extra inputs for a batch: the samples of their examples, repeated as often as needed."""
        return {name: value[torch.arange(batch) % len(value)] for name, value in self.extra_inputs.items()}

    def examples(self) -> dict[str, Tensor]:
        """All inputs for a batch of 2 on `example_grid`, by name; x comes first."""
        examples = {"x": torch.zeros(self.x_shape(self.example_grid, 2))}
        if self.padded:
            examples["sizes"] = torch.tensor([self.example_grid] * 2)
        return examples | self.extra_batch(2)

    def metadata(self, form: str, dtype: str, fields: Mapping[str, Any]) -> Metadata:
        """The metadata of the exported file; `fields` are the ones that the network does not tell."""
        axes = AXIS_NAMES.get(self.ndim, " ".join(f"E{d + 1}" for d in range(self.ndim)))
        feature_axis = -1 if self.channels_last or not self.window else 1
        return Metadata(
            version=__version__,
            grid=self.grid,
            form=form,
            layout=f"N {axes} C" if self.channels_last else f"N C {axes}",
            channels=self.channels,
            outputs=self.y_shape[feature_axis] if len(self.y_shape) > 1 else 1,
            inputs=tuple(self.examples()),
            window=self.window,
            dtype=dtype,
            **fields,
        )

    @property
    def window(self) -> Grid | None:
        """For each axis, the extent of x that one position of y stands for; None if y has no grid.

        The product of the layers' windows is tried first, because several windows may give the same
        extent of y.
        """
        if len(self.y_shape) != self.ndim + 2:
            return None
        layers = [m for m in self.module.modules() if isinstance(m, MDLSTM) and m.ndim == self.ndim]
        window = []
        for d, axis in enumerate(self.grid_axes):
            x_extent, y_extent = self.example_grid[d], self.y_shape[axis]
            candidates = (prod(layer.window[d] for layer in layers), *range(1, x_extent + 1))
            fitting = [size for size in candidates if -(-x_extent // size) == y_extent]
            if not fitting:
                return None
            window.append(fitting[0])
        return tuple(window)

    @torch.no_grad()
    def _run_once(self) -> tuple[int, ...]:
        """The shape of y for `examples`."""
        examples = self.examples()
        x = examples.pop("x")
        try:
            y = self.module(x, **examples)
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the network does not accept a {format_size(self.example_grid)} grid with "
                f"{self.channels} channels: {reason}"
            ) from error
        if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != 2:
            result = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise InputError(
                f"{type(self.module).__name__} must return one tensor (N, …), got {result} for a batch of 2"
            )
        return tuple(y.shape)
