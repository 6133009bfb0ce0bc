"""A network as its file has it: its copy on the CPU, called by name, and the same in float64."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk._util.text import reason_of
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.torch_ops import Capturing
from mdlstm_tk.io import Array
from mdlstm_tk.layer import MDLSTM

NARROW = (torch.float32, torch.float16, torch.bfloat16)

Outputs = dict[str, Array]


class Network(nn.Module):
    """A network with the inputs and outputs of its file, in eval mode.

    Args:
        module: the network; it is copied to the CPU, without the wrappers of `torch.compile`.
        names: the inputs of `forward` after x, in order.
        output_names: as for `named_outputs`.
        integer: x holds integers.
        channel_axis: the network's x has an axis of channels, as that of the file always has.
        channels_last: it is the last axis.
        dtype: of the weights, and of x and the further inputs that are floats.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str] = (),
        output_names: Sequence[str] | None = None,
        *,
        integer: bool = False,
        channel_axis: bool = True,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.module, self.names, self.output_names = eval_copy(module).to(dtype), names, output_names
        self.integer, self.channel_axis, self.channels_last = integer, channel_axis, channels_last
        self.dtype = dtype
        for layer in mdlstm_layers(self):
            layer.backend = "torch"  # which compiles nothing, and takes float64

    @property
    def name(self) -> str:
        """The name of the network's class."""
        return type(self.module).__name__

    def in_dtype(self, dtype: torch.dtype) -> Network:
        """A copy in another dtype. In float64 it is what a file is compared with."""
        other = copy.deepcopy(self).to(dtype)
        other.dtype = dtype
        return other

    def call(self, x: Tensor, **further: Tensor) -> dict[str, Tensor]:
        """The outputs by name, in the dtype of the network."""

        def cast(value: Tensor) -> Tensor:
            return value.to(self.dtype) if value.is_floating_point() else value

        x = x.long() if self.integer and x.is_floating_point() else cast(x)
        if not self.channel_axis:
            x = x.squeeze(-1 if self.channels_last else 1)
        result = self.module(x, **{name: cast(value) for name, value in further.items()})
        return named_outputs(result, self.name, self.output_names)

    def forward(self, x: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
        """The outputs, as an export captures them: floats as float32. x counts as 0 in the padding, as in a
        `Session`, so that a file gives the same numbers in every runtime, whatever layer reads x first."""
        named = dict(zip(self.names, further, strict=True))
        if "sizes" in named:
            axis = -1 if self.channels_last else 1
            x = torch.where(
                valid_mask(grid_of(x, self.channels_last), named["sizes"]).unsqueeze(axis), x, 0
            )
        with Capturing():
            outputs = self.call(x, **named)
        results = [y.float() if y.is_floating_point() else y for y in outputs.values()]
        return tuple(y.clone() if any(y is each for each in (x, *further)) else y for y in results)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        """The outputs for arrays, which are finite numbers for each sample: x without padding, and further
        inputs. A network that needs `sizes` gets the whole grid. In float64 each operation is, whatever
        dtype forward asks for.

        Raises:
            InputError: the network raises an exception, or returns other outputs.
        """
        # Copies in the byte order of this machine: torch warns of arrays that are read-only.
        arrays = {
            name: np.array(value, np.asarray(value).dtype.newbyteorder("="))
            for name, value in inputs.items()
        }
        parameter = inspect.signature(self.module.forward).parameters.get("sizes")
        if parameter is not None and parameter.default is parameter.empty and "sizes" not in inputs:
            grid = grid_of(arrays["x"], self.channels_last)
            arrays["sizes"] = np.array([grid] * len(arrays["x"]))
        is_exact = self.dtype is torch.float64
        try:
            with (
                torch.autocast("cpu", enabled=False),
                _InFloat64() if is_exact else contextlib.nullcontext(),  # type: ignore[no-untyped-call]
            ):
                tensors = self.call(**{name: torch.from_numpy(value) for name, value in arrays.items()})
        except InputError:
            raise
        except Exception as error:  # of all kinds
            shapes = ", ".join(f"{name} of shape {value.shape}" for name, value in arrays.items())
            raise InputError(f"{self.name} does not take {shapes}: {reason_of(error)}") from error
        outputs = {name: y.numpy() for name, y in tensors.items()}
        for name, y in outputs.items():
            if not y.ndim or len(y) != len(arrays["x"]):
                raise InputError(f"{self.name} returns '{name}' {y.shape} for {len(arrays['x'])} samples")
            if not y.size or not np.isfinite(y).all():
                value = "NaN or infinity" if y.size else "nothing"
                raise InputError(f"{self.name} returns {value} as '{name}' for x {arrays['x'].shape}")
        return outputs


class _InFloat64(TorchDispatchMode):
    """Every operation in float64, whatever dtype it asks for."""

    supports_higher_order_operators = True  # such as torch.cond

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        return tree_map(_widened, func(*args, **kwargs))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


def grid_of(x: Any, channels_last: bool) -> tuple[int, ...]:
    """The extents of the grid of x (N, *grid, C) or (N, C, *grid)."""
    return tuple(x.shape[1:-1] if channels_last else x.shape[2:])


def eval_copy(module: nn.Module) -> nn.Module:
    """A copy of a network on the CPU in eval mode, without the wrappers of `torch.compile`: compiling it
    for each grid of a verification would take far longer than running it."""
    # torch does not copy a weight that is computed, as by torch.nn.utils.weight_norm and pruning. The next
    # forward computes it anew.
    attributes = [value for part in module.modules() for value in vars(part).values()]
    computed = [v for v in attributes if isinstance(v, Tensor) and not v.is_leaf]
    copied = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    network = nn.ModuleDict({"network": copied}).cpu().eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "_orig_mod"):
                setattr(parent, name, child._orig_mod)
    return network["network"]


def mdlstm_layers(network: nn.Module) -> Iterator[MDLSTM]:
    """The MDLSTM layers of a network, in order."""
    return (module for module in network.modules() if isinstance(module, MDLSTM))


def named_outputs(result: Any, network: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors that a network, called `network` in messages, returned as a tensor, tuple, list or dict.

    Their names are `names`, else the keys of a dict, or "y", "y1", "y2", …

    Raises:
        InputError: `result` is of another type, or `names` has another length, or two names are equal.
    """
    if not isinstance(result, Mapping):
        values = result if isinstance(result, tuple | list) else [result]
        result = {f"y{k}" if k else "y": value for k, value in enumerate(values)}
    own, values = [str(key) for key in result], list(result.values())
    names = own if names is None else list(names)
    if not values or any(not isinstance(value, Tensor) or value.is_complex() for value in values):
        got = ", ".join(str(getattr(value, "dtype", type(value).__name__)) for value in values)
        raise InputError(
            f"{network} returns {got or 'nothing'}, expected a tensor of real numbers, or a tuple, list "
            "or dict of such; wrap it in a module that returns that"
        )
    if len(names) != len(own) or len({*names}) < len(names) or not all(names):
        raise InputError(
            f"{network} returns the outputs {', '.join(own)}, which need as many different names, got "
            f"{', '.join(map(repr, names))}; give them as output_names=..."
        )
    return dict(zip(names, values, strict=True))


def find_layout(network: nn.Module, x: Sequence[int] | None) -> bool | None:
    """True if an x of this shape is channels-last: the layout of the first MDLSTM layer, unless x has the
    channels of a convolution before that layer on the other axis; None if the network has neither."""
    kinds = (MDLSTM, nn.modules.conv._ConvNd)
    first = next((module for module in network.modules() if isinstance(module, kinds)), None)
    if isinstance(first, nn.modules.conv._ConvNd) and x is not None:
        fitting = [last for last in (True, False) if x[-1 if last else 1] == first.in_channels]
        if len(fitting) == 1:
            return fitting[0]
    layer = next(mdlstm_layers(network), None)
    return None if layer is None else layer.channels_last


def float64_reference(module: nn.Module, output_names: Sequence[str] | None = None) -> Callable[..., Any]:
    """The ground truth: the network in float64, whatever dtype its forward asks for.

    Args:
        module: the network; it is copied.
        output_names: names of its outputs, if it has several; None: as for `export_onnx`.

    Returns:
        A function of x, and of further inputs by name, all NumPy arrays. Like a `Session`, it returns an
        array, or a dict of arrays if the network has several outputs.
    """
    exact = Network(module, (), output_names, dtype=torch.float64)

    def run(x: Array, **inputs: Array) -> Any:
        exact.channels_last = find_layout(exact.module, np.shape(x)) is not False
        outputs = exact.run({"x": x, **inputs})
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    return run
