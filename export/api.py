"""`export_onnx`: capture, lower, check, verify, and only then write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError, require
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.lower import FORMS, lower
from mdlstm_tk.export.parity import ATOL, RTOL, Floats, float64_reference, measure, random_inputs
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.files import replacing
from mdlstm_tk.sizes import show_size

AXES = {1: "T", 2: "H W", 3: "D H W"}


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
    grid: tuple[int, ...],
    form: str = "unrolled",
    channels: int | None = None,
    inputs: Mapping[str, Floats] | None = None,
    about: Mapping[str, str | None] | None = None,
    atol: float = ATOL,
) -> Report:
    """Export a network with MDLSTM layers as one self-contained ONNX file of standard ops.

    The file appears only after `onnx.checker` has passed it and ONNX Runtime, on the CPU, agrees with
    the float64 reference within atol + 1e-5·|y| on random inputs and on `inputs`.

    Args:
        module: from x (N, *grid, C) to y (N, …, outputs), for any N.
        path: where to.
        grid: the extents to export for; they need not be those it was trained on.
        form: "unrolled": the sweep written out step by step.
        channels: C; taken from the first MDLSTM layer if not given.
        inputs: more inputs (N, *grid, C) to verify with, by name.
        about: more for the metadata: model, task, checkpoint_sha256.
        atol: the absolute error that is allowed.

    Returns:
        What it came to.

    Raises:
        InputError: no such form, or the channels cannot be told.
        MDLSTMError: the module cannot be exported, or the file not written.
        ParityError: ONNX Runtime does not agree. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    start = time.perf_counter()
    path = Path(path)
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
    channels = channels or _channels(module)
    module = module.eval()
    example = _example(module, grid, channels)
    with torch.no_grad():
        outputs = int(module(example).shape[-1])
    model = lower(capture(module, example), form)
    metadata = Metadata(
        version=__version__,
        grid=tuple(grid),
        form=form,
        layout=f"N {AXES.get(len(grid), ' '.join(f'E{d + 1}' for d in range(len(grid))))} C",
        channels=channels,
        outputs=outputs,
        **(about or {}),  # type: ignore[arg-type]
    )
    _set_metadata(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MDLSTMError(f"the exported model is not valid ONNX: {error}") from error

    session = Session(model.SerializeToString(), device="cpu")
    tried = {**random_inputs(grid, channels), **(inputs or {})}
    results = measure(session, float64_reference(module), tried, atol)
    max_abs = max(result.max_abs for result in results.values())
    for name, result in results.items():
        if not result.passed:
            raise ParityError(
                f"{path} was not written: ONNX Runtime is {result.max_abs:.1e} from the float64 reference "
                f"({name}), allowed is {atol:g} + {RTOL:g}·|y|; allow more with --atol, or train with "
                "a cell that keeps float32 accurate on large grids (--cell stable or leaky)"
            )
    parity = {"atol": atol, "rtol": RTOL, "max_abs": max_abs}
    metadata = replace(metadata, parity=parity)
    _set_metadata(model, metadata)
    data = model.SerializeToString()
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    seconds = time.perf_counter() - start
    return Report(path, metadata, len(model.graph.node), len(data), max_abs, seconds)


def _set_metadata(model: onnx.ModelProto, metadata: Metadata) -> None:
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata.to_props())


def _channels(module: nn.Module) -> int:
    for layer in module.modules():
        if isinstance(layer, MDLSTM):
            return layer.input_size
    raise InputError(
        f"{type(module).__name__} has no MDLSTM layer that tells the channels of x; give channels="
    )


def _example(module: nn.Module, grid: tuple[int, ...], channels: int) -> Tensor:
    """An input that the module takes, or a clear error."""
    parameter = next(module.parameters())
    example = parameter.new_zeros(2, *grid, channels)
    try:
        with torch.no_grad():
            module(example)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the network does not take a {show_size(grid)} grid of {channels} channels: {reason}"
        ) from error
    return example
