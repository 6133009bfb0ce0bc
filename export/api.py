"""`export_onnx`: capture the network, lower it to standard operators, verify the result, write the file."""

from __future__ import annotations

import copy
import time
from functools import partial
from pathlib import Path
from typing import Unpack

import onnx
from torch import nn

from mdlstm_tk._util.checks import checked
from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.export.arguments import read_spec
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lowering.lower import lower
from mdlstm_tk.export.model_file import ExportReport, check_destination, check_onnx, with_metadata
from mdlstm_tk.export.options import ExportOptions, TileOptions
from mdlstm_tk.export.spec import Examples, ExportSpec, Extents
from mdlstm_tk.export.tiles import check_stages, tiled_candidate
from mdlstm_tk.export.verification.export_verifier import Candidate, write_verified
from mdlstm_tk.io import TILED_SUFFIX
from mdlstm_tk.io.metadata import Dtype, Form


@checked
def export_onnx(
    module: nn.Module,
    path: str | Path,
    example_inputs: Examples | None = None,
    *,
    grid: Extents | None = None,
    **options: Unpack[ExportOptions],
) -> ExportReport:
    """Export a network with MDLSTM layers as one self-contained ONNX file that uses standard operators.

    The file appears only after `onnx.checker` has accepted it and ONNX Runtime, on the CPU, has agreed
    with the float64 reference within atol·s + 1e-5·|y| on random inputs, on `example_inputs` and on
    `verify_inputs`. The scale s of an output's feature is its largest absolute value on these inputs, or 1
    if that is larger and the graph is right in float64. If forward itself makes tensors of float32, as by
    `torch.eye(4)` or `x.float()`, so that it does not run in float64, the reference is the network in
    float32; the report and the metadata say so.
    The file computes what the module computes in eval mode, without autocast and the wrappers of
    `torch.compile`; the module itself is left unchanged.

        >>> export_onnx(net, "net.onnx", torch.zeros(1, 3, 64, 64))
        >>> export_onnx(net, "net.onnx", grid=(64, 64), channels=3)
        >>> export_onnx(net, "net.onnx", grid=(48, None))                    # fixed height, free width

    `docs/exporting.md` is a guide with examples.

    Args:
        module: maps x (N, *grid, C), or (N, C, *grid), to a tensor y (N, …), or to a tuple, list or dict of
            such tensors, for any N.
        path: the file to write, in a folder that exists; an existing file is replaced.
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
            a batch (N, …) of floats, which become float32, or integers, which become int64.
        grid_inputs: names of further inputs that have the grid of x, and are free where x is.
        multiple_of: for a network with strides: the number, or the number for each axis, that the extents
            of a grid must be multiples of. It is verified on such grids, and a `Session` refuses others.
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
        verify_inputs: more inputs x to verify with, by name, as a `Session` of the file takes them. One
            with more than 16,384 positions is left out, if the file is not for its grid.
        metadata: more fields of `mdlstm_tk.runtime.Metadata` to write into the file, such as model, task,
            kind, classes and checkpoint_sha256.
        atol: allowed absolute error in units of the scale s; if None, 1e-5, or 5e-3 for float16.

    Returns:
        The report of the export. It names the operators, if there are any, that a `Session` runs with
        trusted=True only.

    Raises:
        InputError: there is no such folder, form or dtype, `path` is a folder, arguments are missing or
            contradict each other, or the module does not accept such inputs, returns NaN or mixes the
            samples of a batch.
        MDLSTMError: the module cannot be exported, or the file cannot be written.
        ParityError: ONNX Runtime disagrees with the reference. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    return write_model(module, path, example_inputs, grid=grid, replace=True, **options)


@checked
def write_model(
    module: nn.Module,
    path: str | Path,
    example_inputs: Examples | None = None,
    *,
    grid: Extents | None = None,
    replace: bool,
    **options: Unpack[ExportOptions],
) -> ExportReport:
    """`export_onnx`; a file, also one that was written meanwhile, is replaced only if `replace` is true."""
    require("onnxruntime", "cpu")
    start, path = time.perf_counter(), Path(path)
    form, dtype = options["form"], options["dtype"]
    is_tiled = path.suffix == TILED_SUFFIX
    form = form or ("tiles" if is_tiled else "scan" if grid and None in grid else "unrolled")
    if form == "tiles":
        # An example and channels_last are not needed, so that the same call may name any form.
        accepted = ("form", "channels_last", *TileOptions.__annotations__)
        refused = {"grid": grid, **options, "dtype": dtype != "float32"}
        if name := next((name for name, value in refused.items() if value and name not in accepted), None):
            flag = " (--size)" if name == "grid" else ""
            raise InputError(f"form 'tiles' is for any size, in float32; leave out {name}=...{flag}")
    check_destination(path, replace, form)
    if form == "tiles":
        check_stages(module)
    spec = read_spec(module, example_inputs, grid=grid, any_size=form in ("scan", "tiles"), **options)
    metadata = spec.metadata(form, dtype, options["metadata"] or {})
    candidate = (
        tiled_candidate(spec, metadata.outputs) if form == "tiles" else _candidate(spec, form, dtype)
    )
    atol, verify_inputs = options["atol"], options["verify_inputs"]
    return write_verified(path, candidate, metadata, spec, start, atol, verify_inputs, replace)


@checked
def export_tiles(module: nn.Module, path: str | Path, **options: Unpack[TileOptions]) -> ExportReport:
    """Export a network as one archive with a graph for each sweep, to be run on grids of any size in tiles.

    The archive appears only after `onnx.checker` has accepted each graph and a `TiledSession`, on grids of
    several tiles, has agreed with the network's own forward in float64 within atol·s + 1e-5·|y|, where s is
    the largest output of a feature, at least 1. The module is left unchanged.

        >>> export_tiles(net, "net.tiles")

    `docs/exporting.md` says which networks can be exported, and shows how to write one.

    Args:
        module: a network with a method `tile_stages`, see `mdlstm_tk.tiling.TileStages`, or an `MDLSTM`. It
            maps x (N, *grid, C) to y.
        path: the file to write, which ends in `.tiles`; an existing file is replaced.
        channels: C. None: the input size of the first layer.
        example_range, verify_inputs, metadata: as for `export_onnx`.
        atol: allowed absolute error in units of the scale s; 1e-5 if None.

    Raises:
        InputError: the network cannot run in tiles, or does not say how; the message has the reason.
        MDLSTMError: the network cannot be exported, or the file cannot be written.
        ParityError: the graphs in tiles disagree with the network. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    return export_onnx(module, path, form="tiles", **options)


def _candidate(spec: ExportSpec, form: Form, dtype: Dtype) -> Candidate:
    """The network in standard operators, as the content of an `.onnx` file."""
    network = spec.interface
    if dtype == "float16":
        network = copy.deepcopy(network).half()
    free_axes, names = spec.free_axes(), spec.output_names
    # torch takes an extent of 1 for a constant, in the middle of a network as well. Free extents are
    # therefore traced, which takes no computation, so large that strides leave more than 1.
    grid = tuple(fixed or 8 * extent for fixed, extent in zip(spec.grid, spec.example_grid, strict=True))
    verified = [
        [e // m for e, m, fixed in zip(shape, spec.multiple_of, spec.grid, strict=True) if fixed is None]
        for shape in spec.shapes
    ]
    try:
        captured, beyond = capture(network, spec.examples(grid), free_axes, names, verified=verified)
    except MDLSTMError:
        examples = spec.examples(spec.example_grid)
        captured, beyond = capture(network, examples, free_axes, names, spec.user_grid, verified)
    model = lower(captured, form)
    _declare_outputs(model, spec)
    try:
        serialized = check_onnx(model, "the exported model")
    except MDLSTMError as error:
        if dtype != "float16":
            if "inconsistent type" not in str(error):
                raise
            raise MDLSTMError(
                f"{network.name} makes tensors of float64 itself, and a file computes in float32; give "
                "them the type of x, or call torch.set_default_dtype(torch.float32) before the export"
            ) from error
        raise MDLSTMError(
            f"{network.name} makes tensors of float32 itself, or converts to another dtype; leave out "
            f'dtype="{dtype}" (--dtype)'
        ) from error
    return Candidate([model], partial(with_metadata, serialized), beyond)


def _declare_outputs(model: onnx.ModelProto, spec: ExportSpec) -> None:
    """Declare the extents of the outputs as the network returns them, as torch fixes some that are free."""
    for value in model.graph.output:
        shapes = [shapes[value.name] for shapes in spec.shapes.values()]
        for axis, extents in enumerate(zip(*shapes, strict=True)):
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.dim_param and (axis == 0 or len(set(extents)) > 1):
                dim.dim_param = f"{value.name}_{axis}" if axis else "batch"
