"""`export_onnx`: capture, lower, check, verify, and only then write."""

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
from mdlstm_tk.export.parity import ATOL, RTOL, Floats
from mdlstm_tk.export.spec import Subject
from mdlstm_tk.export.verification import Trial
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.files import atomic_write

ATOLS = {"float32": ATOL, "float16": 5e-3}


@dataclass(frozen=True)
class Report:
    """What an export came to.

    Attributes:
        path: of the file.
        metadata: in the file.
        nodes: number of them.
        bytes: of the file.
        max_abs: largest error against float64 on the inputs it was verified with.
        seconds: it took.
    """

    path: Path
    metadata: Metadata
    nodes: int
    bytes: int
    max_abs: float
    seconds: float


def export_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    grid: tuple[int, ...] | None = None,
    form: str = "unrolled",
    sizes: bool = False,
    others: Mapping[str, Tensor] | None = None,
    dtype: str = "float32",
    functions: bool = False,
    channels: int | None = None,
    channels_last: bool | None = None,
    inputs: Mapping[str, Floats] | None = None,
    about: Mapping[str, Any] | None = None,
    atol: float | None = None,
) -> Report:
    """Export a network with MDLSTM layers as one self-contained ONNX file of standard ops.

    The file appears only after `onnx.checker` has passed it and ONNX Runtime, on the CPU, agrees with
    the float64 reference within atol + 1e-5·|y| on random inputs and on `inputs`. The module is left as
    it is.

    Args:
        module: from x (N, *grid, C), or (N, C, *grid), to one tensor y (N, …), for any N.
        path: where to.
        grid: the extents to export for; they need not be those it was trained on. None: any, which is
            for form "scan".
        form: "unrolled", the sweeps written out step by step, or "scan", as a loop: a smaller file that
            loads at once.
        sizes: whether the file takes `sizes` (N, D) as an input, as the module then must: padded samples
            give what they give unpadded, so a file for one grid serves all smaller ones as well.
        others: further inputs of the module, by the names it has for them, with an example of each: a
            batch (N, …) of float32 or int64.
        dtype: "float32", or "float16" for weights and activations; states stay float32, and so do the
            file's inputs and output.
        functions: whether an unrolled sweep has each wavefront in a function, as one node.
        channels: C; that of the first MDLSTM layer if not given.
        channels_last: the layout of x; that of the first MDLSTM layer if not given.
        inputs: more x to verify with, by name.
        about: more for the metadata: model, task, classes, checkpoint_sha256.
        atol: the absolute error that is allowed; 1e-5 if not given, 5e-3 for float16.

    Returns:
        What it came to.

    Raises:
        InputError: no such form or dtype, or what x is like cannot be told, or the module does not take it.
        MDLSTMError: the module cannot be exported, or the file not written.
        ParityError: ONNX Runtime does not agree. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    start = time.perf_counter()
    path = Path(path)
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
    if dtype not in ATOLS:
        raise InputError(f"dtype must be one of {', '.join(ATOLS)}, got '{dtype}'")
    if grid is None and form != "scan":
        raise InputError(f"form '{form}' needs a grid; give one, or form='scan' for any size")
    if functions and form != "unrolled":
        raise InputError(f"functions are of wavefronts written out, for form 'unrolled', not '{form}'")
    subject = Subject.of(module, grid, channels, channels_last, sizes, others or {})
    atol = ATOLS[dtype] if atol is None else atol
    network = copy.deepcopy(subject.module).to(getattr(torch, dtype))
    model = lower(capture(network, subject.examples(), () if grid else subject.grid_axes), form)
    if functions:
        model = outline(model)
    metadata = subject.metadata(form, dtype, about or {})
    _set_metadata(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MDLSTMError(f"the exported model is not valid ONNX: {error}") from error

    session = Session(model.SerializeToString(), device="cpu")
    results = Trial(session, subject, atol).run(inputs or {})
    for name, result in results.items():
        if not result.passed:
            raise ParityError(
                f"{path} was not written: ONNX Runtime is {result.max_abs:.1e} from the float64 reference "
                f"({name}), allowed is {atol:g} + {RTOL:g}·|y|; allow more with --atol, or train with "
                "a cell that keeps float32 accurate on large grids (--cell stable or leaky)"
            )
    max_abs = max(result.max_abs for result in results.values())
    metadata = replace(metadata, parity={"atol": atol, "rtol": RTOL, "max_abs": max_abs})
    _set_metadata(model, metadata)
    data = model.SerializeToString()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    seconds = time.perf_counter() - start
    return Report(path, metadata, len(model.graph.node), len(data), max_abs, seconds)


def _set_metadata(model: onnx.ModelProto, metadata: Metadata) -> None:
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata.to_props())
