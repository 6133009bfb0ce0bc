"""`export_onnx`: capture the network, lower it to standard operators, verify the result, write the file."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk.errors import InputError, MDLSTMError, ParityError, require
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lowering.functions import outline
from mdlstm_tk.export.lowering.lower import FORMS, lower
from mdlstm_tk.export.quantization import quantize
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.export.verification.export_verifier import ExportVerifier
from mdlstm_tk.export.verification.parity import ATOL, RTOL, Float32Array
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.files import atomic_write

ATOLS = {"float32": ATOL, "float16": 5e-3, "int8": 5e-2}


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: the file.
        metadata: the file's metadata.
        nodes: number of nodes in the graph.
        bytes: size of the file.
        max_abs: largest absolute error against float64 on the inputs that it was verified with.
        seconds: duration of the export.
    """

    path: Path
    metadata: Metadata
    nodes: int
    bytes: int
    max_abs: float
    seconds: float

    def summary(self) -> str:
        """One line for people: the shapes of x and y, the form, the file's size and the error."""
        metadata = self.metadata
        extents = ", ".join(map(str, metadata.grid or metadata.layout.split()[1:-1]))
        y = {"classify": "N", "transcribe": "N, T"}.get(metadata.kind or "", f"N, {extents}")
        return (
            f"{self.path}: x (N, {extents}, {metadata.channels}) → y ({y}, {metadata.outputs}), "
            f"{metadata.form}, {self.nodes} nodes, {self.bytes / 1024:.0f} KiB, "
            f"max error {self.max_abs:.1e} against float64, {self.seconds:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "path": str(self.path),
            "grid": self.metadata.grid,
            "form": self.metadata.form,
            "nodes": self.nodes,
            "bytes": self.bytes,
            "max_abs": self.max_abs,
            "seconds": self.seconds,
        }


def export_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    grid: tuple[int, ...] | None = None,
    form: str = "unrolled",
    padded: bool = False,
    extra_inputs: Mapping[str, Tensor] | None = None,
    dtype: str = "float32",
    functions: bool = False,
    channels: int | None = None,
    channels_last: bool | None = None,
    verify_inputs: Mapping[str, Float32Array] | None = None,
    metadata: Mapping[str, Any] | None = None,
    atol: float | None = None,
) -> ExportReport:
    """Export a network with MDLSTM layers as one self-contained ONNX file that uses standard operators.

    The file appears only after `onnx.checker` has accepted it and ONNX Runtime, on the CPU, has agreed
    with the float64 reference within atol + 1e-5·|y| on random inputs and on `verify_inputs`. The module
    is left unchanged.

    Args:
        module: maps x (N, *grid, C), or (N, C, *grid), to one tensor y (N, …), for any N.
        path: the file to write; an existing file is replaced.
        grid: the extents to export for, which may differ from those of the training data. None stands
            for any grid and needs form "scan".
        form: "unrolled" writes the sweeps out step by step; "scan" writes each as a loop, which gives a
            smaller file that loads faster.
        padded: whether the file takes a second input `sizes` (N, D), as the module then must. A padded
            sample gives the same numbers as the sample alone, so a file for one grid also serves all
            smaller grids.
        extra_inputs: further inputs of the module, by the names of its arguments. Each value is an example:
            a batch (N, …) of float32 or int64.
        dtype: type of weights and activations, "float32" or "float16"; or "int8", which computes the
            matrix products of sweeps and linear layers in 8-bit integers (see docs/runtimes.md). States,
            and the inputs and the output of the file, are float32 in any case.
        functions: whether each wavefront of an unrolled sweep becomes one node that calls a function.
        channels: C; if None, the input size of the first MDLSTM layer.
        channels_last: layout of x; if None, the layout of the first MDLSTM layer.
        verify_inputs: more inputs x to verify with, by name.
        metadata: more fields of `mdlstm_tk.runtime.Metadata` to write into the file, such as model, task,
            kind, classes and checkpoint_sha256.
        atol: allowed absolute error; if None, 1e-5, or 5e-3 for float16 and 5e-2 for int8.

    Returns:
        What was written.

    Raises:
        InputError: there is no such form or dtype, or the layout of x is unknown, or the module does not
            accept such inputs.
        MDLSTMError: the module cannot be exported, or the file cannot be written.
        ParityError: ONNX Runtime disagrees with the reference. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    start = time.perf_counter()
    path = Path(path)
    _check_options(grid, form, dtype, functions)
    spec = ExportSpec.from_module(module, grid, channels, channels_last, padded, extra_inputs or {})
    quantized = dtype == "int8"
    network = copy.deepcopy(spec.module).to(torch.float32 if quantized else getattr(torch, dtype))
    captured = capture(network, spec.examples(), () if grid else spec.grid_axes)
    model = lower(captured, form, separate_products=quantized)
    if quantized:
        model = quantize(model)
    if functions:
        model = outline(model)
    file_metadata = spec.metadata(form, dtype, metadata or {})
    _set_metadata(model, file_metadata)
    atol = ATOLS[dtype] if atol is None else atol
    max_abs = _verify(model, spec, atol, verify_inputs or {}, path)
    file_metadata = replace(file_metadata, parity={"atol": atol, "rtol": RTOL, "max_abs": max_abs})
    _set_metadata(model, file_metadata)
    data = model.SerializeToString()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    seconds = time.perf_counter() - start
    return ExportReport(path, file_metadata, len(model.graph.node), len(data), max_abs, seconds)


def _check_options(grid: tuple[int, ...] | None, form: str, dtype: str, functions: bool) -> None:
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
    if dtype not in ATOLS:
        raise InputError(f"dtype must be one of {', '.join(ATOLS)}, got '{dtype}'")
    if grid is None and form != "scan":
        raise InputError(f"form '{form}' needs a grid; give one, or form='scan' for any size")
    if functions and form != "unrolled":
        raise InputError(f"functions=True needs form 'unrolled', got form '{form}'")


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
        MDLSTMError: the model is not valid ONNX.
        ParityError: ONNX Runtime disagrees with the reference.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MDLSTMError(f"the exported model is not valid ONNX: {error}") from error
    session = Session(model.SerializeToString(), device="cpu")
    results = ExportVerifier(session, spec, atol).run(inputs)
    for name, result in results.items():
        if not result.passed:
            raise ParityError(
                f"{path} was not written: error {result.max_abs:.1e} of ONNX Runtime against float64 on "
                f"{name}, allowed is {atol:g} + {RTOL:g}·|y|; allow more with --atol, or train with a cell "
                "that keeps float32 accurate on large grids (--cell stable or leaky)"
            )
    return max(result.max_abs for result in results.values())


def _set_metadata(model: onnx.ModelProto, metadata: Metadata) -> None:
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata.to_props())
