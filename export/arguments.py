"""What the arguments of `export_onnx` say about the inputs of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType

import torch
from torch import Tensor, nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM

Grid = tuple[int, ...]
Examples = Tensor | Sequence[Tensor | None]


@dataclass(frozen=True)
class InputArguments:
    """The arguments of `export_onnx` that describe the inputs; `export_onnx` documents them.

    Attributes:
        x: the first of the example inputs, float32; None if there are none.
        extra_inputs: an example batch of each further input but `sizes`, float32 or int64.
        multiple_of: one number for all axes, or one for each.
    """

    x: Tensor | None
    grid: Grid | None
    channels: int | None
    channels_last: bool | None
    padded: bool
    extra_inputs: dict[str, Tensor]
    multiple_of: int | Sequence[int] | None

    def multiples(self, ndim: int) -> Grid:
        """`multiple_of` for each axis; 1 where any extent will do.

        Raises:
            InputError: they are not `ndim` numbers of at least 1, or the grid is none of the multiples.
        """
        given = 1 if self.multiple_of is None else self.multiple_of
        multiples = (given,) * ndim if isinstance(given, int) else tuple(given)
        if len(multiples) != ndim or any(not isinstance(m, int) or m < 1 for m in multiples):
            raise InputError(
                f"multiple_of must be one number, or {ndim} numbers, of at least 1, got {given!r}"
            )
        if self.grid and any(extent % m for extent, m in zip(self.grid, multiples, strict=True)):
            raise InputError(
                f"grid {format_size(self.grid)} is not a multiple of {format_size(multiples)}, "
                "which multiple_of asks for; change one of them"
            )
        return multiples


def read_arguments(
    module: nn.Module,
    example_inputs: Examples | None,
    grid: Sequence[int] | None,
    channels: int | None,
    channels_last: bool | None,
    padded: bool,
    extra_inputs: Mapping[str, Tensor],
    multiple_of: int | Sequence[int] | None,
) -> InputArguments:
    """Combine the example inputs with the other arguments of `export_onnx`.

    Raises:
        InputError: the module has no such input, or an input is missing, is given twice or has an
            unsupported type.
    """
    network, accepted, takes_any_name, required = _signature(module)
    examples: Sequence[Tensor | None] = []
    if isinstance(example_inputs, Tensor):
        examples = [example_inputs]
    elif isinstance(example_inputs, tuple | list):
        examples = example_inputs
    if any(not isinstance(example, Tensor | NoneType) for example in examples):
        examples = []
    x = examples[0] if examples else None
    if example_inputs is not None and (x is None or x.dim() < 3 or not x.is_floating_point()):
        got = type(example_inputs).__name__ if x is None else f"{x.dtype} of shape {tuple(x.shape)}"
        raise InputError(
            "example_inputs must be x, a floating-point tensor (N, *grid, C) or (N, C, *grid), or a tuple "
            f"of tensors that begins with it, got {got}; give inputs by name as extra_inputs="
        )
    if len(examples) > max(len(accepted), 1):
        raise InputError(
            f"example_inputs has {len(examples)} tensors, but {network}.forward takes "
            f"{', '.join(accepted)}; give inputs by name as extra_inputs="
        )
    further = {
        name: value
        for name, value in zip(accepted[1:], examples[1:], strict=False)
        if isinstance(value, Tensor)
    }
    if twice := sorted(further.keys() & extra_inputs.keys()):
        raise InputError(f"{', '.join(twice)} is in both example_inputs and extra_inputs; give it once")
    padded = padded or further.pop("sizes", None) is not None
    further |= extra_inputs
    given = [*(["sizes"] if padded else []), *further]
    for name in given:
        if name not in accepted and not takes_any_name:
            raise InputError(
                f"{network}.forward has no argument '{name}', it has {', '.join(accepted)}; "
                f"change {'padded' if name == 'sizes' else 'extra_inputs'}="
            )
    if missing := [name for name in required if name not in given]:
        advice = "give padded=True" if missing == ["sizes"] else "give them as example_inputs=(x, …)"
        raise InputError(f"{network}.forward also needs {', '.join(missing)}; {advice}")
    return InputArguments(
        x=None if x is None else x.detach().cpu().float(),
        grid=None if grid is None else tuple(grid),
        channels=channels,
        channels_last=channels_last,
        padded=padded,
        extra_inputs={name: _converted(name, value) for name, value in further.items()},
        multiple_of=multiple_of,
    )


def layout_of_example(
    arguments: InputArguments, network: nn.Module, accepts: Callable[[Tensor, bool], bool]
) -> bool:
    """Whether the example x is channels-last: (N, *grid, C) rather than (N, C, *grid).

    Unless the caller says it, x is repeated along axis 1 and along the last axis: a network takes a larger
    grid, but no other number of channels. A network that takes one grid only refuses both; then its first
    layer decides.

    Args:
        arguments: of `export_onnx`; x is given.
        network: the network.
        accepts: whether the network runs on an x, which is channels-last or not.

    Raises:
        InputError: the layout remains unknown, or contradicts another argument.
    """
    x = arguments.x
    assert x is not None
    shape, layouts = tuple(x.shape), [True, False]
    if arguments.channels_last is not None:
        layouts = [arguments.channels_last]
    else:
        found = [last for last in layouts if not accepts(x.repeat_interleave(2, -1 if last else 1), last)]
        if len(found) != 1:
            found = _layout_of_first_layer(network, x, accepts)
        layouts = found or layouts
    fitting = [
        last
        for last in layouts
        if arguments.channels in (None, shape[-1 if last else 1])
        and arguments.grid in (None, shape[1:-1] if last else shape[2:])
    ]
    if not fitting:
        given = {name: getattr(arguments, name) for name in ("grid", "channels", "channels_last")}
        described = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise InputError(
            f"example_inputs has an x of shape {shape}, which contradicts {described}; "
            "leave those out, or change one of them"
        )
    if len(fitting) > 1:
        raise InputError(
            f"cannot tell which axis of x {shape} holds the channels of {type(network).__name__}; "
            "give channels_last=True for (N, *grid, C), or channels_last=False for (N, C, *grid)"
        )
    return fitting[0]


def _layout_of_first_layer(
    network: nn.Module, x: Tensor, accepts: Callable[[Tensor, bool], bool]
) -> list[bool]:
    """Whether x is channels-last, from the first layer that receives x or x with its channels moved; empty
    if none does."""
    found: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if found or not inputs or not isinstance(inputs[0], Tensor):
            return
        last = module.channels_last if isinstance(module, MDLSTM) else isinstance(module, nn.Linear)
        shape = inputs[0].shape[1:]
        if shape == x.shape[1:]:
            found.append(bool(last))
        elif shape == (x.movedim(1, -1) if last else x.movedim(-1, 1)).shape[1:]:
            found.append(not last)

    kinds = (MDLSTM, nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    hooks = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, kinds)]
    accepts(x, True)
    for hook in hooks:
        hook.remove()
    return found


def _signature(module: nn.Module) -> tuple[str, list[str], bool, list[str]]:
    """The module's name, its forward's arguments, whether it takes any name, and the arguments after the
    first that have no default."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in parameters if p.kind not in variadic]
    return (
        type(module).__name__,
        [p.name for p in named],
        any(p.kind is p.VAR_KEYWORD for p in parameters),
        _names(p for p in named[1:] if p.default is p.empty),
    )


def _names(parameters: Iterable[inspect.Parameter]) -> list[str]:
    return [parameter.name for parameter in parameters]


def _converted(name: str, value: Tensor) -> Tensor:
    """An example as float32 or int64, the types that a session passes on."""
    value = value.detach().cpu()
    if value.is_floating_point():
        return value.float()
    if value.dtype == torch.bool or value.is_complex() or value.dim() == 0:
        raise InputError(
            f"the input '{name}' must be a batch (N, …) of floats or integers, "
            f"got {value.dtype} of shape {tuple(value.shape)}"
        )
    return value.long()
