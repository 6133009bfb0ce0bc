"""`export_onnx`: capture the network, lower it to standard operators, verify the result, write the file."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk.errors import InputError, MDLSTMError, ParityError, require
from mdlstm_tk.export.arguments import Examples, InputArguments, read_arguments
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lowering.functions import outline
from mdlstm_tk.export.lowering.lower import FORMS, Form, lower
from mdlstm_tk.export.quantization import quantize
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.export.verification.export_verifier import ExportVerifier
from mdlstm_tk.export.verification.parity import ATOL, RTOL, Float32Array
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.files import atomic_write

Dtype = Literal["float32", "float16", "int8"]
ATOLS: dict[Dtype, float] = {"float32": ATOL, "float16": 5e-3, "int8": 5e-2}


@dataclass(frozen=True)
class ExportReport:
    """The result of an export; `print` shows it in one line.

    Attributes:
        path: the file.
        metadata: the file's metadata.
        nodes: number of nodes in the graph.
        bytes: size of the file.
        max_abs: largest absolute error against float64 on the inputs that it was verified with, in units of
            the outputs.
        seconds: duration of the export.
    """

    path: Path
    metadata: Metadata
    nodes: int
    bytes: int
    max_abs: float
    seconds: float

    def __str__(self) -> str:
        """One line for people: the shapes of x and y, the form, the file's size and the error."""
        metadata = self.metadata
        name, *further_names = metadata.output_names
        if metadata.window:
            y = _shape_text(metadata, metadata.window, metadata.outputs)
        else:
            axes = {"classify": "N", "transcribe": "N, T"}.get(metadata.kind or "", "N, …")
            y = f"{axes}, {metadata.outputs}"
        return (
            f"{self.path}: x ({_shape_text(metadata, (1,) * metadata.ndim, metadata.channels)}) → "
            f"{', '.join([f'{name} ({y})', *further_names])}, "
            f"{metadata.form}, {self.nodes} nodes, {self.bytes / 1024:.0f} KiB, "
            f"max error {self.max_abs:.1e} against float64, {self.seconds:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "path": str(self.path),
            "grid": self.metadata.grid,
            "form": self.metadata.form,
            "outputs": self.metadata.output_names,
            "nodes": self.nodes,
            "bytes": self.bytes,
            "max_abs": self.max_abs,
            "seconds": self.seconds,
        }


def export_onnx(
    module: nn.Module,
    path: str | Path,
    example_inputs: Examples | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    form: Form = "unrolled",
    padded: bool = False,
    extra_inputs: Mapping[str, Tensor] | None = None,
    multiple_of: int | Sequence[int] | None = None,
    output_names: Sequence[str] | None = None,
    dtype: Dtype = "float32",
    functions: bool = False,
    channels: int | None = None,
    channels_last: bool | None = None,
    verify_inputs: Mapping[str, Float32Array] | None = None,
    metadata: Mapping[str, Any] | None = None,
    atol: float | None = None,
) -> ExportReport:
    """Export a network with MDLSTM layers as one self-contained ONNX file that uses standard operators.

    The file appears only after `onnx.checker` has accepted it and ONNX Runtime, on the CPU, has agreed
    with the float64 reference within atol·s + 1e-5·|y| on random inputs, on `example_inputs` and on
    `verify_inputs`. The scale s of an output's feature is its largest absolute value on these inputs, at
    least 1. The file computes what the module computes in eval mode, without the wrappers of
    `torch.compile`; the module itself is left unchanged.

        >>> export_onnx(net, "net.onnx", torch.zeros(1, 3, 64, 64))
        >>> export_onnx(net, "net.onnx", grid=(64, 64), channels=3)

    `docs/exporting.md` is a guide with examples.

    Args:
        module: maps x (N, *grid, C), or (N, C, *grid), to a tensor y (N, …), or to a tuple, list or dict of
            such tensors, for any N.
        path: the file to write; an existing file is replaced.
        example_inputs: x, or a tuple of x and the further inputs of forward in order, as for
            `torch.onnx.export`. The grid, the channels, the layout and the further inputs follow from them;
            the batch may have any size. With form "scan" the file takes any grid all the same, unless
            `grid` is given.
        grid: the extents to export for, which may differ from those of the training data. None stands
            for the grid of the example or, with form "scan", for any grid.
        form: "unrolled" writes the sweeps out step by step; "scan" writes each as a loop, which gives a
            smaller file that loads faster and takes any grid. "Which form should I export?" in the
            documentation's questions says which one runs faster.
        padded: whether the file takes a second input `sizes` (N, D), as the module then must. A padded
            sample gives the same numbers as the sample alone, so a file for one grid also serves all
            smaller grids.
        extra_inputs: further inputs of the module, by the names of its arguments. Each value is an example:
            a batch (N, …) of floats, which become float32, or integers, which become int64.
        multiple_of: for a network with strides: the number, or the number for each axis, that the extents
            of a grid must be multiples of. It is verified on such grids, and a `Session` refuses others.
        output_names: names of the outputs. None: the keys of the dict that the module returns, else "y",
            "y1", "y2", …
        dtype: type of weights and activations, "float32" or "float16"; or "int8", which computes the
            matrix products of sweeps and linear layers in 8-bit integers (see docs/runtimes.md). States,
            and the inputs and the outputs of the file, are float32 in any case.
        functions: whether each wavefront of an unrolled sweep becomes one node that calls a function.
        channels: the features C of x. None: those of the example, or the input size of the first MDLSTM
            layer.
        channels_last: layout of x. None: the one in which the network takes the example; or that of the
            first MDLSTM layer, or the other if the network does not run in that.
        verify_inputs: more inputs x to verify with, by name.
        metadata: more fields of `mdlstm_tk.runtime.Metadata` to write into the file, such as model, task,
            kind, classes and checkpoint_sha256.
        atol: allowed absolute error in units of the scale s; if None, 1e-5, or 5e-3 for float16 and 5e-2
            for int8.

    Returns:
        What was written.

    Raises:
        InputError: there is no such form or dtype, or arguments are missing or contradict each other, or
            the module does not accept such inputs.
        MDLSTMError: the module cannot be exported, or the file cannot be written.
        ParityError: ONNX Runtime disagrees with the reference. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    start = time.perf_counter()
    path = Path(path)
    arguments = read_arguments(
        module, example_inputs, grid, channels, channels_last, padded, extra_inputs or {}, multiple_of
    )
    _check_options(arguments, form, dtype, functions)
    any_grid = form == "scan" and grid is None
    spec = ExportSpec.from_module(module, arguments, any_grid, output_names)
    file_metadata = spec.metadata(form, dtype, metadata or {})
    quantized = dtype == "int8"
    captured = _capture(spec, torch.float32 if quantized else getattr(torch, dtype))
    model = lower(captured, form, separate_products=quantized)
    if quantized:
        model = quantize(model)
    if functions:
        model = outline(model)
    _set_metadata(model, file_metadata)
    atol = ATOLS[dtype] if atol is None else atol
    inputs = dict(verify_inputs or {})
    if arguments.x is not None and not any_grid:
        inputs["example_inputs"] = arguments.x.numpy()
    max_abs = _verify(model, spec, atol, inputs, path)
    file_metadata = replace(file_metadata, parity={"atol": atol, "rtol": RTOL, "max_abs": max_abs})
    _set_metadata(model, file_metadata)
    data = model.SerializeToString()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    seconds = time.perf_counter() - start
    return ExportReport(path, file_metadata, len(model.graph.node), len(data), max_abs, seconds)


def _check_options(arguments: InputArguments, form: str, dtype: str, functions: bool) -> None:
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
    if dtype not in ATOLS:
        raise InputError(f"dtype must be one of {', '.join(ATOLS)}, got '{dtype}'")
    if arguments.grid is None and arguments.x is None and form != "scan":
        raise InputError(
            f"form '{form}' needs a grid; give grid= or example_inputs=, or form='scan' for any size"
        )
    if functions and form != "unrolled":
        raise InputError(f"functions=True needs form 'unrolled', got form '{form}'")


def _capture(spec: ExportSpec, dtype: torch.dtype) -> onnx.ModelProto:
    """The network as a graph in which each sweep is one node."""
    network = copy.deepcopy(spec.module).to(dtype)
    free_axes = {} if spec.grid else dict(zip(spec.grid_axes, spec.multiple_of, strict=True))
    *grids, last_grid = spec.capture_grids()
    for grid in grids:
        with suppress(MDLSTMError):
            return capture(network, spec.examples(grid), free_axes, spec.output_names)
    return capture(network, spec.examples(last_grid), free_axes, spec.output_names)


def _verify(
    model: onnx.ModelProto,
    spec: ExportSpec,
    atol: float,
    inputs: Mapping[str, Float32Array],
    path: Path,
) -> float:
    """Check a model with `onnx.checker` and against the float64 reference.

    Returns:
        The largest absolute error.

    Raises:
        MDLSTMError: the model is not valid ONNX, or it holds something that a `Session` refuses.
        ParityError: ONNX Runtime disagrees with the reference.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MDLSTMError(f"the exported model is not valid ONNX: {error}") from error
    try:
        session = Session(model.SerializeToString(), device="cpu")
    except InputError as error:
        reason = str(error).split("; ")[0]
        raise MDLSTMError(
            f"{type(spec.module).__name__} cannot be exported, since a Session would refuse it: {reason}; "
            "compute that part in another way, or outside the network"
        ) from error
    verifier = ExportVerifier(session, spec, atol)
    results = verifier.run(inputs)
    for name, result in results.items():
        if not result.passed:
            raise ParityError(f"{path} was not written: {verifier.explanation(name)}")
    return max(result.max_abs for result in results.values())


def _shape_text(metadata: Metadata, window: tuple[int, ...], features: int) -> str:
    """The shape of x or y in the layout of a model, such as "N, 8, 8, 1" or "N, 3, H, ⌈W/2⌉".

    One position of it stands for `window` positions of x.
    """
    batch, *axes = metadata.layout.split()
    extents: list[str] = []
    for d, (axis, size) in enumerate(zip([axis for axis in axes if axis != "C"], window, strict=True)):
        if metadata.grid:
            extents.append(str(-(-metadata.grid[d] // size)))
        elif size == 1:
            extents.append(axis)
        else:
            exact = metadata.multiple_of is not None and metadata.multiple_of[d] % size == 0
            extents.append(f"{axis}/{size}" if exact else f"⌈{axis}/{size}⌉")
    extents.insert(axes.index("C"), str(features))
    return ", ".join([batch, *extents])


def _set_metadata(model: onnx.ModelProto, metadata: Metadata) -> None:
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata.to_props())
