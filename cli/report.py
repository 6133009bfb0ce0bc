"""`mdlstm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli.console import next_command, note, quoted
from mdlstm_tk.errors import require


def report(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; else the latest.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; else report.html in the run's folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file given with -o.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write a page to look at: curves, examples, errors by class, and the speed of exports.

    It is one file that needs neither network nor scripts. Examples are of the test data, or of what was
    held out for validation if there is none.
    """
    for module in ("torch", "jinja2", "matplotlib"):
        require(module, "train")
    from mdlstm_tk.report import write_report
    from mdlstm_tk.training import latest_run, open_run

    found = open_run(run) if run else latest_run()
    target = write_report(found, output, force, (lambda message: None) if quiet else note)
    if not quiet:
        note(f"{target}: {target.stat().st_size / 1024:.0f} KiB, to open in a browser")
        models = sorted(found.folder.glob("model*.onnx"))
        infer = f"mdlstm infer FILE -m {quoted(models[-1])}" if models else ""
        next_command(infer or f"mdlstm export {quoted(found.folder)}")
