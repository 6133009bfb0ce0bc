"""`export_onnx`: read the inputs, capture the network, lower it to standard operators, ask two questions
about the result, write the file."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import EncodeError
from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, duration, reason_of
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError, require
from mdlstm_tk.export.capture import Captured, capture
from mdlstm_tk.export.conditions import SMALL
from mdlstm_tk.export.inputs import (
    ExampleRange,
    Examples,
    Inputs,
    find_grids,
    large_case,
    random_cases,
    read_inputs,
)
from mdlstm_tk.export.lowering.lower import lower, walk
from mdlstm_tk.export.metadata import describe
from mdlstm_tk.export.network import Network
from mdlstm_tk.export.tiles import archive, tiled
from mdlstm_tk.export.verify import (
    ATOLS,
    GRAPH,
    RTOL,
    VerificationReport,
    check_samples,
    errors_of_file,
    graph_run,
)
from mdlstm_tk.io import TILED_SUFFIX
from mdlstm_tk.io.files import check_free, open_output
from mdlstm_tk.io.metadata import Dtype, Extents, Form, FreeExtents, Metadata
from mdlstm_tk.runtime.model_check import OPERATORS
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.session import TiledSession


@dataclass(frozen=True)
class ExportReport:
    """The result of an export; `print` shows it in one line.

    Attributes:
        path: the file.
        metadata: the file's metadata.
        nodes: number of nodes in the graph.
        bytes: size of the file.
        max_abs: largest absolute error against the network in float64, in units of the outputs.
        seconds: duration of the export.
        needs_trust: the operators that a `Session` runs with trusted=True only.
    """

    path: Path
    metadata: Metadata
    nodes: int
    bytes: int
    max_abs: float
    seconds: float
    needs_trust: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people: the grid, the form, the outputs, the file's size and the error."""
        m = self.metadata
        size = "any grid" if m.grid is None else f"grid {format_size(m.grid)}"
        return (
            f"{self.path}: {size}, {counted(m.channels, 'channel')} → {', '.join(m.output_names)} with "
            f"{counted(m.outputs, 'feature')}, {m.form}, {counted(self.nodes, 'node')}, "
            f"{self.bytes / 1024:.0f} KiB, max error {self.max_abs:.1e} against float64, "
            f"{duration(self.seconds)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "metadata"
        }
        m = self.metadata
        return {**own, "path": str(self.path), "grid": m.grid, "form": m.form, "outputs": m.output_names}


def export_onnx(
    module: nn.Module,
    path: str | Path,
    example_inputs: Examples | None = None,
    *,
    grid: FreeExtents | None = None,
    form: Form | None = None,
    padded: bool = False,
    grid_inputs: Sequence[str] = (),
    multiple_of: int | Sequence[int] | None = None,
    min_grid: int | Sequence[int] | None = None,
    output_names: Sequence[str] | None = None,
    dtype: Dtype = "float32",
    channels: int | None = None,
    channels_last: bool | None = None,
    example_range: ExampleRange | None = None,
    metadata: Mapping[str, Any] | None = None,
    atol: float | None = None,
    replace: bool = True,
) -> ExportReport:
    """Export a network with MDLSTM layers as one self-contained ONNX file that uses standard operators.

    The file appears only after two questions have been answered. Is the graph the network? Both are
    evaluated in float64, on random inputs and on `example_inputs`, and agree within 1e-5·s, where the scale
    s of an output's feature is its largest absolute value on these inputs. Does float32 suffice? ONNX
    Runtime, on the CPU, agrees with float64 within atol·max(s, 1) + 1e-5·|y|.
    The file computes what the module computes in eval mode, without the caller's autocast and the wrappers
    of `torch.compile`; the module itself is left unchanged.

        >>> export_onnx(net, "net.onnx", torch.zeros(1, 3, 64, 64))
        >>> export_onnx(net, "net.onnx", grid=(64, 64), channels=3)
        >>> export_onnx(net, "net.onnx", grid=(48, None))                    # fixed height, free width

    `docs/exporting.md` is a guide with examples.

    Args:
        module: maps x (N, *grid, C), or (N, C, *grid), to a tensor y (N, …), or to a tuple, list or dict of
            such tensors, for any N.
        path: the file to write, in a folder that exists.
        example_inputs: x, or a tuple of x and the further inputs of forward in order, as for
            `torch.onnx.export`; None among them leaves an input out. The grid, the channels and the further
            inputs follow from them: batches (N, …) of floats, which become float32, integers, which become
            int64, or booleans. The batch may have any size. x may hold integers, such as tokens, and may
            lack the axis C if the grid has as many axes as the first MDLSTM layer; in the file it is
            float32 with that axis.
        grid: the extents to export for, which may differ from those of the training data. None among them
            stands for a free extent.
        form: "unrolled" writes the sweeps out step by step, for one grid; "scan" writes each as a loop,
            which gives a smaller file that loads faster and takes every grid, but for extents that `grid`
            names beside a None; "tiles" is `export_tiles`. None:
            "tiles" if the path ends in .tiles, "scan" if an extent of `grid` is free, else "unrolled".
            "Which form should I export?" in the documentation's questions says which one runs faster.
        padded: whether the file takes a second input `sizes` (N, D), as the module then must. A padded
            sample gives the same numbers as the sample alone, so a file for one grid also serves all
            smaller grids.
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
    is_tiled = form == "tiles"
    if (path.suffix == TILED_SUFFIX) != is_tiled:
        raise InputError(
            f"the path of tiles, and no other, ends in {TILED_SUFFIX}; got {path} for form '{form}'"
        )
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or give another path")
    check_free(path, replace)
    if is_tiled and (grid or padded or multiple_of or min_grid or dtype != "float32"):
        raise InputError(
            "form 'tiles' is for x alone on any grid, in float32; leave out grid=... (--size) and the like"
        )
    network, inputs = read_inputs(
        module,
        example_inputs,
        grid,
        form,
        padded,
        grid_inputs,
        multiple_of,
        min_grid,
        output_names,
        channels,
        channels_last,
        example_range,
    )
    exact = network.in_dtype(torch.float64)
    expected = find_grids(inputs, exact)
    check_samples(exact, inputs.arrays(inputs.main, 3))
    cases, captured, index = inputs.cases(), None, dict[str, Any]()
    few, grids = [*cases], [*inputs.shapes]
    if is_tiled:
        index, models = tiled(network, inputs)
    else:
        of_dtype = network if dtype == "float32" else network.in_dtype(torch.float16)
        captured, small = _captured(of_dtype, inputs)
        grids += small
        models = {"model": lower(captured.model, form)}
        _declare_outputs(models["model"], inputs)
    cases |= random_cases(inputs.arrays, grids, [0])
    members = {name: _checked(model, name) for name, model in models.items()}

    def content(metadata: Metadata) -> bytes:
        if is_tiled:
            return archive(index, members, metadata)
        # Fields of two messages of protobuf, one after the other, are those of one message.
        properties = onnx.ModelProto()
        onnx.helper.set_model_props(properties, metadata.to_props())
        data: bytes = members["model"] + properties.SerializeToString()
        return data

    described = describe(exact, inputs, captured, form, dtype, metadata or {})
    nodes = [node for model in models.values() for node in walk(model.graph.node)]
    if any(node.op_type in ("If", "Loop") for node in nodes):  # so that samples take several branches
        check_samples(exact, inputs.arrays(inputs.main, 8))
    for case in [name for name in cases if name not in expected]:
        expected[case] = exact.run(cases[case])
    session: Any = (TiledSession if is_tiled else Session)(content(described), "cpu", trusted=True)
    graph = None if is_tiled else graph_run(models["model"], described, cases)
    atol = ATOLS[dtype] if atol is None else atol
    report = VerificationReport(path, {path: described}, [f"{network.name} in float64"])
    try:
        report.outcomes.update(errors_of_file(graph, [session], cases, expected, atol, is_tiled, few))
        report.raise_if_failed()
    except ParityError as error:
        raise ParityError(f"{path} was not written: {error}") from None
    is_known = is_tiled or GRAPH in report.outcomes
    report.outcomes.pop(GRAPH, None)
    (largest,) = (max(parity.max_abs for parity in of.values()) for of in report.outcomes.values())
    large = large_case(inputs, exact) if form == "scan" and inputs.free else {}
    for case, (arrays, outputs) in large.items():
        every = {**expected, case: outputs}
        report.outcomes.update(errors_of_file(None, [session], {case: arrays}, every, atol, is_known))
        try:
            report.raise_if_failed()
        except ParityError as error:
            warnings.warn(f"{error}; or run {path} on smaller grids", stacklevel=2)
        largest = max(largest, *(of[case].max_abs for of in report.outcomes.values()))
    described = dataclasses.replace(described, parity={"atol": atol, "rtol": RTOL, "max_abs": largest})
    Metadata.from_props(described.to_props(), "atol=...")
    data = content(described)
    with open_output(path, replace) as file:
        file.write(data)
    count, seconds = sum(len(model.graph.node) for model in models.values()), time.perf_counter() - start
    listed = {name.decode() for name in OPERATORS}
    trust = sorted({node.op_type for node in nodes if node.domain in ("", "ai.onnx")} - listed)
    return ExportReport(path, described, count, len(data), largest, seconds, tuple(trust))


def _captured(network: Network, inputs: Inputs) -> tuple[Captured, list[Extents]]:
    """The graph of a network whose conditions hold on every grid that its file takes; and small grids on
    which one of them does not.

    Raises:
        MDLSTMError: torch cannot capture the network, or a condition is false on some grid.
    """
    first, free = inputs.first_axes["x"], inputs.free
    least, multiples = [inputs.min_grid[d] for d in free], [inputs.multiple_of[d] for d in free]
    # torch takes an extent of 1 for a constant, in the middle of a network as well. Free extents are
    # therefore traced, which takes no computation, so large that strides leave more than 1.
    captured = capture(
        network,
        inputs.tensors(inputs.like([5 * extent for extent in inputs.main])),
        {name: [axis + d for d in free] for name, axis in inputs.first_axes.items()},
        list(inputs.shapes[inputs.main]),
        [max(SMALL, extent) for extent in least],
        multiples,
    )
    axes = [0, *(first + d for d in free)]
    least_of, units_of = (dict(zip(axes, each, strict=True)) for each in ([2, *least], [1, *multiples]))
    small = [
        tuple(extents.get(first + d, extent) for d, extent in enumerate(inputs.main))
        for extents in captured.conditions.small(least_of, units_of)
    ]
    return captured, [grid for grid in dict.fromkeys(small) if grid not in inputs.shapes]


def _declare_outputs(model: onnx.ModelProto, inputs: Inputs) -> None:
    """Declare the extents of the outputs as the network returns them, as torch fixes some that are free."""
    for value in model.graph.output:
        shapes = [shapes[value.name] for shapes in inputs.shapes.values()]
        for axis, extents in enumerate(zip(*shapes, strict=True)):
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.dim_param and (axis == 0 or len(set(extents)) > 1):
                dim.dim_param = f"{value.name}_{axis}" if axis else "batch"


def _checked(model: onnx.ModelProto, name: str) -> bytes:
    """The bytes of a model, checked with `onnx.checker`.

    Raises:
        MDLSTMError: it is not valid ONNX, or larger than a file can be.
    """
    try:
        data: bytes = model.SerializeToString()
        onnx.checker.check_model(data, full_check=True)
    except (ValueError, EncodeError) as error:
        raise MDLSTMError(f"the exported {name} is larger than 2 GiB, the limit of ONNX") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MDLSTMError(f"the exported {name} is not valid ONNX: {reason_of(error)}") from error
    return data
