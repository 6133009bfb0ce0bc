"""A network as its file has it, and the float64 reference."""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.capturable import Capturable
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Precision
from mdlstm_tk.layer import MDLSTM

REFUSALS = (Exception,)  # of inputs, by networks
DECISIONS = ("round", "floor", "ceil", "trunc", "gt", "ge", "lt", "le")  # of floats, with steps as results
AUTOCAST_LOCK = threading.RLock()


class OutputError(InputError):
    """What a network returns cannot be the outputs of a file, whatever it takes."""


class Interface(nn.Module):
    """A network with the inputs and outputs of its file: floats are float32, and x has an axis of channels.

    Args:
        network: the network; it is copied to the CPU, in eval mode and without the wrappers of
            `torch.compile`.
        names: the inputs of `forward` after x, in order.
        output_names: as for `named_outputs`.
        integer: x holds integers.
        channel_axis: the network's x has an axis of channels.
        channels_last: it is the last axis.
        mixed: the network takes float32, and converts it for layers that keep other dtypes.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str] = (),
        output_names: Sequence[str] | None = None,
        *,
        integer: bool = False,
        channel_axis: bool = True,
        channels_last: bool = True,
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.module, self.names, self.output_names = eval_copy(network), names, output_names
        self.integer, self.channel_axis, self.channels_last = integer, channel_axis, channels_last
        self.mixed = mixed

    @property
    def name(self) -> str:
        """The name of the network's class."""
        return type(self.module).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The type that floating-point inputs are cast to: that of the first such parameter or buffer."""
        return torch.float32 if self.mixed else next(iter(float_dtypes(self.module)), torch.float32)

    def call(self, x: Tensor, **further: Tensor) -> dict[str, Tensor]:
        """The outputs by name, in the precision of the network, whatever autocast says."""

        def cast(value: Tensor) -> Tensor:
            return value.to(self.dtype) if value.is_floating_point() else value

        x = x.long() if self.integer and x.is_floating_point() else cast(x)
        if not self.channel_axis:
            x = x.squeeze(-1 if self.channels_last else 1)
        with without_autocast():
            result = self.module(x, **{name: cast(value) for name, value in further.items()})
        return named_outputs(result, self.name, self.output_names)

    def forward(self, x: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
        """The outputs, floats as float32. x counts as 0 in the padding, as in a `Session`, so that a file
        gives the same numbers in every runtime, whatever layer reads x first."""
        named = dict(zip(self.names, further, strict=True))
        if "sizes" in named:
            axis = -1 if self.channels_last else 1
            grid = x.shape[1:-1] if self.channels_last else x.shape[2:]
            x = torch.where(valid_mask(grid, named["sizes"]).unsqueeze(axis), x, 0)
        with Capturable():
            outputs = self.call(x, **named)
        return tuple(y.float() if y.is_floating_point() else y for y in outputs.values())

    def reference(self, precision: Precision) -> Interface:
        """A copy whose MDLSTM layers are computed position by position, in float64 or as the network is."""
        exact = copy.deepcopy(self)
        if precision == "float64":
            exact.double()
        for layer in mdlstm_layers(exact):
            layer.backend = "torch"
        return exact

    def reference_for(self, inputs: Mapping[str, Array]) -> tuple[Interface, Precision]:
        """What a file is compared with, and its precision: the network in float64; or, if that does not
        run, as forward makes tensors of float32, or converts to a dtype, the network as it is."""
        if self.mixed:
            return self.reference("mixed"), "mixed"
        exact = self.reference("float64")
        try:
            exact.run(inputs)
        except InputError:
            with contextlib.suppress(InputError):
                self.run(inputs)
                return self.reference("float32"), "float32"
        return exact, "float64"

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for arrays: x without padding, and further inputs. A network that needs `sizes` gets
        the whole grid.

        Raises:
            InputError: the network raises an exception, or an array is none of real numbers.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in inputs.items():
            array = np.asanyarray(value).copy(order="C")  # torch warns of arrays that are read-only
            if array.dtype.kind not in "buif":
                raise InputError(f"{name} holds {array.dtype}, expected real numbers")
            tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        parameter = parameters_of_forward(self.module).get("sizes")
        if parameter is not None and parameter.default is parameter.empty and "sizes" not in inputs:
            shape = tensors["x"].shape
            grid = shape[1:-1] if self.channels_last else shape[2:]
            tensors["sizes"] = torch.tensor([tuple(grid)] * len(tensors["x"]), device="cpu")
        try:
            outputs = self.call(**tensors)
            return {k: (y.float() if y.dtype is torch.bfloat16 else y).numpy() for k, y in outputs.items()}
        except OutputError:
            raise
        except REFUSALS as error:
            shapes = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in tensors.items())
            raise InputError(f"{self.name} does not take {shapes}: {reason_of(error)}") from error


class Nudged(TorchDispatchMode):
    """Adds a share of the largest number, or of `least`, to floats before they are rounded, compared or
    made integers, so that their results at the edge of a step change."""

    def __init__(self, share: float, least: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share, self.least = share, least

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = (kwargs or {}).get("dtype") or torch.float
        if func._opname in DECISIONS or not (dtype.is_floating_point or dtype.is_complex):
            value = args[0] if args and isinstance(args[0], Tensor) else torch.zeros(())
            # Floats that are all whole come from an operator that rounded them.
            if value.is_floating_point() and value.numel() and (value != value.round()).any():
                args = (value + self.share * value.abs().max().clamp(min=self.least), *args[1:])
        return func(*args, **(kwargs or {}))


def eval_copy(module: nn.Module) -> nn.Module:
    """A copy of a network on the CPU in eval mode, without the wrappers of `torch.compile`: compiling it
    for each grid of a verification would take far longer than running it.

    Raises:
        InputError: a weight has no values yet, or the network cannot be copied, as after
            `torch.nn.utils.weight_norm` and pruning, if it holds a lock, or in training mode a forward that
            was set on the object.
    """
    for key, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise InputError(
                f"the module {type(module).__name__} has no values in {key}, which is lazy or on the "
                "device meta; run it once on an example, or load its weights, first"
            )
    try:
        copied = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied: {reason_of(error)}; remove what copy.deepcopy does "
            "not take, make pruned weights parameters by torch.nn.utils.prune.remove, and in place of "
            "torch.nn.utils.weight_norm use torch.nn.utils.parametrizations"
        ) from error
    for name, part in module.named_modules():
        is_own = isinstance(vars(part).get("forward"), FunctionType) and not isinstance(
            part, OptimizedModule
        )
        if is_own and part.training:
            raise _runs_original(f"the forward of {name or type(module).__name__}")
    network = nn.ModuleDict({"network": copied}).cpu().eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, OptimizedModule):
                setattr(parent, name, child._orig_mod)
    return network["network"]


def _runs_original(what: str) -> InputError:
    return InputError(
        f"{what} is run by a function of the object, such as a lambda, so that a copy still runs the "
        "original, which is in training mode; call eval() before the export"
    )


@contextlib.contextmanager
def without_original(module: nn.Module) -> Iterator[None]:
    """While a copy of a module runs, keep parts of the original that are in training mode from running,
    which would change their statistics.

    Raises:
        InputError: the copy tried to.
    """
    refused: list[str] = []

    def refuse(part: nn.Module, _: Any) -> None:
        if part.training:  # a copy is not
            refused.append(type(part).__name__)
            raise _runs_original(refused[0])

    parts = [part for part in module.modules() if part.training]
    hooks = [
        part.register_forward_pre_hook(refuse)
        for part in parts
        if not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        yield
    except Exception as error:
        if refused:
            raise _runs_original(refused[0]) from error
        raise
    else:
        if refused:
            raise _runs_original(refused[0])
    finally:
        for hook in hooks:
            hook.remove()


def mdlstm_layers(network: nn.Module) -> Iterator[MDLSTM]:
    """The MDLSTM layers of a network, in order."""
    return (module for module in network.modules() if isinstance(module, MDLSTM))


def float_dtypes(network: nn.Module) -> list[torch.dtype]:
    """The dtypes of a network's weights that are floats, in the order of its layers."""
    weights = chain(network.parameters(), network.buffers())
    return list(dict.fromkeys(w.dtype for w in weights if w.is_floating_point()))


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Turn autocast off in this thread, also where a network turns it on: a file has the precision that the
    export names."""
    thread = threading.get_ident()
    with AUTOCAST_LOCK:
        enter: Any = torch.autocast.__enter__

        def enter_disabled(context: Any) -> Any:
            enabled = context._enabled
            context._enabled = enabled and threading.get_ident() != thread
            try:
                return enter(context)
            finally:
                context._enabled = enabled

        # A captured network loses the names of its modules inside of a context of autocast.
        is_on = torch.is_autocast_enabled("cpu")
        off = torch.autocast("cpu", enabled=False) if is_on else contextlib.nullcontext()
        with off, mock.patch.object(torch.autocast, "__enter__", enter_disabled):
            yield


def named_outputs(result: Any, network: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors that a network, called `network` in messages, returned as a tensor, tuple, list, dict or
    dataclass.

    Their names are `names`, else the keys of a dict, the fields of a named tuple or of a dataclass, or "y",
    "y1", "y2", …

    Raises:
        OutputError: `result` is of another type, or `names` has another length, or two names are equal.
    """
    if is_dataclass(result) and not isinstance(result, Mapping):
        result = {field.name: getattr(result, field.name) for field in fields(result)}
    if isinstance(result, Mapping):
        result_names, values = [str(key) for key in result], list(result.values())
    else:
        values = list(result) if isinstance(result, tuple | list) else [result]
        numbered = [f"y{k}" if k else "y" for k in range(len(values))]
        result_names = list(getattr(result, "_fields", numbered))
    names = result_names if names is None else list(names)
    if len(names) != len(values):
        raise OutputError(
            f"{network} returns {counted(len(values), 'output')} ({', '.join(result_names)}), but "
            f"output_names has {len(names)}: {', '.join(names)}"
        )
    if len(set(names)) < len(names) or not all(names):
        raise OutputError(
            f"the outputs of {network} need different names, got {', '.join(map(repr, names))}; "
            "give them as output_names=..."
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            raise OutputError(
                f"{network} returns a {type(value).__name__} as output '{name}', expected a tensor, or a "
                "tuple, list, dict or dataclass of tensors; wrap it in a module that returns that"
            )
        if value.is_complex():
            raise OutputError(
                f"{network} returns complex numbers as output '{name}', which ONNX Runtime does not have; "
                "return torch.view_as_real of them"
            )
    if not values:
        raise OutputError(f"{network} returns no output, expected at least one tensor")
    return dict(zip(names, values, strict=True))


def parameters_of_forward(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a forward, without self.

    Raises:
        InputError: it tells none, as that of a traced module.
    """
    try:
        return inspect.signature(module.forward).parameters
    except ValueError:
        raise InputError(
            f"the forward of {type(module).__name__} names no inputs, as those of modules that torch.jit "
            "traced; give the module that was traced"
        ) from None


def find_layout(network: nn.Module, x: Sequence[int] | None) -> bool | None:
    """True if an x of this shape is channels-last: the layout of the first MDLSTM layer, unless x has the
    channels of a convolution before that layer on the other axis; None if the network has neither."""
    kinds = (MDLSTM, _ConvNd)
    first = next((module for module in network.modules() if isinstance(module, kinds)), None)
    if isinstance(first, _ConvNd) and x is not None:
        fitting = [last for last in (True, False) if x[-1 if last else 1] == first.in_channels]
        if len(fitting) == 1:
            return fitting[0]
    layer = next(mdlstm_layers(network), None)
    return None if layer is None else layer.channels_last


@checked
def float64_reference(module: nn.Module, output_names: Sequence[str] | None = None) -> Callable[..., Any]:
    """The ground truth: the network in float64, its MDLSTM layers computed position by position.

    Args:
        module: the network; it is copied.
        output_names: names of its outputs, if it has several; None: as for `export_onnx`.

    Returns:
        A function of x, and of further inputs by name, all NumPy arrays. Like a `Session`, it returns an
        array, or a dict of arrays if the network has several outputs.
    """
    exact = Interface(module, (), output_names).reference("float64")

    def run(x: Array, **inputs: Array) -> Any:
        exact.channels_last = find_layout(exact.module, np.shape(x)) is not False
        outputs = exact.run({"x": x, **inputs})
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    return run
