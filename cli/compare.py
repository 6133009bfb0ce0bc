"""`mdlstm compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import note, print_json, progress, table
from mdlstm_tk.cli.options import DATA, RUN, ForceFolder, Json, complete_from, option, output_option
from mdlstm_tk.cli.settings import Settings
from mdlstm_tk.errors import require
from mdlstm_tk.training.config import TrainConfig, choices

if TYPE_CHECKING:
    from mdlstm_tk.training.comparison import ComparisonProgress

SIZE = "Grid size, as 8 or 8x12, for tasks that generate their grids."
SEEDS = "Number of runs of each network, each with another random seed."
ORIGINAL = "Use the initialisation, layer norm and learning rate of the original TensorFlow code."


def compare(
    task: Annotated[
        str,
        option(
            f"Task to train on: {', '.join(choices('task'))}, or the kind of your own data.",
            DATA,
            metavar="NAME",
            autocompletion=complete_from(*choices("task")),
        ),
    ] = TrainConfig.task,
    size: Annotated[str | None, option(SIZE, DATA, metavar="SIZE", show_default="the task's own")] = None,
    seeds: Annotated[
        int | None, option(SEEDS, RUN, min=1, show_default="5 on the diagonal, else 3")
    ] = None,
    steps: Annotated[
        int | None, option("Optimizer steps of each run.", RUN, min=1, show_default="the task's own")
    ] = None,
    original_settings: Annotated[bool, option(ORIGINAL, RUN, "--original-settings")] = False,
    settings: Settings = None,
    output: Annotated[
        Path | None,
        output_option(
            "Folder for the runs, pictures and summary.", "runs/compare, or runs/compare-TASK", "DIR"
        ),
    ] = None,
    force: ForceFolder = False,
    json: Json = False,
) -> None:
    """Train the networks of a task on the same data for the same steps, and compare them.

    On the random diagonal these are the MD-LSTM and one-dimensional LSTMs, and the losses of training are
    compared. On other tasks they are all registered networks, often the MD-LSTM alone, to which --import
    adds others; the errors of the best checkpoints on test data, if there are any, else on validation data,
    are compared, next to baselines. All networks have the same settings and about equally many parameters;
    a line names those that cannot. With --original-settings, they have equally many hidden units.

    Every network and seed gets a run folder.
    """
    require("torch", "train")
    from mdlstm_tk.report import draw_comparison, draw_run
    from mdlstm_tk.training import compare_models, configure_comparison, parse_settings, plan_comparison

    overrides = {key: value for key, value in {"steps": steps, "size": size}.items() if value is not None}
    config = configure_comparison(task, overrides, parse_settings(settings or []))
    plan = plan_comparison(config, seeds, output, force, original_settings)
    for line in plan.notes:
        note(line)
    note(plan.description)
    with progress(plan.total_steps) as show:

        def on_step(state: ComparisonProgress) -> None:
            rate = state.progress.steps_per_second  # assumes that all networks train as fast as this one
            remaining_seconds = (plan.total_steps - state.steps_done) / rate if rate else None
            show(state.steps_done, state.describe, remaining_seconds)

        comparison = compare_models(plan, on_step, None if plan.is_diagonal else draw_run)
    draw_comparison(comparison)
    if json:
        print_json(comparison.results)
    else:
        summary = comparison.table()
        table(summary.columns, summary.rows, summary.title)
        if summary.note:
            note(summary.note)
    for line in comparison.notes:
        note(line)
    predictions = "" if plan.is_diagonal else f" {shell_quoted(plan.folder)}/*/prediction.png"
    note(f"pictures: {shell_quoted(plan.folder)}/*.png{predictions}")
