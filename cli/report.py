"""`mdlstm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import next_command, note, print_json
from mdlstm_tk.cli.options import Json, RunFolder, data_option, force_option, output_option
from mdlstm_tk.cli.progress import next_of_run
from mdlstm_tk.errors import require

DATA = "Your data that the run was trained on, to show examples; they are read only if named."


def report(
    run: RunFolder = None,
    data: Annotated[str | None, data_option(DATA)] = None,
    output: Annotated[
        Path | None, output_option("HTML file to write.", "report.html in the run folder", "FILE")
    ] = None,
    force: Annotated[bool, force_option("Replace the file given with -o.")] = False,
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
    from mdlstm_tk.training import latest_run, open_run

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
    else:
        next_command(next_of_run(source))
