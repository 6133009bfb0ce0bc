"""The check of every export before its file is written: the model against the network in float64."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export.interface import Interface, float_dtypes, mdlstm_layers
from mdlstm_tk.export.lowering.lower import walk
from mdlstm_tk.export.model_file import ExportReport, operators_to_trust
from mdlstm_tk.export.spec import ExportSpec, Shape
from mdlstm_tk.export.verification.cases import (
    MAX_POSITIONS,
    Case,
    RandomValues,
    prepared_x,
    random_cases,
)
from mdlstm_tk.export.verification.causes import (
    explain_error,
    explain_overflow,
    overflows,
    rounding_advice,
    rounding_error,
)
from mdlstm_tk.export.verification.parity import ATOLS, RTOL, Parity, compare_cases
from mdlstm_tk.export.verification.runtimes import (
    Inputs,
    Outputs,
    Runtime,
    evaluate_graph,
    expected_outputs,
    session_run,
    with_padding,
)
from mdlstm_tk.io import Array
from mdlstm_tk.io.files import open_output
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.tiles.session import TiledSession

LARGEST_GRID, LARGEST_TENSOR = 2**16, 2**25  # positions; numbers, of 8 bytes


class Candidate(NamedTuple):
    """A file that nobody has verified yet.

    Attributes:
        models: the graphs in it.
        content: makes its content, given its metadata.
        beyond: shapes of x for which torch may have captured something else than forward computes.
    """

    models: Sequence[onnx.ModelProto]
    content: Callable[[Metadata], bytes]
    beyond: Sequence[Shape] = ()


def write_verified(
    path: Path,
    candidate: Candidate,
    metadata: Metadata,
    spec: ExportSpec,
    start: float,
    atol: float | None,
    verify_inputs: Mapping[str, Array] | None,
    replace_file: bool,
) -> ExportReport:
    """Write a file if it agrees with its network, in float64 or in the precision that the network has.

    Args:
        path: the file.
        candidate: what it would hold.
        metadata: without the errors of the verification.
        spec: the network.
        start: when the export began, in seconds of `time.perf_counter`.
        atol: allowed absolute error in units of each feature's scale; None: that of the file's dtype and of
            the precision of the network.
        verify_inputs: more inputs x, by name.
        replace_file: the file may exist by now.

    Raises:
        InputError: the network returns NaN, or mixes the samples of a batch, or does not take random x;
            or the file exists, and may not be replaced.
        MDLSTMError: ONNX Runtime does not run the model on some batch or grid.
        ParityError: the two disagree.
    """
    exact, precision = spec.interface.reference_for(spec.inputs(smallest_grid(spec), 1))
    metadata = replace(metadata, reference=precision)
    if atol is None:
        is_half = precision == "mixed" and torch.float16 in float_dtypes(spec.interface)
        atol = max(ATOLS[metadata.dtype], ATOLS["float16"] if is_half else 0)
    nodes = [node for model in candidate.models for node in walk(model.graph.node)]
    # A branch may be the same for most batches.
    samples = range(8) if any(node.op_type in ("If", "Loop") for node in nodes) else range(1, 2)
    for batch in {max(3, len(samples)), *(shape[0] for shape in candidate.beyond)}:
        _check_samples_are_apart(exact.run, spec, batch, samples[:batch])
    small = list(_cases(metadata, spec, verify_inputs or {}))
    small_names = {case.name for case in small}
    expected = expected_outputs(exact.run, small)
    large = list(_large_cases(spec, exact, candidate.beyond, metadata.form == "scan"))
    expected |= {case.name: outputs for case, outputs in large}
    groups = [small, *([case] for case, _ in large)]  # with padding, all cases of a group run on one grid
    cases = [case for group in groups for case in group]
    for case in cases:
        _check_finite(expected[case.name], case, spec)
    session_type, data = TiledSession if metadata.form == "tiles" else Session, candidate.content(metadata)
    errors: dict[str, Parity] = {}
    evaluated: Runtime | None = None
    if precision == "float64" and metadata.form != "tiles":
        evaluated = partial(evaluate_graph, candidate.models[0], list(metadata.output_names))
    run = _explained(session_run(session_type(data, "cpu", trusted=True)), spec.interface.name)
    for group in groups:
        grids = [spec.grid_of(case.inputs["x"].shape) for case in group]
        largest = tuple(np.max(grids, axis=0).tolist())
        runtime, graph = run, evaluated
        if spec.padded:
            runtime = with_padding(run, metadata, largest)
            graph = evaluated and with_padding(evaluated, metadata, largest)
        names = small_names | {case.name for case in group}  # a large grid says nothing of small ones
        scaling = {name: expected[name] for name in names}
        errors |= compare_cases(runtime, scaling, group, metadata, atol, exact, graph)
    for case in cases:
        parity, is_small = errors[case.name], case.name in small_names
        if parity.passed:
            continue
        is_overflow = not np.isfinite(parity.max_abs) and overflows(spec, case, metadata.dtype)
        if is_overflow and not is_small and case.inputs["x"].shape not in candidate.beyond:
            del errors[case.name]
            warnings.warn(
                f"on {case.name}, ONNX Runtime returns NaN or infinity, as the states of "
                f"{spec.interface.name} outgrow {metadata.dtype}; run {path} on smaller grids, or use a "
                "cell whose state stays bounded (stable, leaky, slstm)",
                stacklevel=3,
            )
            continue
        if is_overflow:
            reason = explain_overflow(metadata, spec, case, parity.output)
            raise ParityError(f"{path} was not written: {reason}")
        exact_y, dtype = expected[case.name][parity.output], metadata.dtype
        rounding = rounding_error(spec, case, parity, exact_y, atol, dtype)
        is_rounding = rounding.severity > 0.3 * parity.severity
        if is_small or not is_rounding:
            advice = rounding_advice(spec, rounding, is_rounding, dtype)
            reason = explain_error(metadata, spec, case, parity, atol, advice)
            raise ParityError(f"{path} was not written: {reason}")
    max_abs = max(parity.max_abs for parity in errors.values())
    metadata = replace(metadata, parity={"atol": atol, "rtol": RTOL, "max_abs": max_abs})
    data = candidate.content(metadata)
    with open_output(path, replace_file) as file:
        file.write(data)
    count, seconds = sum(len(m.graph.node) for m in candidate.models), time.perf_counter() - start
    trust = operators_to_trust(*candidate.models)
    return ExportReport(path, metadata, count, len(data), max_abs, seconds, trust)


def smallest_grid(spec: ExportSpec) -> Grid:
    """The grid with the fewest positions among those to verify on."""
    return min(spec.shapes, key=lambda grid: prod(grid))


def _cases(metadata: Metadata, spec: ExportSpec, verify_inputs: Mapping[str, Array]) -> Iterator[Case]:
    """Random inputs on each grid, the inputs of the caller, and the example.

    An input of the caller with so many positions that the reference would take minutes is left out.

    Raises:
        InputError: the file does not take an input of the caller.
    """
    cases = list(random_cases(spec.inputs, spec.grids))
    yield from cases
    own = {*(case.name for case in cases), "example_inputs"}
    if taken := sorted(own & verify_inputs.keys()):
        name = taken[0]
        raise InputError(f"verify_inputs has '{name}', as the export calls an input of its own; rename it")
    others = dict(verify_inputs)
    if spec.example is not None:
        others["example_inputs"] = spec.example.numpy()
    for name, value in others.items():
        x = prepared_x(value, name, metadata)
        grid = metadata.grid_of(x.shape)
        if grid in spec.shapes or np.prod(grid) <= MAX_POSITIONS:
            further = list(spec.extra_batch(len(x), grid).items())
            yield Case(name, name, dict([("x", x), *further]))


def _large_cases(
    spec: ExportSpec, exact: Interface, beyond: Sequence[Shape], is_scan: bool
) -> Iterator[tuple[Case, Outputs]]:
    """Random inputs with their outputs in float64: one on a large grid, and one of each shape in `beyond`
    that the network takes.

    States that grow from one wavefront to the next do not show on small grids. Free extents of a scan are
    doubled until the next grid would be beyond `LARGEST_GRID`, need a tensor of more than `LARGEST_TENSOR`
    numbers, or take seconds. All layers of `exact` are set to the torch backend, which is much faster on
    such grids.
    """
    for layer in mdlstm_layers(exact):
        layer.backend = "torch"
    found, sizes, extent = [], list[int](), 8
    while is_scan and None in spec.grid and extent < 256:
        extent *= 2
        axes = zip(spec.grid, spec.multiple_of, strict=True)
        grid = tuple(fixed or max(extent // m, 1) * m for fixed, m in axes)
        case = Case(f"{format_size(grid)}, random × 1", format_size(grid), spec.inputs(grid, 1))
        start = time.perf_counter()
        try:
            with _LargestTensor() as largest:  # type: ignore[no-untyped-call]
                outputs = exact.run(case.inputs)
        except InputError:
            continue
        if np.prod(grid) > max(np.prod(other) for other in spec.shapes):
            found = [(case, outputs)]
        sizes = [*sizes[-1:], largest.size]
        free = spec.grid.count(None)
        is_large = sizes[-1] ** 2 / sizes[0] > LARGEST_TENSOR or np.prod(grid) * 2**free > LARGEST_GRID
        if is_large or time.perf_counter() - start > 0.5:
            break
    yield from found
    for batch, grid in ((shape[0], spec.grid_of(shape)) for shape in beyond):
        size = f"{format_size(grid)}, random × {batch}"
        case = Case(size, size, spec.inputs(grid, batch))
        with suppress(InputError):
            yield case, exact.run(case.inputs)


class _LargestTensor(TorchDispatchMode):
    """Finds the largest tensor that torch computes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


def _check_samples_are_apart(run: Runtime, spec: ExportSpec, batch: int, samples: Sequence[int]) -> None:
    """Check that the outputs of some samples do not depend on the others in their batch. The middle one is
    among them, since a network may mix a sample only with those before it, or after it."""
    inputs, name = spec.inputs(smallest_grid(spec), batch), spec.interface.name
    in_batch = run(inputs)
    for k in samples:
        sample = {name: value[k : k + 1] for name, value in inputs.items()}
        alone = run(sample)
        if _agree(alone, {name: y[k : k + 1] for name, y in in_batch.items()}):
            continue
        if not _agree(alone, run(sample)):
            raise InputError(
                f"{name} returns other numbers each time for the same x; a file computes the same each "
                "time, so remove what is random, or kept from one call to the next, from its forward in "
                "eval mode"
            )
        raise InputError(
            f"{name} mixes the samples of a batch: what it returns for a sample alone differs from what it "
            "returns for the same sample among others; a network to export must compute each sample by "
            "itself"
        )


def _agree(outputs: Outputs, others: Outputs) -> bool:
    """True if outputs are equal but for rounding; NaN is equal to NaN."""
    return all(
        y.shape == others[name].shape
        and np.allclose(y, others[name], rtol=1e-6, atol=1e-6 * _size(y), equal_nan=y.dtype.kind == "f")
        for name, y in outputs.items()
    )


def _size(y: Array) -> float:
    """The largest |y|, at most 1; for numbers so small that rounding may change them as much, more."""
    if y.dtype.kind != "f":
        return 1.0
    rounded = 1e7 * float(np.finfo(y.dtype).eps)
    return min(1.0, float(np.abs(np.where(np.isfinite(y), y, 0)).max(initial=rounded)))


def _check_finite(outputs: Outputs, case: Case, spec: ExportSpec) -> None:
    """Check that the network itself returns finite numbers, and some."""
    for name, y in outputs.items():
        if not y.size:
            raise InputError(
                f"{spec.interface.name} returns '{name}' of shape {y.shape} on {case.name}, expected no "
                "empty outputs"
            )
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            value = "NaN" if np.isnan(y).any() else "inf"
            of_output = "" if len(outputs) == 1 else f" in output '{name}'"
            raise InputError(
                f"{spec.interface.name} itself returns {value}{of_output} on {case.name}, x being "
                f"{_described(spec.draw, case)}; give example_range=(low, high), the values that it is "
                "made for"
            )


def _described(draw: RandomValues, case: Case) -> str:
    if "random" not in case.name:
        return "the given array"
    if draw.function is not None:
        return "drawn by example_range"
    return "standard normal" if draw.range is None else f"between {draw.range[0]:g} and {draw.range[1]:g}"


def _explained(run: Runtime, name: str) -> Runtime:
    """The runtime of a file, with errors that say why the network called `name` cannot be exported."""

    def run_explained(inputs: Inputs) -> Outputs:
        try:
            return run(inputs)
        except MDLSTMError as error:
            raise MDLSTMError(
                f"{name} cannot be exported this way: torch fixed the batch or an extent, and an x of "
                f"shape {inputs['x'].shape} does not run ({error}); export it for one grid"
            ) from error

    return run_explained
