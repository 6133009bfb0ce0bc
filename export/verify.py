"""Does a file compute what its network does? Two questions, asked before it is written and later.

Is the graph the network? The evaluator of onnx, in float64, is compared with the network in float64, at the
own scale of each feature. Does the precision of the file suffice? A runtime is compared with the network in
float64, at a scale of at least 1, as runtimes round the numbers of size 1 that small outputs are made of;
if the first question has no answer, or the evaluator says no, at the own scale, too.

An error is within tolerance if it is at most atol·s + rtol·|y|. The scale s of a feature of y is its
largest absolute value on all inputs of a verification. Of integers, a share of 0.001 may differ at most.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError, ParityError
from mdlstm_tk.export.inputs import Cases
from mdlstm_tk.export.network import Network, Outputs
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import crop
from mdlstm_tk.runtime.tiles.session import TiledSession

Runtime = Callable[[dict[str, Array]], Outputs]
Scales = dict[str, Array]

RTOL = 1e-5
ATOLS = {"float32": 1e-5, "float16": 5e-3}  # by dtype of the file
SMALLEST = float(np.finfo(np.float32).tiny) / RTOL  # numbers that are off by less have fewer digits
UNEQUAL = 1e-3  # of integers
GRAPH = "graph in float64"
NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Parity:
    """The error of one runtime against float64 on one input.

    Attributes:
        max_abs: largest absolute error; of integers the share that differs.
        max_ratio: largest ratio of an error to its tolerance; infinite if the output is not finite.
        output: the name of the output that is furthest out of tolerance.
    """

    max_abs: float
    max_ratio: float
    output: str = "y"

    @property
    def passed(self) -> bool:
        """True if every element is within tolerance."""
        return self.max_ratio <= 1


@dataclass(frozen=True)
class VerificationReport:
    """The result of `verify_model`; `print` shows a line for each runtime.

    Attributes:
        model: the file, or the folder with the files.
        models: the metadata of each file that was verified, by its path.
        references: what the files were compared with, in words.
        outcomes: the errors by runtime, then by the name of the case.
    """

    model: Path
    models: dict[Path, Metadata] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    outcomes: dict[str, dict[str, Parity]] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Names of the runtimes that are out of tolerance on at least one case."""
        return [name for name in self.outcomes if not self.worst(name)[1].passed]

    @property
    def reference(self) -> str:
        """The references of the files, in words."""
        return ", and ".join(dict.fromkeys(self.references))

    def worst(self, runtime: str) -> tuple[str, Parity]:
        """The case on which a runtime is furthest out of tolerance, or closest to that, and its error."""
        return max(self.outcomes[runtime].items(), key=lambda item: item[1].max_ratio)

    def tolerance(self) -> str:
        """The largest error that is allowed in ONNX Runtime."""
        atols = {metadata.parity.get("atol", RTOL) for metadata in self.models.values()}
        return " or ".join(f"{atol:g}·s + {RTOL:g}·|y|" for atol in sorted(atols))

    def __str__(self) -> str:
        """The file and the reference, a line for each runtime, and the tolerance."""
        lines = [f"{self.model} ({counted(len(self.models), 'model')}) against {self.reference}"]
        for runtime in self.outcomes:
            case, parity = self.worst(runtime)
            verdict = "out of tolerance" if runtime in self.failed else "within tolerance"
            lines.append(f"{runtime}: {parity.max_abs:.1e} on {case}, {verdict}")
        return "\n".join([*lines, f"tolerance: {self.tolerance()}"])

    def as_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All outcomes as JSON values, by runtime and case; a number that is not finite becomes None."""

        def of_case(parity: Parity) -> dict[str, Any]:
            error = parity.max_abs if math.isfinite(parity.max_abs) else None
            return {"max_abs": error, "output": parity.output, "passed": parity.passed}

        return {
            runtime: {case: of_case(parity) for case, parity in parities.items()}
            for runtime, parities in self.outcomes.items()
        }

    def raise_if_failed(self) -> None:
        """Do nothing if all runtimes passed.

        Raises:
            ParityError: a runtime failed; names the case, and what to do about it.
        """
        for runtime in self.failed[:1]:
            case, worst = self.worst(runtime)
            if runtime == GRAPH:
                advice = (
                    "the graph computes something else; does forward decide by a dtype, or read padding?"
                )
            elif any(metadata.form == "tiles" for metadata in self.models.values()):
                advice = (
                    "does tile_stages() describe what forward computes, each position from itself alone?"
                )
            else:
                advice = (
                    "its precision or its sigmoid, off by up to 1e-7, may not suffice; allow more with "
                    "atol=... (--atol), or take a cell of bounded states"
                )
            raise ParityError(
                f"{', '.join(self.failed)} computes something else: '{worst.output}' is off by "
                f"{worst.max_abs:.1e} against {self.reference} on {case}, {worst.max_ratio:.3g} times the "
                f"tolerance; {advice}"
            )


def compare(y: Array, exact: Array, atol: float, scale: Any, output: str) -> Parity:
    """The error of an output against the expected one, which has its shape; `atol` is in units of the scale
    of each feature."""
    if exact.dtype.kind != "f":
        share = float(np.mean(y != exact))
        return Parity(share, share / UNEQUAL, output)
    error = np.abs(y.astype(np.float64) - exact)
    with np.errstate(divide="ignore"):  # atol may be 0
        tolerance = atol * scale + RTOL * np.abs(exact)
        ratio = np.divide(error, tolerance, out=np.zeros_like(error), where=error != 0)
    ratio[~np.isfinite(ratio)] = np.inf
    return Parity(float(error.max()), float(ratio.max()), output)


def scales_of(expected: Iterable[Outputs], metadata: Metadata) -> Scales:
    """The scale of each feature of each output, from the outputs on all inputs of a verification.

    It broadcasts against the output, and is one for all features if the output has none or a number of them
    that depends on the grid.
    """
    scales: Scales = {}
    outputs = list(expected)
    for name in metadata.output_names:
        found = []
        for y in (np.abs(each[name].astype(np.float64)) for each in outputs):
            axis = metadata.class_axis(y) % y.ndim
            axes = tuple(k for k in range(y.ndim) if k != axis) if y.ndim > 1 else None
            found.append(y.max(axis=axes, keepdims=True))
        if len({each.shape for each in found}) > 1:
            found = [each.max(keepdims=True) for each in found]
        scales[name] = np.maximum(np.maximum.reduce(found), SMALLEST)
    return scales


def check_samples(exact: Network, inputs: dict[str, Array]) -> None:
    """Check that the outputs for a sample do not depend on others in its batch, or on chance.

    Raises:
        InputError: they do.
    """
    whole = exact.run(inputs)
    for k in range(len(inputs["x"])):
        alone = exact.run({name: value[k : k + 1] for name, value in inputs.items()})
        for name, y in alone.items():
            among = whole[name][k : k + 1]
            tolerance = 1e-9 * max(SMALLEST, float(np.abs(among).max(initial=0)))
            if y.shape != among.shape or not np.allclose(y, among, rtol=1e-9, atol=tolerance):
                raise InputError(
                    f"{exact.name} mixes the samples of a batch, or is random: what it returns for a "
                    "sample alone differs from what it returns for it among others"
                )


def errors_of_file(
    graph: Runtime | None,
    sessions: Sequence[Session | TiledSession],
    cases: Cases,
    expected: Mapping[str, Outputs],
    atol: float,
    is_known: bool = False,
    few: Sequence[str] | None = None,
) -> dict[str, dict[str, Parity]]:
    """The errors of a graph in float64 and of runtimes on each case, by their names.

    The evaluator of onnx lacks operators, and some are wrong in it, as Resize is to some extents. So the
    runtimes have the last word, at the outputs' own scale.

    Args:
        graph: runs the graph in float64; None if the evaluator cannot, or the graph is the reference.
        expected: the outputs of the reference, from which their scales follow; for other cases, too.
        atol: of the runtimes.
        is_known: whether the graph is known to be that of the network.
        few: the cases on which the graph is run, as its evaluator is slow; None: all.

    Raises:
        ParityError: an output has another shape than expected.
        MDLSTMError: ONNX Runtime fails.
    """
    metadata, found = sessions[0].metadata, dict[str, dict[str, Parity]]()
    scales, own_atol = scales_of(expected.values(), metadata), ATOLS.get(metadata.dtype, RTOL)

    def add(name: str, run: Runtime, atol: float) -> bool:
        names = few if few is not None and name == GRAPH else cases
        some = {case: cases[case] for case in names if case in cases}
        found[name] = _errors_of(run, some, expected, metadata, atol, scales)
        return all(parity.passed for parity in found[name].values())

    is_right = graph is None or add(GRAPH, graph, own_atol)
    if is_known or (graph is not None and is_right):
        scales = {name: np.maximum(scale, 1) for name, scale in scales.items()}
    atol = atol if is_right else min(atol, own_atol)  # else it would hide a wrong graph
    passed = [add(f"ONNX Runtime, {each.device}", session_run(each, cases), atol) for each in sessions]
    if not is_right and all(passed):
        del found[GRAPH]
    return found


def _errors_of(
    run: Runtime,
    cases: Cases,
    expected: Mapping[str, Outputs],
    metadata: Metadata,
    atol: float,
    scales: Scales,
) -> dict[str, Parity]:
    """The error of a runtime on each case, by its name: that of the worst output.

    Raises:
        ParityError: the runtime returns another shape than expected.
    """
    errors = {}
    for case, inputs in cases.items():
        outputs, found = run(inputs), []
        for name, exact in expected[case].items():
            y = outputs[name]
            if metadata.takes_sizes and kind_named(metadata.kind).reads_lines:
                y = y[tuple(map(slice, exact.shape))]  # whose steps continue into the padding
            if y.shape != exact.shape:
                raise ParityError(f"output '{name}' has shape {y.shape} on {case}, expected {exact.shape}")
            found.append(compare(y, exact, atol, scales[name], name))
        errors[case] = max(found, key=lambda parity: parity.max_ratio)
    return errors


def _padded(run: Runtime, metadata: Metadata, cases: Cases) -> Runtime:
    """A runtime that takes the cases, which have no `sizes`, also of a file that takes them."""
    if not metadata.takes_sizes:
        return run
    largest = np.max([metadata.grid_of(inputs["x"].shape) for inputs in cases.values()], axis=0).tolist()
    limit = metadata.grid_like(largest)

    def run_padded(inputs: dict[str, Array]) -> Outputs:
        """The samples are padded with their values again to the grid `limit`, after a first sample that
        fills it, so that one batch has several sizes. A model that reads the padding returns something else
        than for the samples alone."""
        x = inputs["x"]
        grid = metadata.grid_of(x.shape)
        padded = np.resize(x, (1 + len(x), *metadata.shape_of(limit))).astype(x.dtype)
        padded[1:, *map(slice, x.shape[1:])] = x
        sizes = np.asarray([limit, *[grid] * len(x)], np.int64)
        further = {k: np.concatenate([value[:1], value]) for k, value in inputs.items() if k != "x"}
        outputs = run({"x": padded, "sizes": sizes, **further})
        windows = metadata.windows
        return {k: crop(y[1:], windows[k], grid, limit, metadata) for k, y in outputs.items()}

    return run_padded


def session_run(session: Session | TiledSession, cases: Cases, in_one_tile: bool = False) -> Runtime:
    """Runs a session on cases; tiles are of two windows along each axis, so that small grids have several,
    if not the whole grid is to be one."""
    first = session.metadata.output_names[0]

    def run(inputs: dict[str, Array]) -> Outputs:
        with warnings.catch_warnings(action="ignore"):  # of random numbers that training has not seen
            if isinstance(session, TiledSession):
                windows = np.prod([stage.window for stage in session.archive.stages], axis=0)
                tile = max(inputs["x"].shape) if in_one_tile else 2 * int(windows.max())
                return {first: session(inputs["x"], tile)}
            outputs = session(**inputs)
        return outputs if isinstance(outputs, dict) else {first: outputs}

    return _padded(run, session.metadata, cases)


class Erf(OpRun):
    """The operator in float64: that of onnx.reference computes in float32, for GELU as well."""

    op_domain, op_schema = "", onnx.defs.get_schema("Erf")

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def graph_run(model: onnx.ModelProto, metadata: Metadata, cases: Cases) -> Runtime | None:
    """Runs a graph on cases in the evaluator of onnx, in float64; None if that cannot run it: it lacks
    operators, and has some in part."""
    names = list(metadata.output_names)

    def run(inputs: dict[str, Array]) -> Outputs:
        feeds = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}
        with np.errstate(all="ignore"):
            outputs: Any = evaluator.run(names, feeds)
        return {name: np.asarray(y) for name, y in zip(names, outputs, strict=True)}

    try:
        evaluator = ReferenceEvaluator(_in_float64(model), new_ops=[Erf])
        padded = _padded(run, metadata, cases)
        padded({name: value[:1] for name, value in next(iter(cases.values())).items()})
    except Exception:  # of all kinds
        return None
    return padded


def _in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which all float32 and float16 tensors and casts are float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for part in list(_parts(wide)):
        if isinstance(part, TensorProto) and part.data_type in NARROW:
            array = numpy_helper.to_array(part).astype(np.float64)
            part.CopyFrom(numpy_helper.from_array(array, part.name))
        elif isinstance(part, onnx.TypeProto.Tensor) and part.elem_type in NARROW:
            part.elem_type = TensorProto.DOUBLE
        elif isinstance(part, onnx.NodeProto) and part.op_type == "ConstantOfShape" and not part.attribute:
            zero = numpy_helper.from_array(np.zeros(1))  # its default value is a float32 zero
            part.attribute.append(helper.make_attribute("value", zero))
        elif isinstance(part, onnx.NodeProto) and part.op_type in ("Cast", "Constant"):
            for attribute in part.attribute:
                if attribute.name == "to" and attribute.i in NARROW:
                    attribute.i = TensorProto.DOUBLE
                elif attribute.name in ("value_float", "value_floats"):
                    value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                    tensor = numpy_helper.from_array(np.asarray(value, np.float64))
                    attribute.CopyFrom(helper.make_attribute("value", tensor))
    return wide


def _parts(message: Message) -> Iterator[Message]:
    """A protobuf message and all that it holds, at any depth."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _parts(part)
