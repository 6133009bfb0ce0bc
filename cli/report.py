"""`mdlstm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import next_command, note, print_json
from mdlstm_tk.cli.options import OUTPUT, Json, complete_files, complete_run, with_imports
from mdlstm_tk.errors import require


def report(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="Run folder.", show_default="the latest run", autocompletion=complete_run
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Your data that the run was trained on, to show examples; they are read only if named.",
            show_default="no examples of your own data",
            autocompletion=complete_files(".npz"),
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="HTML file to write.",
            show_default="report.html in the run folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file given with -o.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Write an HTML page about a run: curves, examples, errors by class, and the speed of its exports.

    The page is one file that needs neither network nor scripts. The examples are test data, or validation
    data if the task has no test data.
    """
    for module in ("torch", "jinja2", "matplotlib"):
        require(module, "train")
    from mdlstm_tk.report import write_report
    from mdlstm_tk.report.exports import find_exports
    from mdlstm_tk.training import latest_run, load_checkpoint, open_run

    source = open_run(run) if run else latest_run()
    page = write_report(source, output, force, note, data or "")
    size = page.stat().st_size
    if json:
        print_json({"run": str(source.folder), "path": str(page), "bytes": size})
    else:
        note(f"{page}: {size / 1024:.0f} KiB; open it in a browser")
    models = find_exports(source)
    if models:
        next_command(f"mdlstm infer FILE -m {shell_quoted(models[-1])}")
        return
    # images of one's own differ in size, or new ones will
    form = " --form scan" if load_checkpoint(source.checkpoint).config.data else ""
    next_command(with_imports(f"mdlstm export {shell_quoted(source.folder)}{form}"))
