"""Causes of an error of an export: its graph, the precision, or the states of the network."""

from __future__ import annotations

import copy
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.errors import InputError
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.export.verification.cases import Case
from mdlstm_tk.export.verification.parity import RTOL, Float64Array, Parity, compare
from mdlstm_tk.export.verification.runtimes import Outputs
from mdlstm_tk.io.metadata import Metadata

ROUNDING = {"float32": RTOL, "float16": 2.0**-11}  # of weights, by dtype of the file


def overflows(spec: ExportSpec, case: Case, dtype: str) -> bool:
    """True if PyTorch, in the precision of the file, returns NaN or infinity as well."""
    return not all(np.isfinite(y).all() for y in _run_in(dtype, spec, case).values())


def _run_in(dtype: str, spec: ExportSpec, case: Case) -> Outputs:
    network = copy.deepcopy(spec.interface).half() if dtype == "float16" else spec.interface
    return network.run(case.inputs)


def explain_overflow(metadata: Metadata, spec: ExportSpec, case: Case, output: str) -> str:
    """The reason of numbers that are not finite, where states overflow."""
    of_output = "" if len(metadata.output_names) == 1 else f" of output '{output}'"
    return (
        f"ONNX Runtime returns NaN or infinity{of_output} on {case.name}, and {spec.interface.name} in "
        f"float64 does not, so its states outgrow {metadata.dtype}; use a cell whose state stays bounded "
        "(stable, leaky, slstm), or export it for the grid that you need with grid=... (--size)"
    )


def rounding_error(
    spec: ExportSpec, case: Case, parity: Parity, exact: Float64Array, atol: float, dtype: str
) -> Parity:
    """The error that rounding makes in the output that `parity` is of.

    It is that of PyTorch in float32, with weights that are off by as much as the dtype of the file rounds
    them; or, if it is larger, that of PyTorch in float16, which has few small numbers.

    Operators of ONNX Runtime, such as its sigmoid, are less precise than those of PyTorch, and always err
    to the same side, so that their errors add up in states that last for many positions.
    """
    network = copy.deepcopy(spec.interface)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(Tensor.is_floating_point, network.parameters()):
            signs = torch.randint(2, parameter.shape, generator=generator, device="cpu") * 2 - 1
            parameter.mul_(1 + ROUNDING[dtype] * signs.to(parameter))
    found = [network.run(case.inputs)[parity.output]]
    if dtype == "float16":
        with suppress(InputError):  # PyTorch lacks operators in it
            found += [y for y in [_run_in(dtype, spec, case)[parity.output]] if np.isfinite(y).all()]
    errors = [compare(y, exact, atol, parity.scales) for y in found]
    return max(errors, key=lambda error: error.severity)


def rounding_advice(spec: ExportSpec, rounding: Parity, is_rounding: bool, dtype: str) -> str:
    """The cause of an error, the graph or the precision, given the error that rounding makes."""
    off = f"weights that are off by {ROUNDING[dtype]:.0e}, is off by {rounding.max_abs:.1e}"
    text = f"PyTorch in float32, with {off}"
    if not is_rounding:
        return (
            f"{text} only, so the exported graph computes something else than the network; does its "
            "forward depend on more than its inputs, decide by an extent or the batch, or round a product "
            "of extents?"
        )
    if dtype != "float32":
        return f"{dtype} is not precise enough for it; export float32, or allow more with atol=... (--atol)"
    cells = {getattr(module, "cell", None) for module in spec.interface.modules()}
    bounded = ", or use a cell whose state stays bounded (stable, leaky)" if "graves" in cells else ""
    return (
        f"{text}, too, so the network itself needs more precision than float32 has; allow more with "
        f"atol=... (--atol){bounded}"
    )


def explain_error(
    metadata: Metadata, spec: ExportSpec, case: Case, parity: Parity, atol: float, advice: str
) -> str:
    """The reason of an error; `advice` is what rounding tells about it."""
    of_output = "" if len(metadata.output_names) == 1 else f" of output '{parity.output}'"
    tiled = metadata.form == "tiles"
    if tiled:
        advice = (
            f"does tile_stages() of {spec.interface.name} describe what its forward computes, and do "
            "before and head compute each position from that position alone?"
        )
    elif spec.padded and spec.grid_of(case.inputs["x"].shape) != spec.example_grid:
        advice = "a padded sample differs from the sample alone: the network reads the padding"
    scale = f"{atol:g}" if parity.scale == 1 else f"{atol:g}·{parity.scale:.3g}"
    return (
        f"error {parity.error:.1e}{of_output} of {'tiles' if tiled else 'ONNX Runtime'} against "
        f"{metadata.reference} on {case.name}, allowed is {scale} + {RTOL:g}·|y|; {advice}"
    )
