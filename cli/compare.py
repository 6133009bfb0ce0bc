"""`mdlstm compare`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from mdlstm_tk.cli import console, options
from mdlstm_tk.cli.train import with_settings
from mdlstm_tk.errors import require

OUTPUT = "Folder for the runs, pictures and summary.  (default: runs/TASK-compare-SIZE)"
SEEDS = "Runs of each network, each with another seed."


@with_settings
def compare(
    seeds: Annotated[int, typer.Option(min=1, help=SEEDS)] = 3,
    output: Annotated[Path | None, options.output(OUTPUT, "DIR")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    json: options.Json = False,
    **settings: Any,
) -> None:
    """Train the networks of a task on the same data for the same steps, and compare them.

    These are all networks that are registered for its kind, to which --import adds others. All have the
    same settings and about equally many parameters. Every network and seed gets a run folder.
    """
    for module in ("torch", "jinja2", "matplotlib"):
        require(module, "train")
    from mdlstm_tk import training
    from mdlstm_tk.report import draw_comparison

    config = training.configure(**{key: value for key, value in settings.items() if value is not None})
    with console.progress(config.steps, unit="steps of each run") as show:

        def on_step(run: str, state: Any, loss: float, _: Any) -> None:
            show(state.step, f"{run}, loss {loss:.4g}")

        folder, results = training.compare(config, output, seeds=seeds, force=force, on_step=on_step)
    pictures = draw_comparison(folder)
    if json:
        console.print_json({"folder": str(folder), "results": results})
    else:
        console.table(*_table(results))
    console.note(f"pictures: {', '.join(map(str, pictures))}")


def _table(results: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of results: the mean of the seeds, and their range."""
    columns = list(dict.fromkeys(key for entry in results.values() for key in entry if key != "seeds"))

    def cell(value: Any) -> str:
        if not isinstance(value, list):
            return str(value)
        spread = f" ({min(value):.4g}–{max(value):.4g})" if len({*value}) > 1 else ""
        return f"{mean(value):.4g}{spread}"

    rows = [[name, *(cell(entry.get(column, "")) for column in columns)] for name, entry in results.items()]
    return ["model", *columns], rows
