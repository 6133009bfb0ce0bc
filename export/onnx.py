"""`export_onnx`: read the inputs, capture the network, lower it to standard operators, ask two questions
about the result, write the file."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk.errors import InputError, MDLSTMError, ParityError, require
from mdlstm_tk.export.capture import Captured, DecisionError, capture
from mdlstm_tk.export.conditions import SMALL
from mdlstm_tk.export.inputs import ExampleRange, Examples, Inputs, find_grids, large_cases, read_inputs
from mdlstm_tk.export.lowering.lower import lower, walk
from mdlstm_tk.export.metadata import describe
from mdlstm_tk.export.network import Network
from mdlstm_tk.export.report import ExportReport, check_destination, check_onnx, with_metadata
from mdlstm_tk.export.tiles import tiled
from mdlstm_tk.export.verify import ATOLS, RTOL, check_graph, check_runtime, check_samples, scales_of
from mdlstm_tk.io import TILED_SUFFIX, Array
from mdlstm_tk.io.files import open_output
from mdlstm_tk.io.metadata import Dtype, Form, FreeExtents, Metadata
from mdlstm_tk.runtime.model_check import OPERATORS
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import prepare, takes
from mdlstm_tk.runtime.tiles.session import TiledSession


def export_onnx(
    module: nn.Module,
    path: str | Path,
    example_inputs: Examples | None = None,
    *,
    grid: FreeExtents | None = None,
    form: Form | None = None,
    padded: bool = False,
    extra_inputs: Mapping[str, Tensor] | None = None,
    grid_inputs: Sequence[str] = (),
    multiple_of: int | Sequence[int] | None = None,
    min_grid: int | Sequence[int] | None = None,
    output_names: Sequence[str] | None = None,
    dtype: Dtype = "float32",
    channels: int | None = None,
    channels_last: bool | None = None,
    example_range: ExampleRange | None = None,
    verify_inputs: Mapping[str, Array] | None = None,
    metadata: Mapping[str, Any] | None = None,
    atol: float | None = None,
    replace: bool = True,
) -> ExportReport:
    """Export a network with MDLSTM layers as one self-contained ONNX file that uses standard operators.

    The file appears only after two questions have been answered. Is the graph the network? Both are
    evaluated in float64, on random inputs, on `example_inputs` and on `verify_inputs`, and agree within
    1e-5·s, where the scale s of an output's feature is its largest absolute value on these inputs. Does
    float32 suffice? ONNX Runtime, on the CPU, agrees with float64 within atol·max(s, 1) + 1e-5·|y|.
    The file computes what the module computes in eval mode, without autocast and the wrappers of
    `torch.compile`; the module itself is left unchanged.

        >>> export_onnx(net, "net.onnx", torch.zeros(1, 3, 64, 64))
        >>> export_onnx(net, "net.onnx", grid=(64, 64), channels=3)
        >>> export_onnx(net, "net.onnx", grid=(48, None))                    # fixed height, free width

    `docs/exporting.md` is a guide with examples.

    Args:
        module: maps x (N, *grid, C), or (N, C, *grid), to a tensor y (N, …), or to a tuple, list or dict of
            such tensors, for any N.
        path: the file to write, in a folder that exists.
        example_inputs: x, or a tuple of x and the further inputs of forward in order, as for
            `torch.onnx.export`. The grid, the channels and the further inputs follow from them; the batch
            may have any size. x may hold integers, such as tokens, and may lack the axis C if the grid has
            as many axes as the first MDLSTM layer; in the file it is float32 with that axis.
        grid: the extents to export for, which may differ from those of the training data. None among them
            stands for a free extent.
        form: "unrolled" writes the sweeps out step by step, for one grid; "scan" writes each as a loop,
            which gives a smaller file that loads faster and takes every grid, but for extents that `grid`
            names beside a None and those that the network itself fixes; "tiles" is `export_tiles`. None:
            "tiles" if the path ends in .tiles, "scan" if an extent of `grid` is free, else "unrolled".
            "Which form should I export?" in the documentation's questions says which one runs faster.
        padded: whether the file takes a second input `sizes` (N, D), as the module then must. A padded
            sample gives the same numbers as the sample alone, so a file for one grid also serves all
            smaller grids.
        extra_inputs: further inputs of the module, by the names of its arguments. Each value is an example:
            a batch (N, …) of floats, which become float32, integers, which become int64, or booleans.
        grid_inputs: names of further inputs that have the grid of x, and are free where x is.
        multiple_of: for a network with strides: the number, or the number for each axis, that the extents
            of a grid must be multiples of. It is verified on such grids, and a `Session` refuses others.
        min_grid: the least extents, or one for all axes, that the file takes. None: those that the network
            takes without an error or NaN.
        output_names: names of the outputs. None: the keys of the dict that the module returns, else "y",
            "y1", "y2", …
        dtype: type of weights and activations, "float32" or "float16". States, and the inputs and the
            outputs of the file, are float32 in any case.
        channels: the features C of x. None: those of the example, or the input size of the first MDLSTM
            layer.
        channels_last: layout of x. None: that of the first MDLSTM layer, unless the network begins with a
            convolution that takes as many channels as the example has on the other axis.
        example_range: (low, high) of the random x that the file is verified with, or a function of a shape
            and a `torch.Generator` that returns x. None: the range of the example, or standard normal
            numbers if there is none or all its values are equal.
        verify_inputs: more inputs x to verify with, by name, as a `Session` of the file takes them.
        metadata: more fields of `mdlstm_tk.runtime.Metadata` to write into the file, such as model, task,
            kind, classes and checkpoint_sha256.
        atol: allowed absolute error of ONNX Runtime in units of the scale; None: 1e-5, or 5e-3 for float16.
        replace: replace an existing file.

    Returns:
        The report of the export. It names the operators, if there are any, that a `Session` runs with
        trusted=True only.

    Raises:
        InputError: arguments are missing or contradict each other, the file exists and `replace` is false,
            or the module does not accept such inputs, returns NaN or mixes the samples of a batch.
        MDLSTMError: the module cannot be exported, as it decides by an extent; or the file cannot be
            written.
        ParityError: the graph or ONNX Runtime disagrees with the network. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    start, path = time.perf_counter(), Path(path)
    form = form or (
        "tiles" if path.suffix == TILED_SUFFIX else "scan" if None in (grid or ()) else "unrolled"
    )
    if form not in get_args(Form) or dtype not in ATOLS:
        raise InputError(
            "form must be unrolled, scan or tiles, and dtype float32 or float16, got "
            f"{form!r:.40} and {dtype!r:.40}"
        )
    check_destination(path, replace, form)
    is_tiled = form == "tiles"
    if is_tiled and (grid or padded or extra_inputs or multiple_of or min_grid or dtype != "float32"):
        raise InputError(
            "form 'tiles' is for x alone on any grid, in float32; leave out grid=... (--size) and the like"
        )
    network, inputs = read_inputs(
        module,
        example_inputs,
        grid=grid,
        any_size=form != "unrolled",
        padded=padded,
        extra_inputs=extra_inputs,
        grid_inputs=grid_inputs,
        multiple_of=multiple_of,
        min_grid=min_grid,
        output_names=output_names,
        channels=channels,
        channels_last=channels_last,
        example_range=example_range,
    )
    exact = network.in_dtype(torch.float64)
    known = find_grids(inputs, exact, grid is not None and None not in grid)
    check_samples(exact, inputs.arrays(inputs.main, 3))
    captured: Captured | None = None
    if is_tiled:
        models, content = tiled(network, inputs)
    else:
        captured = _captured(network if dtype == "float32" else network.in_dtype(torch.float16), inputs)
        models = [lower(captured.model, form)]
        _declare_outputs(models[0], inputs)
        serialized = check_onnx(models[0], "the exported model")
        content = partial(with_metadata, serialized)
    described = describe(exact, inputs, captured, form, dtype, metadata or {})
    nodes = [node for model in models for node in walk(model.graph.node)]
    if any(node.op_type in ("If", "Loop") for node in nodes):  # so that samples take several branches
        check_samples(exact, inputs.arrays(inputs.main, 8))
    atol = ATOLS[dtype] if atol is None else atol
    cases = inputs.cases(_of_user(inputs, described, verify_inputs or {}))
    if "zeros" in cases:
        try:
            known["zeros"] = exact.finite(cases["zeros"])
        except InputError:  # as of a network that divides by a deviation
            del cases["zeros"]
    expected = {case: known.get(case) or exact.finite(arrays) for case, arrays in cases.items()}
    scales = scales_of(expected.values(), described)
    session: Any = (TiledSession if is_tiled else Session)(content(described), "cpu", trusted=True)
    try:
        doubt = "" if is_tiled else check_graph(models[0], described, cases, expected, scales)
        worst = check_runtime(session, cases, expected, atol, scales, doubt)
    except ParityError as error:
        raise ParityError(f"{path} was not written: {error}") from None
    for case, outputs in large_cases(inputs, exact) if form == "scan" and inputs.free else ():
        try:
            scales = scales_of([*expected.values(), *outputs.values()], described)
            worst = max(worst, check_runtime(session, case, outputs, atol, scales, doubt))
        except ParityError as error:
            warnings.warn(f"{error}; or run {path} on smaller grids", stacklevel=3)
    described = dataclasses.replace(described, parity={"atol": atol, "rtol": RTOL, "max_abs": worst})
    Metadata.from_props(described.to_props(), "atol=...")
    data = content(described)
    with open_output(path, replace) as file:
        file.write(data)
    count, seconds = sum(len(model.graph.node) for model in models), time.perf_counter() - start
    listed = {name.decode() for name in OPERATORS}
    trust = sorted({node.op_type for node in nodes if node.domain in ("", "ai.onnx")} - listed)
    return ExportReport(path, described, count, len(data), worst, seconds, tuple(trust))


def _captured(network: Network, inputs: Inputs) -> Captured:
    """The graph of a network whose conditions hold on every grid that its file takes; small grids on which
    one does not are added to those that are verified.

    Raises:
        MDLSTMError: torch cannot capture the network, or a condition is false on some grid.
    """
    names, free = list(inputs.shapes[inputs.main]), inputs.free
    axes = {name: [first + d for d in free] for name, first in inputs.first_axes.items()}
    least, multiples = [inputs.min_grid[d] for d in free], [inputs.multiple_of[d] for d in free]
    held = axes, names, [max(SMALL, extent) for extent in least], multiples
    # torch takes an extent of 1 for a constant, in the middle of a network as well. Free extents are
    # therefore traced, which takes no computation, so large that strides leave more than 1.
    try:
        large = inputs.like([5 * extent for extent in inputs.main])
        captured = capture(network, inputs.tensors(large), *held)
    except DecisionError:
        raise
    except MDLSTMError:
        if not free:
            raise
        captured = capture(network, inputs.tensors(inputs.main), *held)
    first = inputs.first_axes["x"]
    least_of = {0: 2, **{first + d: e for d, e in zip(free, least, strict=True)}}
    units_of = {0: 1, **{first + d: m for d, m in zip(free, multiples, strict=True)}}
    for extents in captured.conditions.small(least_of, units_of):
        grid = tuple(extents.get(first + d, extent) for d, extent in enumerate(inputs.main))
        if grid not in (*inputs.small, *inputs.shapes):
            inputs.small.append(grid)
    return captured


def _of_user(inputs: Inputs, metadata: Metadata, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The user's inputs x with the axes that the file takes; and the example, if the file takes it."""
    names = ("x", "sizes") if metadata.takes_sizes else ("x",)
    alone = dataclasses.replace(metadata, inputs=names, x_range=None, unit_range=False)
    result = {}
    if inputs.example is not None and takes(alone.grid_of(inputs.example.shape), alone):
        arrays = {**arrays, "example_inputs": inputs.example}
    for name, value in arrays.items():
        try:
            result[name] = prepare(value, alone, {"x": "float32"}).feeds["x"]
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return result


def _declare_outputs(model: onnx.ModelProto, inputs: Inputs) -> None:
    """Declare the extents of the outputs as the network returns them, as torch fixes some that are free."""
    for value in model.graph.output:
        shapes = [shapes[value.name] for shapes in inputs.shapes.values()]
        for axis, extents in enumerate(zip(*shapes, strict=True)):
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.dim_param and (axis == 0 or len(set(extents)) > 1):
                dim.dim_param = f"{value.name}_{axis}" if axis else "batch"
