"""`mdlstm verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli import console, options

AGAINST = "Run or checkpoint it was exported from.  (default: its folder, or the graph itself in float64)"
DATA = "Array or image to compare on in place of random inputs; repeatable."


def verify(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL|RUN", help="Exported model, or a folder of some.")
    ],
    against: Annotated[Path | None, typer.Option(metavar="RUN", help=AGAINST)] = None,
    data: Annotated[list[Path] | None, typer.Option(metavar="FILE", help=DATA)] = None,
    device: options.Device = "auto",
    seeds: Annotated[int, typer.Option(min=1, help="Number of random seeds for the inputs.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="First random seed.")] = 0,
    trusted: options.Trusted = False,
    json: options.Json = False,
) -> None:
    """Compare a model in every runtime with the float64 reference of the network it came from.

    The inputs are random, in the range of those of the export, or those of --data; if the model takes any
    grid size, grids of odd shapes are tested, too. A file that was not exported from a run here is compared
    with its own graph, evaluated in float64. The exit code is 3 if a runtime exceeds the tolerance of the
    export.
    """
    from mdlstm_tk.export import verify_model

    report = verify_model(
        model, against, inputs=data or None, device=device, seeds=seeds, seed=seed, trusted=trusted
    )
    console.note(f"compared with {report.reference}")
    if json:
        console.print_json(report.as_dict())
    else:
        rows = []
        for runtime in report.outcomes:
            case, error = report.worst(runtime)
            verdict = "FAILED" if runtime in report.failed else "ok"
            rows.append([runtime, case, f"{error.max_abs:.1e}", verdict])
        console.table(["runtime", "largest error on", "", ""], rows, str(model), texts=2)
    report.raise_if_failed()
    console.note(f"all runtimes are within tolerance: {report.tolerance()}")
    console.next_command("infer", "FILE", "-m", model)
