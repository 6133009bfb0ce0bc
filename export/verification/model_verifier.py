"""`verify_model`: compare every runtime that can run an exported file with the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from torch import nn

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.export.interface import Interface
from mdlstm_tk.export.lowering.lower import walk
from mdlstm_tk.export.model_file import operators_to_trust, read_model, tensor_specs
from mdlstm_tk.export.run_export import find_checkpoint
from mdlstm_tk.export.spec import ENLARGEMENTS
from mdlstm_tk.export.verification.cases import (
    MAX_POSITIONS,
    Case,
    Draw,
    ExampleRange,
    Grid,
    UserInputs,
    random_cases,
    sampler,
    user_cases,
)
from mdlstm_tk.export.verification.comparison import (
    Inputs,
    Outcome,
    Outputs,
    Run,
    compare_all,
    expected_outputs,
    session_run,
    with_padding,
)
from mdlstm_tk.export.verification.export_verifier import BRANCHES
from mdlstm_tk.export.verification.graph_reference import in_float64
from mdlstm_tk.export.verification.parity import ATOL
from mdlstm_tk.export.verification.report import VerificationReport
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.model_discovery import archives_in, models_in, without_drawing
from mdlstm_tk.runtime.samples import check_takes_grids
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.runtime.tiles.archive import is_archive, read_archive_bytes
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.training import Run as TrainingRun
from mdlstm_tk.training import load_checkpoint

Against = nn.Module | TrainingRun | str | Path | None
DEFAULT_GRID = (5, 7, 3)  # for a model that takes any grid and is not of a run, or of one with a large grid


def verify_model(
    model: str | Path,
    against: Against = None,
    *,
    inputs: UserInputs | None = None,
    example_range: ExampleRange | None = None,
    device: str = "auto",
    seeds: int = 2,
    seed: int = 0,
    max_bytes: int | None = None,
    timeout: float | None = None,
    isolated: bool = False,
    trusted: bool = False,
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
            evaluated in float64, and an archive of tiles in one tile: that shows whether the runtimes
            compute the graph, but not whether the graph is that of the network.
        inputs: arrays by name, or files that `mdlstm infer` reads, to compare on in place of the inputs
            above. An array is an x, with or without batch and channel axes; for a model with further inputs
            it is a mapping from the names of the inputs to arrays, or a `.npz` file that holds such.
        example_range: (low, high) of random x, or a function, as for `export_onnx`. None: as the model was
            exported with.
        device: for ONNX Runtime: "cpu", "cuda", "cuda:N", or "auto", which takes the CPU and, where it
            works, CUDA as well.
        seeds: number of random seeds.
        seed: the first seed.
        max_bytes: maximum size of the model file; 1 GiB if None.
        timeout, isolated, trusted: as for `Session`.

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
        sessions = _sessions(path, device, limit, timeout=timeout, isolated=isolated, trusted=trusted)
        check_takes_grids(sessions[0].metadata, path)
        origin = origins[path] = _origin(path, against, sessions[0].metadata)
        verifier = _FileVerifier(path, origin, sessions)
        cases = verifier.cases(inputs, example_range, range(seed, seed + seeds))
        of_file = verifier.outcomes(cases, is_known_scale=inputs is None)
        prefix = f"{path.name}, " if len(files) > 1 else ""
        for case in cases:
            groups.setdefault(path.name if prefix else case.group, []).append(prefix + case.name)
            for runtime, by_case in of_file.items():
                outcomes.setdefault(runtime, {})[prefix + case.name] = by_case[case.name]
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
    """The network that a file is compared with.

    Attributes:
        description: in words.
        network: the network that the file came from; None if only the file is known.
        run: its run, if it has one.
        grid: the grid to verify on if the file takes any.
        metadata: of the file.
    """

    description: str
    network: nn.Module | None
    run: TrainingRun | None
    grid: Grid
    metadata: Metadata


def _origin(path: Path, against: Against, metadata: Metadata) -> _Origin:
    """The network that a file is compared with, or the file itself."""
    grid = (*DEFAULT_GRID, *(2,) * metadata.ndim)[: metadata.ndim]
    if isinstance(against, nn.Module):
        return _Origin(f"the given {type(against).__name__}", against, None, grid, metadata)
    itself = "its own graphs in one tile" if is_archive(path) else "its own graph in float64"
    if against is None:
        problem = "" if metadata.checkpoint_sha256 is None else ", as its run is not here"
        try:
            found = None if not problem else find_checkpoint(path.parent)
        except InputError:
            found = None
        if found is None:
            return _Origin(f"{itself}{problem}", None, None, grid, metadata)
        run, checkpoint_path = found
    else:
        run, checkpoint_path = find_checkpoint(against)
    checkpoint = load_checkpoint(checkpoint_path)
    if prod(checkpoint.config.grid) <= MAX_POSITIONS:
        grid = checkpoint.config.grid
    return _Origin(f"the network in {checkpoint_path}", checkpoint.network(), run, grid, metadata)


def _sessions(
    model: Path, device: str, max_bytes: int, **options: Any
) -> Sequence[Session] | Sequence[TiledSession]:
    """A session on the device; for "auto" one on the CPU and, where it works, one on CUDA."""

    def opened(device: str) -> Any:
        if is_archive(model):
            read_archive_bytes(
                model, max_bytes
            )  # max_bytes of a TiledSession bounds the memory of its runs
            return TiledSession(model, device, **options)
        return Session(model, device, max_bytes=max_bytes, **options)

    session = opened(device)
    return [session] if device != "auto" or session.device == "cpu" else [opened("cpu"), session]


class _FileVerifier:
    """Compares all runtimes on one file.

    Args:
        path: the file.
        origin: the network to compare with.
        sessions: of the file.
    """

    def __init__(
        self, path: Path, origin: _Origin, sessions: Sequence[Session] | Sequence[TiledSession]
    ) -> None:
        self.origin, self.sessions, self.metadata = origin, sessions, origin.metadata
        self.model = None if is_archive(path) else read_model(path.read_bytes())
        self.declared = [] if self.model is None else tensor_specs(self.model.graph.input)
        self.trusted = operators_to_trust(self.model) if self.model else ()
        self.interface: Interface | None = None
        if origin.network is not None:
            metadata, options = origin.metadata, dict[str, Any]()
            for name in ("integer", "channel_axis", "channels_last"):
                options[name] = getattr(metadata, name)
            self.interface = Interface(origin.network, (), metadata.output_names, **options)
            self.interface.float()
        self.random: list[Case] = []

    def cases(
        self, inputs: UserInputs | None, example_range: ExampleRange | None, seeds: Sequence[int]
    ) -> list[Case]:
        """The inputs to compare on: random ones, or the user's."""
        metadata = self.metadata
        draw = sampler("x", example_range or metadata.example_range, None)
        if metadata.integer and draw.range is not None:
            draw = type(draw)((int(draw.range[0]), int(draw.range[1])))
        self.random = self._accepted_cases(draw, seeds)
        return self.random if inputs is None else user_cases(metadata, self.declared, inputs)

    def _accepted_cases(self, draw: Draw, seeds: Sequence[int]) -> list[Case]:
        """Random cases on the grids that the network takes: it may need larger ones than the odd grids.

        Raises:
            MDLSTMError: it takes none.
        """
        run = self.interface.run if self.interface else session_run(self.sessions[0])

        def accepts(case: Case) -> bool:
            with suppress(MDLSTMError):
                run(case.inputs)
                return True
            return False

        cases: list[Case] = []
        for factor in ENLARGEMENTS:
            grid = tuple(factor * extent for extent in self.origin.grid)
            cases = list(random_cases(self.metadata, self.declared, draw, grid, seeds))
            if accepts(cases[0]):
                return [case for case in cases if accepts(case)]
        run(cases[0].inputs)
        return cases

    def outcomes(self, cases: Sequence[Case], is_known_scale: bool) -> dict[str, dict[str, Outcome]]:
        """The outcome of each runtime on each case. Arrays of the user's alone may be too few to know the
        scale of the outputs from, so random ones are added."""
        metadata, runtimes = self.metadata, dict[str, Run]()
        reference, together = self._graph_run(in_double=True), False
        if self.interface is not None:
            runtimes["torch, float32"] = self.interface.run
            reference = self.interface.in_float64().run
            together = self.model is not None and not any(
                node.op_type in BRANCHES for node in walk(self.model.graph.node)
            )
        limit = tuple(np.max([Shapes(metadata).grid(case.inputs["x"]) for case in cases], axis=0).tolist())
        if metadata.grid:
            limit = tuple(fixed or extent for fixed, extent in zip(metadata.grid, limit, strict=True))

        def unpadded(run: Run) -> Run:
            return with_padding(run, metadata, limit) if "sizes" in metadata.inputs else run

        for session in self.sessions:
            runtimes[f"ONNX Runtime, {session.device}"] = unpadded(session_run(session))
        if self.model is not None:
            if self._can_evaluate(cases[0], unpadded(self._graph_run())):
                runtimes["ONNX reference evaluator"] = unpadded(self._graph_run())
            elif self.interface is None:
                raise InputError(
                    f"the reference evaluator of onnx does not run this graph ({', '.join(self.trusted)}); "
                    "give the network that it came from as against=..."
                )
            reference = reference if self.interface else unpadded(reference)
        for_scale = (
            []
            if is_known_scale
            else [Case(f"scale {k}", "", case.inputs) for k, case in enumerate(self.random[:2])]
        )
        expected = expected_outputs(reference, [*cases, *for_scale], together)
        return compare_all(runtimes, expected, cases, metadata, metadata.parity.get("atol", ATOL))

    def _can_evaluate(self, case: Case, run: Run) -> bool:
        """True unless onnx itself lacks an operator that only a trusted model may have."""
        if self.trusted:
            try:
                run(case.inputs)
            except Exception:  # the evaluator raises exceptions of all kinds
                return False
        return True

    def _graph_run(self, in_double: bool = False) -> Run:
        """Runs the graph in the reference evaluator of onnx; an archive in one tile."""
        names = list(self.metadata.output_names)
        if self.model is None:
            session: Any = self.sessions[0]
            return lambda inputs: {names[0]: session(inputs["x"], max(inputs["x"].shape))}
        evaluator = ReferenceEvaluator(in_float64(self.model) if in_double else self.model)

        def run(inputs: Inputs) -> Outputs:
            feeds = dict(inputs)
            if in_double:
                feeds = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
            outputs: Any = evaluator.run(names, feeds)
            return {name: np.asarray(y) for name, y in zip(names, outputs, strict=True)}

        return run
