"""The network and its inputs, read from the arguments of `export_onnx`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from mdlstm_tk._util.checks import checked
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export.grids import find_grids
from mdlstm_tk.export.interface import (
    Interface,
    eval_copy,
    find_layout,
    float_dtypes,
    mdlstm_layers,
    parameters_of_forward,
    without_original,
)
from mdlstm_tk.export.options import ExportOptions
from mdlstm_tk.export.spec import Examples, ExportSpec, Extents, Shape
from mdlstm_tk.export.verification.cases import sampler
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Extents as Grid


@checked
def read_spec(
    module: nn.Module,
    example_inputs: Examples | None = None,
    *,
    grid: Extents | None = None,
    any_size: bool = False,
    **options: Unpack[ExportOptions],
) -> ExportSpec:
    """Complete the arguments of `export_onnx`, which documents them, from the network, and run it.

    Args:
        any_size: extents are free, but for those that `grid` fixes.

    Raises:
        InputError: arguments are missing or contradict each other, or the network does not accept such
            inputs, or its weights hold NaN, or it returns something other than tensors (N, …).
    """
    name, atol = type(module).__name__, options["atol"]
    channels_last, multiple_of = options["channels_last"], options["multiple_of"]
    channels = options["channels"]
    if channels is not None and channels < 1:
        raise InputError(f"channels must be an integer of at least 1, got {channels}")
    if atol is not None and not 0 <= atol < inf:
        raise InputError(f"atol must be a finite number of at least 0, got {atol}")
    if grid is not None and (not grid or any(extent is not None and extent < 1 for extent in grid)):
        raise InputError(
            "grid must hold an extent of at least 1, or None for a free one, for each axis, as in (8, 8), "
            f"got {grid}"
        )
    x, further = _read_examples(module, example_inputs, options["extra_inputs"] or {})
    padded = further.pop("sizes", None) is not None or options["padded"]
    names = [*(["sizes"] if padded else []), *further]
    _check_names(module, names)
    layer = next(mdlstm_layers(module), None)
    says_channels = channels is not None or channels_last is not None
    arguments = {"grid": grid, "channels": channels, "channels_last": channels_last}
    channel_axis = x is None or layer is None or says_channels or x.dim() != layer.ndim + 1
    if x is not None and x.dim() < 2 + channel_axis:
        raise InputError(
            f"example_inputs must begin with x, a batch (N, *grid, C) or (N, C, *grid), got shape "
            f"{tuple(x.shape)}"
        )
    if channels_last is None:
        channels_last = _layout(module, x if channel_axis else None, name)
    interface = Interface(
        module,
        names,
        options["output_names"],
        integer=x is not None and not x.is_floating_point(),
        channel_axis=channel_axis,
        channels_last=channels_last,
    )
    for key, tensor in interface.module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise InputError(
                f"the weights of {name} hold NaN, first in {key}; export a network without NaN"
            )
    with without_original(module):
        example_grid = None
        if x is not None:
            axis = -1 if channels_last else 1
            with_axis = x if channel_axis else x.unsqueeze(axis)
            _check_integers(interface, {"x": with_axis, **further})
            x, further = _converted(x), {name: _converted(value) for name, value in further.items()}
            if not channel_axis:
                _check_batch_axis(interface, x, further)
                x = x.unsqueeze(axis)
            example_grid = tuple(x.shape[1:-1] if channels_last else x.shape[2:])
            features = x.shape[-1 if channels_last else 1]
            _check_example(tuple(x.shape), example_grid, features, arguments)
            channels = features
        elif channels is None:
            if layer is None:
                raise InputError(
                    f"{name} has no MDLSTM layer to take the channels of x from; give channels=..., or "
                    "example_inputs=(x, …)"
                )
            channels = layer.input_size
        ndim = len(example_grid or grid or (layer.ndim if layer else 2) * (1,))
        known_grid = example_grid or grid or (None,) * ndim
        spec = ExportSpec(
            interface,
            ndim=ndim,
            channels=channels,
            channels_last=channels_last,
            padded=padded,
            extra_inputs=further,
            grid_inputs=_first_grid_axes(
                options["grid_inputs"], further, known_grid, channels_last, padded
            ),
            multiple_of=_multiples(multiple_of, ndim),
            draw=sampler("x", options["example_range"], x, module),
            grid=_extents(grid, example_grid, ndim, any_size),
            example=None if x is None else x.float(),
        )
        if example_grid is None and grid and None not in grid:
            example_grid = tuple(extent for extent in grid if extent)
        _find_grids(spec, module, example_grid, grid is not None and None not in grid)
    return spec


def _find_grids(spec: ExportSpec, module: nn.Module, example_grid: Grid | None, is_explicit: bool) -> None:
    """Find the grids in float32 or, if the network then does not run, in the dtypes that its layers have,
    to which it converts x itself."""
    interface = spec.interface.float()
    try:
        find_grids(spec, example_grid, is_explicit)
        return
    except InputError:
        dtypes = float_dtypes(module)
        if dtypes in ([], [torch.float32]):
            raise
        interface.module, interface.mixed = eval_copy(module), True
        with suppress(InputError):
            find_grids(spec, example_grid, is_explicit)
            if torch.bfloat16 not in dtypes:
                return
            raise MDLSTMError(
                f"{interface.name} converts to bfloat16, in which ONNX Runtime does not compute on a "
                "CPU; leave the conversion out of forward, or convert to float16"
            ) from None
        raise


def _read_examples(
    module: nn.Module, example_inputs: Examples | None, extra_inputs: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The example x, or None, and the further examples by name, on the CPU."""
    parameters = parameters_of_forward(module).values()
    accepted = [p.name for p in parameters if p.kind.value in (0, 1)]
    examples: list[Tensor | None]
    if example_inputs is None or isinstance(example_inputs, Tensor):
        examples = [example_inputs]
    elif not (examples := [*example_inputs]) or examples[0] is None:
        raise InputError(
            "example_inputs must be x, a tensor (N, *grid, C) or (N, C, *grid), or a tuple of tensors that "
            f"begins with it, got {type(example_inputs).__name__}; give inputs by name as extra_inputs=..."
        )
    if len(examples) > max(len(accepted), 1):
        variable = [f"give each input of *{p.name} a name in it" for p in parameters if p.kind.value == 2]
        advice = (*variable, "give inputs by name as extra_inputs=...")[0]
        raise InputError(
            f"example_inputs has the length {len(examples)}, but {type(module).__name__}.forward takes "
            f"{', '.join(accepted) or 'one'} by position; {advice}"
        )
    further = {k: value for k, value in zip(accepted[1:], examples[1:], strict=False) if value is not None}
    if twice := sorted(further.keys() & extra_inputs.keys()):
        raise InputError(f"{', '.join(twice)} is in both example_inputs and extra_inputs; give it once")
    inputs = {name: _checked(name, value) for name, value in {**further, **extra_inputs}.items()}
    return None if examples[0] is None else _checked("x", examples[0]), inputs


def _converted(value: Tensor) -> Tensor:
    """An example as float32 or int64, the types that a session passes on."""
    return value.float() if value.is_floating_point() else value.long()


def _check_integers(interface: Interface, inputs: Mapping[str, Tensor]) -> None:
    """Check that forward computes from int64, which a file takes, what it does from the integers given."""
    others = {v.dtype for v in inputs.values() if not v.is_floating_point()} - {torch.int64}
    if not others:
        return

    def run(integers: Callable[[Tensor], Tensor]) -> dict[str, Array]:
        arrays = {
            k: (v.float() if v.is_floating_point() else integers(v)).numpy() for k, v in inputs.items()
        }
        with suppress(InputError):
            return interface.run(arrays)
        return {}

    given, converted = run(Tensor.clone), run(Tensor.long)
    for name in given.keys() & converted.keys():
        y, other = given[name], converted[name]
        if y.shape != other.shape or not np.allclose(y, other, 1e-4, 1e-6, equal_nan=y.dtype.kind == "f"):
            types = ", ".join(sorted(map(str, others)))
            raise InputError(
                f"{interface.name} computes something else from {types} than from int64, as which a "
                "file takes whole numbers; convert inputs in forward whatever their dtype"
            )


def _checked(name: str, value: Tensor) -> Tensor:
    """An example, on the CPU."""
    is_number = value.dtype != torch.bool and not value.is_complex()
    is_dense = not value.is_meta and value.layout is torch.strided
    if not (is_number and is_dense) or value.dim() == 0 or len(value) == 0:
        raise InputError(
            "example_inputs and extra_inputs must hold dense tensors (N, …) of floats or integers with "
            f"N ≥ 1, got {value.dtype} of shape {tuple(value.shape)}, {value.layout}, on {value.device} as "
            f"'{name}'"
        )
    return value.detach().cpu()


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    """Check that forward takes the inputs after x, and needs no others."""
    network, parameters = type(module).__name__, parameters_of_forward(module).values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = [p.name for p in named[1:]]
    for name in names:
        if name == "x":
            raise InputError(
                f"a file calls its first input x, so {network}.forward cannot take another x; give the "
                "first as example_inputs=..., and rename the other one"
            )
        if name not in accepted and not takes_any:
            raise InputError(
                f"{network}.forward takes no input '{name}' after x, but {', '.join(accepted) or 'none'}; "
                f"change {'padded=True (--padded)' if name == 'sizes' else 'extra_inputs=...'}"
            )
    if missing := [p.name for p in named[1:] if p.default is p.empty and p.name not in names]:
        advice = "padded=True" if missing == ["sizes"] else "them as example_inputs=(x, …)"
        raise InputError(f"{network}.forward also needs {', '.join(missing)}; give {advice}")


def _layout(network: nn.Module, x: Tensor | None, name: str) -> bool:
    """True if x is channels-last, see `find_layout`."""
    found = find_layout(network, None if x is None else x.shape)
    if found is None and x is not None:
        raise InputError(
            f"{name} has no MDLSTM layer that tells which axis of x holds the channels; give "
            "channels_last=True for (N, *grid, C), or channels_last=False for (N, C, *grid)"
        )
    return found is not False


def _check_batch_axis(interface: Interface, x: Tensor, further: Mapping[str, Tensor]) -> None:
    """Check that an x with as many axes as a batch without channels is none of one sample with channels."""
    layer, dims = next(mdlstm_layers(interface)), list[int]()
    hook = layer.register_forward_pre_hook(lambda _, inputs: dims.append(inputs[0].dim()))

    def runs(x: Tensor) -> bool:
        axis = -1 if interface.channels_last else 1
        inputs = {"x": x.unsqueeze(axis), **further}
        with suppress(InputError):
            interface.run({name: value.numpy() for name, value in inputs.items()})
            return True
        return False

    takes_x = runs(x)
    lacks_axis = dims == [layer.ndim + 1] or (not takes_x and runs(x[None]))
    hook.remove()
    if lacks_axis:
        raise InputError(
            f"example_inputs must begin with a batch x, (N, *grid, C) or (N, C, *grid), got one sample of "
            f"shape {tuple(x.shape)}; give x[None]"
        )


def _check_example(shape: Shape, extents: Grid, features: int, arguments: Mapping[str, Any]) -> None:
    """Check that the example agrees with the arguments grid, channels and channels_last."""
    grid, channels = arguments["grid"], arguments["channels"]
    wrong_grid = grid is not None and (
        len(grid) != len(extents)
        or any(expected not in (None, extent) for expected, extent in zip(grid, extents, strict=True))
    )
    if wrong_grid or channels not in (None, features):
        described = ", ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
        raise InputError(
            f"example_inputs has an x of shape {shape}, which contradicts {described}; "
            "leave those out, or change one of them"
        )


def _multiples(multiple_of: int | Sequence[int] | None, ndim: int) -> Grid:
    """What each extent is a multiple of."""
    numbers = (1,) * ndim if multiple_of is None else multiple_of
    numbers = (numbers,) * ndim if isinstance(numbers, int) else tuple(numbers)
    if len(numbers) != ndim or min(numbers) < 1:
        raise InputError(f"multiple_of must be one or {ndim} integers of at least 1, got {multiple_of}")
    return numbers


def _extents(grid: Extents | None, example_grid: Grid | None, ndim: int, any_size: bool) -> Extents:
    """The extents to export for."""
    if any_size:
        return grid if grid and None in grid else (None,) * ndim
    result = grid or example_grid
    if not result:
        raise InputError(
            "form 'unrolled' needs a grid; give grid=... or example_inputs=..., or form=\"scan\" for any"
        )
    if None in result:
        raise InputError(
            f"form 'unrolled' needs a fixed grid, got grid={result}; give "
            'form="scan" (--form scan) for free extents'
        )
    return result


def _first_grid_axes(
    names: Sequence[str],
    extra_inputs: Mapping[str, Tensor],
    grid: Extents,
    channels_last: bool,
    padded: bool,
) -> dict[str, int]:
    """The first grid axis of each input that has the grid of x: where its example has this grid, and where
    x has it if both axes would do."""
    ndim = len(grid)
    if names and padded:
        raise InputError("padded=True is for x alone; leave out grid_inputs=...")
    axes = {}
    for name in names:
        shape = tuple(extra_inputs[name].shape) if name in extra_inputs else ()
        starts = {ndim + 1: (1,), ndim + 2: (1, 2) if channels_last else (2, 1)}.get(len(shape), ())
        fitting = [k for k in starts if all(e in (None, n) for e, n in zip(grid, shape[k:], strict=False))]
        if not fitting:
            raise InputError(
                f"grid_inputs must name further inputs with the grid axes of x, got '{name}'"
                f"{f' of shape {shape}' if starts else ''}; the further inputs are "
                f"{', '.join(extra_inputs) or 'none'}"
            )
        axes[name] = fitting[0]
    return axes
