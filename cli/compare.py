"""`mdlstm compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli import console, options
from mdlstm_tk.cli.train import with_settings
from mdlstm_tk.errors import require

if TYPE_CHECKING:
    from mdlstm_tk.training.comparison import ComparisonProgress

ORIGINAL = "Use the initialisation, layer norm and learning rate of the original TensorFlow code."
OUTPUT = "Folder for the runs, pictures and summary.  (default: runs/compare, or runs/compare-TASK)"
SEEDS = "Runs of each network, each with another seed.  (default: 5 on the diagonal, else 3)"


@with_settings
def compare(
    seeds: Annotated[int | None, typer.Option(min=1, help=SEEDS)] = None,
    original_settings: Annotated[bool, typer.Option("--original-settings", help=ORIGINAL)] = False,
    output: Annotated[Path | None, options.output(OUTPUT, "DIR")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    json: options.Json = False,
    **settings: Any,
) -> None:
    """Train the networks of a task on the same data for the same steps, and compare them.

    On the random diagonal these are the MD-LSTM and one-dimensional LSTMs, and the losses of training are
    compared. On other tasks they are all registered networks, to which --import adds others, and errors on
    test data are compared. All have the same settings and about equally many parameters; with
    --original-settings, equally many hidden units. Every network and seed gets a run folder.
    """
    require("torch", "train")
    from mdlstm_tk.report import draw_comparison, draw_run
    from mdlstm_tk.training import TrainConfig, compare_models, configure_comparison, plan_comparison

    settings = {key: value for key, value in settings.items() if value is not None}
    config = configure_comparison(settings.pop("task", TrainConfig.task), settings)
    plan = plan_comparison(config, seeds, output, force, original_settings)
    for line in [*plan.notes, plan.description]:
        console.note(line)
    with console.progress(plan.total_steps, unit="steps") as show:

        def on_step(state: ComparisonProgress) -> None:
            show(state.steps_done, state.describe())

        comparison = compare_models(plan, on_step, None if plan.is_diagonal else draw_run)
    draw_comparison(comparison)
    if json:
        console.print_json(comparison.results)
    else:
        summary = comparison.table()
        console.table(summary.columns, summary.rows, summary.title)
        if summary.note:
            console.note(summary.note)
    for line in comparison.notes:
        console.note(line)
    of_runs = "" if plan.is_diagonal else f" {plan.folder}/*/prediction.png"
    console.note(f"pictures: {plan.folder}/*.png{of_runs}")
