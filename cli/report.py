"""`mdlstm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli import console, options
from mdlstm_tk.cli.train import next_of_run
from mdlstm_tk.errors import require

DATA = "Your data that the run was trained on, or others to measure; they are read only if named."


def report(
    run: options.RunFolder = None,
    data: Annotated[str, typer.Option(metavar="PATH", help=DATA)] = "",
    output: Annotated[
        Path | None, options.output("HTML file.  (default: report.html in the run)", "FILE")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write an HTML page about a run: curves, examples, measures of each class, and the largest errors.

    The page is one file that needs neither network nor scripts. It shows test data, or validation data if
    there are no test data; of other data, all that have not influenced the weights.
    """
    for module in ("torch", "jinja2", "matplotlib"):
        require(module, "train")
    from mdlstm_tk.report import write_report
    from mdlstm_tk.runtime.infer import models_in
    from mdlstm_tk.training import latest_run, open_run

    source = open_run(run) if run else latest_run()
    page = write_report(source, data=data, path=output, force=force)
    size = page.stat().st_size
    if json:
        console.print_json({"run": str(source.folder), "path": str(page), "bytes": size})
    console.note(f"{page}: {size / 1024:.0f} KiB; open it in a browser")
    if models := models_in(source.folder):
        console.next_command("infer", "FILE", "-m", models[-1])
    else:
        next_of_run(source.folder)
