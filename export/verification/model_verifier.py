"""`verify_model`: compare every runtime that can run an exported file with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from mdlstm_tk.errors import InputError, ParityError, require
from mdlstm_tk.export.verification.divergence import Divergence, first_divergence, wavefront_errors
from mdlstm_tk.export.verification.inputs import odd_grids, random_inputs, task_inputs
from mdlstm_tk.export.verification.parity import (
    ATOL,
    RTOL,
    Float32Array,
    Float64Array,
    Parity,
    compare,
    float64_reference,
)
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.shapes import Shapes
from mdlstm_tk.sizes import format_size
from mdlstm_tk.training import Run, load_checkpoint, open_run

Runtime = Callable[[Float32Array], Float32Array]
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One input that all runtimes are compared on.

    Attributes:
        name: identifies the case, for example "8x8, random × 3, seed 0".
        group: the cases that are summarised together: those of one grid, or, where all have the same
            grid, those of one kind of input.
        x: (N, *grid, C), or (N, C, *grid).
    """

    name: str
    group: str
    x: Float32Array


@dataclass(frozen=True)
class Outcome:
    """How one runtime did on one case.

    Attributes:
        parity: error of the whole output.
        wavefronts: largest absolute error on each wavefront; None if the output has no grid.
        first_divergence: the first wavefront out of tolerance; None if there is none.
    """

    parity: Parity
    wavefronts: list[float] | None
    first_divergence: Divergence | None

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON values; an error that is not finite becomes None."""

        def finite(error: float) -> float | None:
            return error if isfinite(error) else None

        return {
            "max_abs": finite(self.parity.max_abs),
            "passed": self.parity.passed,
            "wavefronts": self.wavefronts and [finite(error) for error in self.wavefronts],
            "first_divergence": self.first_divergence and asdict(self.first_divergence),
        }


@dataclass(frozen=True)
class VerificationReport:
    """The result of `verify_model`.

    Attributes:
        model: the file.
        run: the run that it was compared with.
        metadata: of the file.
        atol: allowed absolute error, in addition to rtol·|y|.
        groups: names of the cases in each group (see `Case`).
        outcomes: by runtime, then by the name of the case.
    """

    model: Path
    run: Run
    metadata: Metadata
    atol: float
    groups: dict[str, list[str]]
    outcomes: dict[str, dict[str, Outcome]]

    @property
    def failed(self) -> list[str]:
        """Names of the runtimes that are out of tolerance on at least one case."""
        return [runtime for runtime in self.outcomes if not self.passed(runtime)]

    def passed(self, runtime: str) -> bool:
        """Whether a runtime is within tolerance on all cases."""
        return all(outcome.parity.passed for outcome in self.outcomes[runtime].values())

    def worst_errors(self, runtime: str) -> dict[str, float]:
        """The largest absolute error of a runtime in each group of cases."""
        outcomes = self.outcomes[runtime]
        return {
            group: max(outcomes[name].parity.max_abs for name in names)
            for group, names in self.groups.items()
        }

    def as_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All outcomes as JSON values, by runtime and case."""
        return {
            runtime: {case: outcome.as_dict() for case, outcome in outcomes.items()}
            for runtime, outcomes in self.outcomes.items()
        }

    def raise_if_failed(self) -> None:
        """Do nothing if all runtimes passed.

        Raises:
            ParityError: a runtime failed; names the first wavefront that is wrong.
        """
        if not self.failed:
            return
        divergences = (
            f"; {case}: {outcome.first_divergence}"
            for case, outcome in self.outcomes[self.failed[0]].items()
            if outcome.first_divergence
        )
        raise ParityError(
            f"{', '.join(self.failed)}: error above {self.atol:g} + {RTOL:g}·|y| against the network in "
            f"{self.run.folder}{next(divergences, '')}; if the model was exported from another run, name "
            f"that run, else export it again with: mdlstm export {self.run.folder} --force"
        )


def verify_model(
    model: str | Path,
    run: Run | str | Path | None = None,
    *,
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

    Args:
        model: an `.onnx` file that `export_onnx` or `export_run` wrote.
        run: the run that it was exported from; the folder that the model lies in if None.
        device: for ONNX Runtime: "cpu", "cuda", "cuda:N", or "auto", which takes the CPU and, where it
            works, CUDA as well.
        seeds: number of random seeds.
        seed: the first seed.
        max_bytes: maximum size of the model file; 1 GiB if None.
        timeout: seconds that ONNX Runtime may run; unlimited if None.

    Returns:
        The outcome of every runtime on every case. A failure raises nothing by itself; call
        `raise_if_failed` on the report for that.

    Raises:
        InputError: the model or the run cannot be read.
        DeviceError: the device cannot be used.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    model = Path(model)
    sessions = _sessions(model, device, MAX_BYTES if max_bytes is None else max_bytes, timeout)
    metadata = sessions[0].metadata
    run = run if isinstance(run, Run) else open_run(Path(run) if run else model.parent)
    checkpoint = load_checkpoint(run.checkpoint)
    network = checkpoint.network()
    reference = float64_reference(network)
    atol = metadata.parity.get("atol", ATOL)
    runtimes = _runtimes(model, network, sessions)
    outcomes: dict[str, dict[str, Outcome]] = {name: {} for name in runtimes}
    groups: dict[str, list[str]] = {}
    for case in _cases(metadata, checkpoint.config.grid, range(seed, seed + seeds)):
        expected = reference(case.x)
        groups.setdefault(case.group, []).append(case.name)
        for name, runtime in runtimes.items():
            outcomes[name][case.name] = _compare(runtime(case.x), expected, metadata, atol)
    return VerificationReport(model, run, metadata, atol, groups, outcomes)


def _sessions(model: Path, device: str, max_bytes: int, timeout: float | None) -> list[Session]:
    """A session on the device; for "auto" one on the CPU and, where it works, one on CUDA."""
    session = Session(model, device, max_bytes=max_bytes, timeout=timeout)
    if device != "auto" or session.device == "cpu":
        return [session]
    return [Session(model, "cpu", max_bytes=max_bytes, timeout=timeout), session]


def _cases(metadata: Metadata, run_grid: Grid, seeds: Sequence[int]) -> Iterator[Case]:
    """Inputs on the model's grid (`run_grid` if it takes any) and on the odd grids that it takes."""
    grids = [metadata.grid or run_grid]
    if metadata.grid is None or "sizes" in metadata.inputs:
        limit = metadata.grid or (max(run_grid) + 8,) * metadata.ndim
        grids += [
            grid
            for grid in odd_grids(metadata.ndim)
            if all(extent <= maximum for extent, maximum in zip(grid, limit, strict=True))
        ]
    for grid in dict.fromkeys(grids):
        for seed in seeds:
            inputs = random_inputs(grid, metadata.channels, seed, metadata.channels_last)
            for name, x in (inputs | task_inputs(metadata.task, grid, seed)).items():
                size = format_size(grid)
                yield Case(f"{size}, {name}, seed {seed}", size if len(grids) > 1 else name, x)


def _runtimes(model: Path, network: nn.Module, sessions: Sequence[Session]) -> dict[str, Runtime]:
    """Everything that can run the network, by name."""
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model.read_bytes()))
    shapes = Shapes(sessions[0].metadata)

    @torch.no_grad()
    def run_torch(x: Float32Array) -> Float32Array:
        y: Float32Array = network(torch.from_numpy(x)).numpy()
        return y

    def run_evaluator(x: Float32Array) -> Float32Array:
        padded, sizes = shapes.padded([x])
        feeds = {"x": padded, "sizes": sizes} if shapes.takes_sizes else {"x": x}
        outputs = evaluator.run(None, feeds)
        if not isinstance(outputs, list):
            raise InputError(f"{model} has no outputs")
        y: Float32Array = outputs[0]
        return shapes.cropped(y, shapes.grid(x)) if shapes.takes_sizes else y

    return {
        "torch, float32": run_torch,
        **{f"ONNX Runtime, {session.device}": session for session in sessions},
        "ONNX reference evaluator": run_evaluator,
    }


def _compare(output: Float32Array, expected: Float64Array, metadata: Metadata, atol: float) -> Outcome:
    parity = compare(output, expected, atol)
    if metadata.window is None:
        return Outcome(parity, None, None)
    axes = range(1, metadata.ndim + 1) if metadata.channels_last else range(2, metadata.ndim + 2)
    return Outcome(
        parity,
        wavefront_errors(output, expected, axes),
        first_divergence(output, expected, axes, atol),
    )
