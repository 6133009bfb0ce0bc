"""`verify_model`: compare every runtime that can run an exported file with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.export.copies import eval_copy
from mdlstm_tk.export.outputs import named_outputs
from mdlstm_tk.export.run_export import find_checkpoint
from mdlstm_tk.export.tensor_spec import read_model, tensor_specs
from mdlstm_tk.export.verification.cases import Case, Grid, UserInputs, random_cases, user_cases
from mdlstm_tk.export.verification.divergence import first_divergence, wavefront_errors
from mdlstm_tk.export.verification.graph_reference import GraphReference
from mdlstm_tk.export.verification.parity import (
    ATOL,
    Array,
    Float64Array,
    by_name,
    compare,
    feature_scale,
    float64_reference,
    with_required_sizes,
    worst,
)
from mdlstm_tk.export.verification.report import Outcome, VerificationReport
from mdlstm_tk.export.verification.tile_verifier import run_in_tiles, small_tile
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.isolation.rule import choose_isolation
from mdlstm_tk.runtime.model_discovery import archives_in, models_in, without_drawing
from mdlstm_tk.runtime.samples import check_takes_grids
from mdlstm_tk.runtime.security.interface import TensorSpec
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.runtime.tiles.archive import is_archive, read_archive_bytes
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.training import Run, load_checkpoint

Runtime = Callable[[Case], dict[str, Array]]
Evaluate = Callable[[dict[str, Array]], dict[str, Array]]  # the outputs of a file, by name, from all inputs
DEFAULT_GRID = (5, 7, 3)  # for a model that takes any grid and is not of a run, or of one with a large grid
MAX_POSITIONS = 2**22  # of a grid that a run names; a run may come from a stranger


def verify_model(
    model: str | Path,
    against: nn.Module | Run | str | Path | None = None,
    *,
    inputs: UserInputs | None = None,
    device: str = "auto",
    seeds: int = 2,
    seed: int = 0,
    max_bytes: int | None = None,
    timeout: float | None = None,
) -> VerificationReport:
    """Compare an exported model with the network it came from.

    PyTorch in float32, ONNX Runtime and the ONNX reference evaluator are each compared with the float64
    reference, on random inputs and on samples of the task. A model that takes several grids is compared
    on grids of odd shapes as well. The tolerance is the one that the model was exported with.

        >>> verify_model("net.onnx", net).raise_if_failed()
        >>> verify_model("runs/diagonal").raise_if_failed()                  # all exports of a run
        >>> verify_model("net.onnx", net, inputs={"mine": x}).raise_if_failed()

    Args:
        model: a file that `export_onnx`, `export_tiles` or `export_run` wrote, or a folder of such files,
            such as that of a run.
        against: the network, or the run or checkpoint file that it was exported from. None: the run in
            whose folder the file lies. If there is none, or the file is not of a run, its own graph is
            evaluated in float64: that shows whether the runtimes compute the graph, but not whether the
            graph is that of the network.
        inputs: arrays by name, or files that `mdlstm infer` reads, to compare on in place of the inputs
            above. An array is an x, with or without batch and channel axes; for a model with further inputs
            it is a mapping from the names of the inputs to arrays, or a `.npz` file that holds such.
        device: for ONNX Runtime: "cpu", "cuda", "cuda:N", or "auto", which takes the CPU and, where it
            works, CUDA as well.
        seeds: number of random seeds.
        seed: the first seed.
        max_bytes: maximum size of the model file; 1 GiB if None.
        timeout: seconds that ONNX Runtime may run. None: unlimited, or 120 in isolation. It is isolated, as
            by `mdlstm infer`, if this is given or the model was not exported on this machine; PyTorch and
            the reference evaluator are not.

    Returns:
        The outcome of every runtime on every case. A failure raises nothing by itself; call
        `raise_if_failed` on the report for that.

    Raises:
        InputError: the model, the run or an input cannot be read, or the model does not take an input.
        DeviceError: the device cannot be used.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    model = Path(model)
    in_folder = [*without_drawing(models_in(model)), *archives_in(model)]
    files = sorted(in_folder) if model.is_dir() else [model]
    if not files:
        raise InputError(
            f"the folder {model} holds no model; make one with: mdlstm export {shell_quoted(model)}"
        )
    limit = MAX_BYTES if max_bytes is None else max_bytes
    origins: dict[Path, _Origin] = {}
    groups: dict[str, list[str]] = {}
    outcomes: dict[str, dict[str, Outcome]] = {}
    for path in files:
        sessions = _sessions(path, device, limit, timeout)
        check_takes_grids(sessions[0].metadata, path)
        origin = origins[path] = _origin(path, against, sessions[0].metadata)
        random = _random_cases(path, origin, range(seed, seed + seeds))
        cases = random if inputs is None else _user_cases(path, origin.metadata, inputs)
        # Arrays of the user's alone may be too few to know the scale of the outputs from.
        outcomes_of_file = _compare_all(path, origin, sessions, cases, [] if inputs is None else random[:2])
        for case in cases:
            name, group = case.name, case.group
            if len(files) > 1:
                name, group = f"{path.name}, {name}", path.name
            groups.setdefault(group, []).append(name)
            for runtime, by_case in outcomes_of_file.items():
                outcomes.setdefault(runtime, {})[name] = by_case[case.name]
    return VerificationReport(
        model=model,
        models={path: origin.metadata for path, origin in origins.items()},
        reference=", and ".join(dict.fromkeys(origin.description for origin in origins.values())),
        run=next((origin.run for origin in origins.values() if origin.run), None),
        groups=groups,
        outcomes=outcomes,
    )


@dataclass(frozen=True)
class _Origin:
    """What a file is compared with.

    Attributes:
        description: in words.
        network: the network that the file came from; None if only the file is known.
        run: its run, if it has one.
        grid: the grid to verify on if the file takes any.
        metadata: of the file.
    """

    description: str
    network: nn.Module | None
    run: Run | None
    grid: Grid
    metadata: Metadata


def _origin(path: Path, against: nn.Module | Run | str | Path | None, metadata: Metadata) -> _Origin:
    """The network that a file is compared with, or the file itself."""
    grid = (*DEFAULT_GRID, *(2,) * metadata.ndim)[: metadata.ndim]
    if isinstance(against, nn.Module):
        network = eval_copy(against).float()
        return _Origin(f"the given {type(network).__name__}", network, None, grid, metadata)
    if against is None:
        if metadata.checkpoint_sha256 is None:
            return _Origin("its own graph in float64", None, None, grid, metadata)
        try:
            run, checkpoint_path = find_checkpoint(path.parent)
        except InputError:
            return _Origin("its own graph in float64, as its run is not here", None, None, grid, metadata)
    else:
        run, checkpoint_path = find_checkpoint(against)
    checkpoint = load_checkpoint(checkpoint_path)
    description = f"the network in {checkpoint_path}"
    if prod(checkpoint.config.grid) <= MAX_POSITIONS:
        grid = checkpoint.config.grid
    return _Origin(description, checkpoint.network().eval(), run, grid, metadata)


def _sessions(
    model: Path, device: str, max_bytes: int, timeout: float | None
) -> Sequence[Session | TiledSession]:
    """A session on the device; for "auto" one on the CPU and, where it works, one on CUDA."""
    isolated, _ = choose_isolation([model], max_bytes, limited=timeout is not None)
    open_session: Callable[[str], Session | TiledSession]
    if is_archive(model):
        read_archive_bytes(model, max_bytes)  # max_bytes of a TiledSession bounds the memory of its runs
        open_session = partial(TiledSession, model, timeout=timeout, isolated=isolated)
    else:
        open_session = partial(Session, model, max_bytes=max_bytes, timeout=timeout, isolated=isolated)
    session = open_session(device)
    if device != "auto" or session.device == "cpu":
        return [session]
    return [open_session("cpu"), session]


def _random_cases(path: Path, origin: _Origin, seeds: Sequence[int]) -> list[Case]:
    return list(random_cases(origin.metadata, _declared_inputs(path), origin.grid, seeds))


def _declared_inputs(path: Path) -> Sequence[TensorSpec]:
    """The inputs that a file declares; a tiled export has x alone."""
    return [] if is_archive(path) else tensor_specs(read_model(path.read_bytes()))[0]


def _user_cases(path: Path, metadata: Metadata, inputs: UserInputs) -> list[Case]:
    cases = list(user_cases(metadata, _declared_inputs(path), inputs))
    if not cases:
        raise InputError("inputs must hold at least one array or file, got none")
    return cases


def _compare_all(
    path: Path,
    origin: _Origin,
    sessions: Sequence[Session | TiledSession],
    cases: Sequence[Case],
    scale_cases: Sequence[Case],
) -> dict[str, dict[str, Outcome]]:
    """The outcome of each runtime on each case; the scale of the outputs is that on `scale_cases`, too."""
    metadata = origin.metadata
    shapes, atol = Shapes(metadata), metadata.parity.get("atol", ATOL)
    runtimes, reference = _runtimes(path, origin, sessions)
    expected = {case.name: reference(case) for case in cases}
    references = [*expected.values(), *map(reference, scale_cases)]
    scales = {
        name: feature_scale(
            [outputs[name] for outputs in references], shapes.feature_axis(references[0][name])
        )
        for name in metadata.output_names
    }
    return {
        runtime: {
            case.name: _outcome(run(case), expected[case.name], scales, metadata, atol) for case in cases
        }
        for runtime, run in runtimes.items()
    }


def _outcome(
    outputs: dict[str, Array],
    expected: dict[str, Float64Array],
    scales: dict[str, Float64Array],
    metadata: Metadata,
    atol: float,
) -> Outcome:
    parities = {
        name: compare(outputs[name], exact, atol, scale=scales[name]) for name, exact in expected.items()
    }
    parity = worst(parities)[1]
    if metadata.window is None:
        return Outcome(parity, None, None)
    name = metadata.output_names[0]
    axes = range(1, metadata.ndim + 1) if metadata.channels_last else range(2, metadata.ndim + 2)
    return Outcome(
        parity,
        wavefront_errors(outputs[name], expected[name], axes),
        first_divergence(outputs[name], expected[name], axes, atol, scale=scales[name]),
    )


def _runtimes(
    path: Path, origin: _Origin, sessions: Sequence[Session | TiledSession]
) -> tuple[dict[str, Runtime], Callable[[Case], dict[str, Float64Array]]]:
    """Everything that can run the model, by name, and the reference."""
    metadata = origin.metadata
    names, shapes = metadata.output_names, Shapes(metadata)
    evaluate, graph = _evaluators(path, sessions[0], names)
    runtimes = dict[str, Runtime]()

    def feeds(case: Case) -> dict[str, Array]:
        """All inputs of the file; a smaller grid is padded if it takes `sizes`."""
        if not shapes.takes_sizes:
            return {metadata.inputs[0]: case.x, **case.further}
        padded, sizes = shapes.padded([case.x])
        return {metadata.inputs[0]: padded, "sizes": sizes, **case.further}

    def cropped(outputs: dict[str, Array], case: Case) -> dict[str, Array]:
        return shapes.cropped(outputs, shapes.grid(case.x)) if shapes.takes_sizes else outputs

    def run_evaluator(case: Case) -> dict[str, Array]:
        return cropped(evaluate(feeds(case)), case)

    def run_in(session: Session | TiledSession) -> Runtime:
        if isinstance(session, TiledSession):
            tile = small_tile(session.archive)
            return lambda case: by_name(session(case.x, tile), names)
        return lambda case: by_name(session(case.x, **case.further), names)

    if origin.network is None:

        def reference(case: Case) -> dict[str, Float64Array]:
            return cropped(graph()(feeds(case)), case)

    else:
        network, exact = origin.network, float64_reference(origin.network, names)

        def reference(case: Case) -> dict[str, Float64Array]:
            further = with_required_sizes(network, case.x, shapes.grid(case.x), case.further)
            return by_name(exact(case.x, **further), names)

        runtimes["torch, float32"] = lambda case: _run_torch(network, case, shapes, names)
    for session in sessions:
        runtimes[f"ONNX Runtime, {session.device}"] = run_in(session)
    runtimes["ONNX reference evaluator"] = run_evaluator
    return runtimes, reference


def _evaluators(
    path: Path, session: Session | TiledSession, names: Sequence[str]
) -> tuple[Evaluate, Callable[[], Evaluate]]:
    """The outputs of a file by the reference evaluator of onnx, and what makes the same in float64."""
    if isinstance(session, TiledSession):
        archive = session.archive
        models = {name: read_model(data) for name, data in archive.graphs.items()}

        def in_tiles(make: Callable[[onnx.ModelProto, Sequence[str]], Evaluate], dtype: type) -> Evaluate:
            graphs = {
                name: make(model, [value.name for value in model.graph.output])
                for name, model in models.items()
            }

            def evaluate(feeds: dict[str, Array]) -> dict[str, Array]:
                x: Array = feeds[archive.metadata.inputs[0]].astype(dtype)
                run, rng = lambda name, of_graph: graphs[name](dict(of_graph)), np.random.default_rng(0)
                return {names[0]: run_in_tiles(archive, run, x, rng)}

            return evaluate

        return in_tiles(_evaluator, np.float32), lambda: in_tiles(GraphReference, np.float64)
    model = read_model(path.read_bytes())
    return _evaluator(model, names), lambda: GraphReference(model, names)


def _evaluator(model: onnx.ModelProto, names: Sequence[str]) -> Evaluate:
    evaluator = ReferenceEvaluator(model)

    def evaluate(feeds: dict[str, Array]) -> dict[str, Array]:
        outputs: Any = evaluator.run(list(names), feeds)
        return {name: np.asarray(y) for name, y in zip(names, outputs, strict=True)}

    return evaluate


@torch.no_grad()
def _run_torch(network: nn.Module, case: Case, shapes: Shapes, names: Sequence[str]) -> dict[str, Array]:
    further = with_required_sizes(network, case.x, shapes.grid(case.x), case.further)
    tensors = {name: torch.from_numpy(value) for name, value in further.items()}
    outputs = named_outputs(network(torch.from_numpy(case.x), **tensors), type(network).__name__, names)
    return {name: y.numpy() for name, y in outputs.items()}
