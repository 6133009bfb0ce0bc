"""`mdlstm verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli.console import detail, next_command, note, print_json, quoted, table
from mdlstm_tk.cli.options import (
    Device,
    Json,
    MaxBytes,
    Timeout,
    complete_model_file,
    complete_run,
)
from mdlstm_tk.errors import require
from mdlstm_tk.sizes import format_size


def verify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Exported .onnx file.",
            autocompletion=complete_model_file,
            show_default=False,
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run folder that the model was exported from.",
            show_default="the folder of the model",
            autocompletion=complete_run,
        ),
    ] = None,
    device: Device = "auto",
    seeds: Annotated[int, typer.Option(min=1, help="Number of random seeds for the inputs.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="First random seed.")] = 0,
    json: Json = False,
    max_bytes: MaxBytes = None,
    timeout: Timeout = None,
) -> None:
    """Compare a model in every runtime with the float64 reference of the network it came from.

    The inputs are random ones and the task's own, in batches of several sizes; if the model takes any grid
    size, grids of odd shapes are tested, too. An error is traced to the first wavefront that shows it.

    The exit code is 3 if a runtime exceeds the tolerance that the model was exported with, which is
    1e-5 + 1e-5·|y| unless --atol was given.
    """
    require("torch", "train")
    require("onnx", "train")
    from mdlstm_tk.export import verify_model

    report = verify_model(
        model, against, device=device, seeds=seeds, seed=seed, max_bytes=max_bytes, timeout=timeout
    )
    detail(f"compared with {report.run.checkpoint}")
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
    note("all runtimes are within tolerance")
    next_command(f"mdlstm infer FILE -m {quoted(model)}")
