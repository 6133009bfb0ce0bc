"""`mdlstm verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, table
from mdlstm_tk.errors import InputError, ParityError, require
from mdlstm_tk.sizes import show_size

if TYPE_CHECKING:
    from torch import nn

    from mdlstm_tk.runtime import Session

Runtime = Callable[[Any], Any]


def verify(
    model: Annotated[Path, typer.Argument(help="An exported .onnx.")],
    against: Annotated[
        Path | None, typer.Option(help="The run it came from; the folder the model is in if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of ONNX Runtime: auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare a model with the network it came from: every runtime against the float64 reference.

    Ends with exit code 3 if one of them is further off than it may be: the tolerance that the model
    was exported with, 1e-5 + 1e-5·|y| unless it was given another.
    """
    require("torch", "train")
    require("onnx", "train")
    from mdlstm_tk.cli.export import task_inputs
    from mdlstm_tk.export.parity import ATOL, RTOL, float64_reference, measure, random_inputs
    from mdlstm_tk.runtime import Session
    from mdlstm_tk.training import build, load_checkpoint, open_run

    session = Session(model, device)
    run = open_run(against or model.parent)
    checkpoint = load_checkpoint(run.best if run.best.exists() else run.last)
    network, _ = build(checkpoint.config)
    checkpoint.load_model(network)
    network.eval()
    about = session.metadata
    grid = about.grid or checkpoint.config.grid
    inputs = random_inputs(grid, about.channels, seed) | task_inputs(grid, seed)
    reference = float64_reference(network)
    runtimes = _runtimes(model, network, session)
    atol = about.parity.get("atol", ATOL)
    results = {name: measure(runtime, reference, inputs, atol) for name, runtime in runtimes.items()}

    if json:
        print_json(
            {
                name: {case: {"max_abs": r.max_abs, "passed": r.passed} for case, r in cases.items()}
                for name, cases in results.items()
            }
        )
    else:
        rows = [
            [
                name,
                *(f"{case.max_abs:.1e}" for case in cases.values()),
                "ok" if _passed(cases) else "FAILED",
            ]
            for name, cases in results.items()
        ]
        title = f"{model} ({show_size(grid)}): largest error against float64, by input × batch"
        table(["runtime", *inputs, ""], rows, title)
    failed = [name for name, cases in results.items() if not _passed(cases)]
    if failed:
        raise ParityError(
            f"{', '.join(failed)}: further than {atol:g} + {RTOL:g}·|y| from {run.folder}; "
            f"was it exported from another run? Make it again with: mdlstm export {run.folder} --force"
        )
    note("all within tolerance")
    next_command(f"mdlstm infer matrix.npy -m {model}")


def _passed(cases: dict[str, Any]) -> bool:
    return all(case.passed for case in cases.values())


def _runtimes(model: Path, network: nn.Module, session: Session) -> dict[str, Runtime]:
    """All that can run the network, by name."""
    import onnx
    import torch
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model.read_bytes()))

    @torch.no_grad()
    def in_torch(x: Any) -> Any:
        return network(torch.from_numpy(x)).numpy()

    def in_evaluator(x: Any) -> Any:
        outputs = evaluator.run(None, {"x": x})
        if not isinstance(outputs, list):
            raise InputError(f"{model} has no outputs")
        return outputs[0]

    return {
        "torch, float32": in_torch,
        f"ONNX Runtime, {session.device}": session,
        "ONNX reference evaluator": in_evaluator,
    }
