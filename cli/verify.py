"""`mdlstm verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import detail, next_command, note, print_json, table, warn
from mdlstm_tk.cli.options import (
    Device,
    Isolated,
    Json,
    MaxBytes,
    Timeout,
    Trusted,
    complete_model_or_run,
    complete_run,
    option,
)

DATA = "Array or image to compare on in place of random inputs; repeatable."


def verify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RUN",
            help="Exported model, or a folder of them, such as a run folder.",
            autocompletion=complete_model_or_run,
            show_default=False,
        ),
    ],
    against: Annotated[
        Path | None,
        option(
            "Run folder, or checkpoint file, that the model was exported from.",
            None,
            metavar="RUN",
            show_default="the folder of the model; without a run, the graph itself in float64",
            autocompletion=complete_run,
        ),
    ] = None,
    data: Annotated[list[Path] | None, option(DATA, None, metavar="FILE", show_default=False)] = None,
    device: Device = "auto",
    seeds: Annotated[int, option("Number of random seeds for the inputs.", None, min=1)] = 2,
    seed: Annotated[int, option("First random seed.", None, min=0)] = 0,
    json: Json = False,
    max_bytes: MaxBytes = None,
    timeout: Timeout = None,
    isolated: Isolated = False,
    trusted: Trusted = False,
) -> None:
    """Compare a model in every runtime with the float64 reference of the network it came from.

    The inputs are random, in the range of those of the export and in batches of several sizes, or those of
    --data; if the model takes any grid size, grids of odd shapes are tested, too. An error is traced to the
    first wavefront that shows it.

    A file that was not exported from a run here is compared with its own graph, evaluated in float64.

    The exit code is 3 if a runtime exceeds the tolerance that the model was exported with, which is
    1e-5·s + 1e-5·|y| (float16: 5e-3·s) unless --atol was given; s is the largest value of a feature,
    or 1 if that is larger and the graph is right in float64.
    """
    from mdlstm_tk.export import verify_model

    report = verify_model(
        model,
        against,
        inputs=data or None,
        device=device,
        seeds=seeds,
        seed=seed,
        max_bytes=max_bytes,
        timeout=timeout,
        isolated=isolated,
        trusted=trusted,
    )
    detail(f"compared with {report.reference}")
    for line in report.stale[bool(report.failed) :]:  # the error gives the first one as its advice
        warn(line)
    if json:
        print_json(report.as_dict())
    else:
        rows = []
        for runtime in report.outcomes:
            errors = report.worst_errors(runtime)
            cells = [f"{errors[group]:.1e}" if group in errors else "-" for group in report.groups]
            rows.append([runtime, *cells, "ok" if report.passed(runtime) else "FAILED"])
        table(["runtime", *report.groups, ""], rows, report.title())
        if report.run is None:
            note(f"compared with {report.reference}")
    report.raise_if_failed()
    note(f"all runtimes are within tolerance: {report.tolerance()}")
    next_command(f"mdlstm infer FILE -m {shell_quoted(model)}")
