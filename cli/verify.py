"""`mdlstm verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, quoted, table
from mdlstm_tk.errors import require
from mdlstm_tk.sizes import format_size


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
    from mdlstm_tk.export import verify_model

    report = verify_model(
        model, against, device=device, seeds=seeds, seed=seed, max_bytes=max_bytes, timeout=timeout
    )
    if json:
        print_json(report.as_dict())
    else:
        metadata = report.metadata
        size = format_size(metadata.grid) if metadata.grid else "any size"
        rows = [
            [
                runtime,
                *(f"{error:.1e}" for error in report.worst_errors(runtime).values()),
                "ok" if report.passed(runtime) else "FAILED",
            ]
            for runtime in report.outcomes
        ]
        title = f"{model} ({metadata.form}, {size}): largest error against float64, {seeds} seeds"
        table(["runtime", *report.groups, ""], rows, title)
        if metadata.window is None:
            note("the output has no grid, so an error cannot be traced to a wavefront")
    report.raise_if_failed()
    note("all within tolerance")
    next_command(f"mdlstm infer FILE -m {quoted(model)}")
