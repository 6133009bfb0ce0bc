"""`mdlstm verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, quoted, table
from mdlstm_tk.errors import InputError, ParityError, require
from mdlstm_tk.sizes import format_size

if TYPE_CHECKING:
    from torch import nn

    from mdlstm_tk.export.divergence import Divergence
    from mdlstm_tk.export.parity import Parity
    from mdlstm_tk.runtime import Metadata, Session

Runtime = Callable[[Any], Any]
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """An input, what tells it apart, and the column of the table that it is shown in."""

    name: str
    column: str
    x: Any


@dataclass(frozen=True)
class Outcome:
    """What one runtime made of one case; without wavefronts if the output has no grid."""

    parity: Parity
    wavefronts: list[float] | None
    first_off: Divergence | None

    def as_dict(self) -> dict[str, Any]:
        def shown(error: float) -> float | None:  # JSON knows no NaN
            return error if isfinite(error) else None

        return {
            "max_abs": shown(self.parity.max_abs),
            "passed": self.parity.passed,
            "wavefronts": self.wavefronts and [shown(error) for error in self.wavefronts],
            "first_off": self.first_off and asdict(self.first_off),
        }


def verify(
    model: Annotated[Path, typer.Argument(help="An exported .onnx.")],
    against: Annotated[
        Path | None, typer.Option(help="The run it came from; the folder the model is in if not given.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of ONNX Runtime: cpu, cuda or cuda:N; auto: the CPU, and CUDA if it works.")
    ] = "auto",
    seeds: Annotated[int, typer.Option(min=1, help="How many, of the inputs.")] = 2,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="That the model may take.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds that ONNX Runtime may run.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare a model with the network it came from: every runtime against the float64 reference.

    Inputs are random ones and the task's own, in several batches, and where the model takes any grid
    on grids of odd shapes, too. What is off is followed to the first wavefront that is.

    Ends with exit code 3 if a runtime is further off than it may be: the tolerance that the model was
    exported with, 1e-5 + 1e-5·|y| unless it was given another.
    """
    require("torch", "train")
    require("onnx", "train")
    from mdlstm_tk.export.parity import ATOL, RTOL, float64_reference
    from mdlstm_tk.runtime.io.npy import MAX_BYTES
    from mdlstm_tk.training import load_checkpoint, open_run

    sessions = _sessions(model, device, max_bytes or MAX_BYTES, timeout)
    about = sessions[0].metadata
    run = open_run(against or model.parent)
    checkpoint = load_checkpoint(run.best if run.best.exists() else run.last)
    network = checkpoint.network()
    reference = float64_reference(network)
    atol = about.parity.get("atol", ATOL)
    runtimes = _runtimes(model, network, sessions)
    results: dict[str, dict[str, Outcome]] = {}
    columns: dict[str, list[str]] = {}
    for case in _cases(about, checkpoint.config.grid, range(seed, seed + seeds)):
        expected = reference(case.x)
        columns.setdefault(case.column, []).append(case.name)
        for name, runtime in runtimes.items():
            results.setdefault(name, {})[case.name] = _outcome(runtime(case.x), expected, about, atol)

    if json:
        print_json(
            {
                name: {case: outcome.as_dict() for case, outcome in outcomes.items()}
                for name, outcomes in results.items()
            }
        )
    else:
        title = f"{model} ({_what(about)}): largest error against float64, of {seeds} seeds"
        table(["runtime", *columns, ""], [_row(*item, columns) for item in results.items()], title)
        if about.window is None:
            note("y has no grid, so what is off cannot be followed to a wavefront")
    failed = [name for name, outcomes in results.items() if not _passed(outcomes)]
    if failed:
        where = next(
            (f"; {case}: {o.first_off}" for case, o in results[failed[0]].items() if o.first_off), ""
        )
        raise ParityError(
            f"{', '.join(failed)}: further than {atol:g} + {RTOL:g}·|y| from {run.folder}{where}; "
            f"was it exported from another run? Make it again with: mdlstm export {run.folder} --force"
        )
    note("all within tolerance")
    next_command(f"mdlstm infer FILE -m {quoted(model)}")


def _sessions(model: Path, device: str, max_bytes: int, timeout: float | None) -> list[Session]:
    """One on the device; for "auto" one on the CPU, and one on CUDA where that works."""
    from mdlstm_tk.runtime import Session

    session = Session(model, device, max_bytes=max_bytes, timeout=timeout)
    if device != "auto" or session.device == "cpu":
        return [session]
    return [Session(model, "cpu", max_bytes=max_bytes, timeout=timeout), session]


def _cases(about: Metadata, own: Grid, seeds: range) -> Iterator[Case]:
    """Inputs on the model's grid, else on the run's `own`; and on odd ones that the model takes, too."""
    from mdlstm_tk.cli.export import task_inputs
    from mdlstm_tk.export.parity import odd_grids, random_inputs

    grids = [about.grid or own]
    if about.grid is None or "sizes" in about.inputs:
        limit = about.grid or (max(own) + 8,) * about.ndim
        grids += [g for g in odd_grids(about.ndim) if all(e <= m for e, m in zip(g, limit, strict=True))]
    for grid in dict.fromkeys(grids):
        for seed in seeds:
            inputs = random_inputs(grid, about.channels, seed, about.channels_last)
            for name, x in (inputs | task_inputs(about.task, grid, seed)).items():
                size = format_size(grid)
                yield Case(f"{size}, {name}, seed {seed}", size if len(grids) > 1 else name, x)


def _runtimes(model: Path, network: nn.Module, sessions: list[Session]) -> dict[str, Runtime]:
    """All that can run the network, by name."""
    import onnx
    import torch
    from onnx.reference import ReferenceEvaluator

    from mdlstm_tk.runtime.shapes import Shapes

    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model.read_bytes()))
    shapes = Shapes(sessions[0].metadata)

    @torch.no_grad()
    def in_torch(x: Any) -> Any:
        return network(torch.from_numpy(x)).numpy()

    def in_evaluator(x: Any) -> Any:
        padded, sizes = shapes.padded([x])
        feeds = {"x": padded, "sizes": sizes} if shapes.takes_sizes else {"x": x}
        outputs = evaluator.run(None, feeds)
        if not isinstance(outputs, list):
            raise InputError(f"{model} has no outputs")
        return shapes.cropped(outputs[0], shapes.grid(x)) if shapes.takes_sizes else outputs[0]

    return {
        "torch, float32": in_torch,
        **{f"ONNX Runtime, {session.device}": session for session in sessions},
        "ONNX reference evaluator": in_evaluator,
    }


def _outcome(output: Any, expected: Any, about: Metadata, atol: float) -> Outcome:
    from mdlstm_tk.export.divergence import first_divergence, wavefront_errors
    from mdlstm_tk.export.parity import compare

    parity = compare(output, expected, atol)
    if about.window is None:
        return Outcome(parity, None, None)
    axes = range(1, about.ndim + 1) if about.channels_last else range(2, about.ndim + 2)
    errors = wavefront_errors(output, expected, axes)
    return Outcome(parity, errors, first_divergence(output, expected, axes, atol))


def _row(name: str, outcomes: dict[str, Outcome], columns: dict[str, list[str]]) -> list[str]:
    worst = [max(outcomes[case].parity.max_abs for case in cases) for cases in columns.values()]
    return [name, *(f"{error:.1e}" for error in worst), "ok" if _passed(outcomes) else "FAILED"]


def _passed(outcomes: dict[str, Outcome]) -> bool:
    return all(outcome.parity.passed for outcome in outcomes.values())


def _what(about: Metadata) -> str:
    return f"{about.form}, {format_size(about.grid) if about.grid else 'any size'}"
