"""`mdlstm compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, progress, quoted, table
from mdlstm_tk.errors import require


def compare(
    task: Annotated[
        str, typer.Option(help="diagonal, digits, digit-strings, textures, gaussian-field[-anisotropic].")
    ] = "diagonal",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each model; else 5, or 3.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each run; else the task's own.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the grids: 8 or 8x12; else the task's own.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.toml; repeatable."),
    ] = None,
    as_seed: Annotated[
        bool, typer.Option("--as-seed", help="With the seed's initialisation, layer norm and rate.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for all of it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Train the MD-LSTM and its rivals on the same data for the same steps, and compare them.

    On the random diagonal: MD-LSTM, snake and horizontal LSTM; prints a table and draws overall.png and
    relevant.png. On other tasks: all networks there are for them, with equally many parameters; prints the
    errors on test data. Writes a run folder for each seed.
    """
    require("torch", "train")
    from mdlstm_tk.training import configure_comparison, parse_settings, plan_comparison
    from mdlstm_tk.viz.comparison_pictures import compare_and_draw

    options = {key: value for key, value in {"steps": steps, "size": size}.items() if value is not None}
    config = configure_comparison(task, options, parse_settings(settings or []))
    plan = plan_comparison(config, seeds, output, force, as_seed)
    note(plan.description)
    with progress(plan.total_steps) as live:
        comparison = compare_and_draw(plan, lambda state: live(state.steps_done, state.describe()))
    if json:
        print_json(comparison.results)
    else:
        summary = comparison.table()
        table(summary.columns, summary.rows, summary.title)
        if summary.note:
            note(summary.note)
    predictions = "" if plan.is_diagonal else f" {quoted(plan.folder)}/*/prediction.png"
    next_command(f"open {quoted(plan.folder)}/*.png{predictions}")
