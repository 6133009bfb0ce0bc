"""The check of every export before its file is written: the model against the network in float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export.interface import float_dtypes
from mdlstm_tk.export.lowering.lower import walk
from mdlstm_tk.export.model_file import ExportReport, operators_to_trust
from mdlstm_tk.export.spec import ExportSpec, Shape
from mdlstm_tk.export.verification.cases import MAX_POSITIONS, Case, Draw
from mdlstm_tk.export.verification.parity import (
    ATOLS,
    RTOL,
    Inputs,
    Outcome,
    Outputs,
    Runtime,
    compare,
    compare_all,
    expected_outputs,
    feature_scale,
    session_run,
    with_padding,
)
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.io.npy import MAX_BYTES, Array
from mdlstm_tk.runtime.shapes import Grid
from mdlstm_tk.runtime.tiles.session import TiledSession

PADDED_SAMPLES = 3  # of random sizes


def write_verified(
    path: Path,
    content: Callable[[Metadata], bytes],
    models: Sequence[onnx.ModelProto],
    metadata: Metadata,
    spec: ExportSpec,
    atol: float | None,
    start: float,
    verify_inputs: Mapping[str, Array] | None = None,
) -> ExportReport:
    """Write a file if it agrees with its network, in float64 or in the precision that the network has.

    Args:
        path: the file.
        content: makes its content, given its metadata.
        models: the graphs in it.
        metadata: without the errors of the verification.
        spec: the network.
        atol: allowed absolute error in units of each feature's scale; None: that of the file's dtype and of
            the precision of the network.
        start: when the export began, in seconds of `time.perf_counter`.
        verify_inputs: more inputs x, by name.

    Raises:
        InputError: the network returns NaN, or mixes the samples of a batch, or does not take random x.
        MDLSTMError: ONNX Runtime does not run the model on some batch or grid.
        ParityError: the two disagree.
    """
    exact, precision = spec.interface.reference_for(spec.inputs(smallest_grid(spec), 1))
    metadata = replace(metadata, reference=precision)
    if atol is None:
        is_half = precision == "mixed" and torch.float16 in float_dtypes(spec.interface)
        atol = max(ATOLS[metadata.dtype], ATOLS["float16"] if is_half else 0)
    tiled = metadata.form == "tiles"
    together = tiled or not any(map(decides_for_a_batch, models))
    if together:
        _check_samples_are_apart(exact.run, spec)
    cases = list(_cases(spec, verify_inputs or {}))
    expected = expected_outputs(exact.run, cases, together)
    for case in cases:
        _check_finite(expected[case.name], case, spec)
    name = metadata.output_names[0]
    shapes = {case.inputs["x"].shape: expected[case.name][name].shape for case in cases} if tiled else {}
    session_type, data = TiledSession if tiled else Session, content(metadata)
    limit = len(data) if len(data) > MAX_BYTES else None  # a session takes a file of this size on request
    with session_type(data, "cpu", trusted=True, max_bytes=limit) as session:
        run = _explained(session_run(session), spec.interface.name, shapes)
        if spec.padded:
            grids = [spec.grid_of(case.inputs["x"].shape) for case in cases]
            run = with_padding(run, metadata, tuple(np.max(grids, axis=0).tolist()))
        outcomes = compare_all({"": run}, expected, cases, metadata, atol)[""]
    for case in cases:
        outcome = outcomes[case.name]
        if not outcome.parity.passed:
            reason = _explanation(metadata, spec, case, expected[case.name], outcome, atol)
            raise ParityError(f"{path} was not written: {reason}")
    max_abs = max(outcome.parity.max_abs for outcome in outcomes.values())
    metadata = replace(metadata, parity={"atol": atol, "rtol": RTOL, "max_abs": max_abs})
    data = content(metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    nodes, seconds = sum(len(model.graph.node) for model in models), time.perf_counter() - start
    return ExportReport(path, metadata, nodes, len(data), max_abs, seconds, operators_to_trust(*models))


def smallest_grid(spec: ExportSpec) -> Grid:
    """The grid with the fewest positions among those to verify on."""
    return min(spec.shapes, key=lambda grid: prod(grid))


def decides_for_a_batch(model: onnx.ModelProto) -> bool:
    """True if the graph has operators that decide for a batch as a whole, so that its samples depend on
    each other."""
    return any(node.op_type in ("If", "Loop") for node in walk(model.graph.node))


def _cases(spec: ExportSpec, verify_inputs: Mapping[str, Array]) -> Iterator[Case]:
    """Random inputs in batches of 1 and 3 on each grid, the inputs of the caller, the example, and smaller
    grids for padded samples.

    An input of the caller on a grid that the file does not take is left out, and so is one with so many
    positions that the reference would take minutes.

    Raises:
        InputError: an input of the caller has another number of axes than x, or is empty.
    """
    for grid in spec.shapes:
        inputs, size = spec.inputs(grid, 4), format_size(grid)
        for name, part in (("random × 1", slice(1)), ("random × 3", slice(1, 4))):
            yield Case(f"{size}, {name}", size, {key: value[part] for key, value in inputs.items()})
    others = dict(verify_inputs)
    if spec.example is not None:
        others["example_inputs"] = spec.example.numpy()
    for name, value in others.items():
        x = np.asarray(value, np.float32)
        if x.ndim != spec.ndim + 2 or x.size == 0:
            raise InputError(
                f"{name} has shape {x.shape}, expected x with {spec.ndim + 2} axes, none empty"
            )
        grid = spec.grid_of(x.shape)
        if grid in spec.shapes or (spec.fits(grid) and np.prod(grid) <= MAX_POSITIONS):
            further = list(spec.extra_batch(len(x), grid).items())
            yield Case(name, name, dict([("x", x), *further]))
    if spec.padded:
        rng, limit = np.random.default_rng(0), spec.example_grid
        units = [extent // m for extent, m in zip(limit, spec.multiple_of, strict=True)]
        random_units = rng.integers(1, [unit + 1 for unit in units], (PADDED_SAMPLES, spec.ndim))
        for seed, unit in enumerate([*random_units.tolist(), [1] * spec.ndim]):
            grid = tuple(u * m for u, m in zip(unit, spec.multiple_of, strict=True))
            name = f"random {seed}: {format_size(grid)} in {format_size(limit)}"
            yield Case(name, name, spec.inputs(grid, 1, seed))


def _check_samples_are_apart(run: Runtime, spec: ExportSpec) -> None:
    """Check that the outputs of a sample do not depend on the others in its batch."""
    inputs = spec.inputs(smallest_grid(spec), 3)
    middle = slice(1, 2)  # since a network may mix a sample only with those before it, or after it
    sample = {name: value[middle] for name, value in inputs.items()}
    alone, in_batch = run(sample), run(inputs)
    if _agree(alone, {name: y[middle] for name, y in in_batch.items()}):
        return
    name = spec.interface.name
    if not _agree(alone, run(sample)):
        raise InputError(
            f"{name} returns other numbers each time for the same x; a file computes the same each time, "
            "so remove what is random from its forward in eval mode"
        )
    raise InputError(
        f"{name} mixes the samples of a batch: what it returns for a sample alone differs from what it "
        "returns for the same sample among others; a network to export must compute each sample by itself"
    )


def _agree(outputs: Outputs, others: Outputs) -> bool:
    """True if outputs are equal but for rounding; NaN is equal to NaN."""
    return all(
        y.shape == others[name].shape
        and np.allclose(y, others[name], rtol=1e-6, atol=1e-6, equal_nan=y.dtype.kind == "f")
        for name, y in outputs.items()
    )


def _check_finite(outputs: Outputs, case: Case, spec: ExportSpec) -> None:
    """Check that the network itself returns finite numbers."""
    for name, y in outputs.items():
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            value = "NaN" if np.isnan(y).any() else "inf"
            of_output = "" if len(outputs) == 1 else f" in output '{name}'"
            raise InputError(
                f"{spec.interface.name} itself returns {value}{of_output} on {case.name}, x being "
                f"{_described(spec.draw, case)}; give example_range=(low, high), the values that it is "
                "made for"
            )


def _described(draw: Draw, case: Case) -> str:
    if "random" not in case.name:
        return "the given array"
    if draw.function is not None:
        return "drawn by example_range"
    return "standard normal" if draw.range is None else f"between {draw.range[0]:g} and {draw.range[1]:g}"


def _explained(run: Runtime, name: str, shapes: Mapping[Shape, Shape]) -> Runtime:
    """The same runtime with errors that name the cause: of a run that fails, and in tiles of a wrong shape.

    Args:
        run: runs the file.
        name: that of the network.
        shapes: in tiles the shape of y by that of x; otherwise empty.
    """

    def run_explained(inputs: Inputs) -> Outputs:
        shape = inputs["x"].shape
        try:
            outputs = run(inputs)
        except MDLSTMError as error:
            raise MDLSTMError(
                f"{name} cannot be exported this way: torch fixed the batch or an extent, and an x of "
                f"shape {shape} does not run ({error}); export it for one grid"
            ) from error
        for y in outputs.values():
            if y.shape != shapes.get(shape, y.shape):
                raise ParityError(
                    f"{name} returns shape {shapes[shape]} for x of shape {shape}, but what its "
                    f"tile_stages() describes returns {y.shape}"
                )
        return outputs

    return run_explained


def _explanation(
    metadata: Metadata,
    spec: ExportSpec,
    case: Case,
    expected: Outputs,
    outcome: Outcome,
    atol: float,
) -> str:
    """The reason of an error. The error of PyTorch in float32 on the same input tells whether the graph or
    the precision is to blame."""
    network, parity, dtype = spec.interface, outcome.parity, metadata.dtype
    of_output = "" if len(expected) == 1 else f" of output '{outcome.output}'"
    scale = f"{atol:g}" if parity.scale == 1 else f"{atol:g}·{parity.scale:.3g}"
    tiled = metadata.form == "tiles"
    text = (
        f"error {parity.max_abs:.1e}{of_output} of {'tiles' if tiled else 'ONNX Runtime'} against "
        f"{metadata.reference} on {case.name}, allowed is {scale} + {RTOL:g}·|y|; "
    )
    if tiled:
        return (
            f"{text}does tile_stages() of {network.name} describe what its forward computes, and do before "
            "and head compute each position from that position alone?"
        )
    if spec.padded and spec.grid_of(case.inputs["x"].shape) != spec.example_grid:
        return f"{text}a padded sample differs from the sample alone: the network reads the padding"
    if dtype != "float32":
        return f"{text}{dtype} is not precise enough for it; export float32, or allow more with atol=..."
    y, exact = network.run(case.inputs)[outcome.output], expected[outcome.output]
    in_torch = compare(y, exact, atol, scale=feature_scale([exact]))
    if in_torch.severity > 0.3 * parity.severity:
        cells = {getattr(module, "cell", None) for module in network.modules()}
        advice = ", or use a cell whose state stays bounded (stable, leaky)" if "graves" in cells else ""
        return (
            f"{text}PyTorch in float32 is off by {in_torch.max_abs:.1e}, too, so the network itself needs "
            f"more precision than float32 has; allow more with atol=...{advice}"
        )
    return (
        f"{text}PyTorch in float32 is off by {in_torch.max_abs:.1e} only, so the exported graph computes "
        "something else than the network; does its forward depend on more than its inputs?"
    )
