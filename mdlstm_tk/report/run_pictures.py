"""Draw a run: its loss curves, and the predictions of its network; and the curves of a comparison."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import DiagonalTask, Task
from mdlstm_tk.kinds import training_of
from mdlstm_tk.report.evaluation import example_indices, make_examples, split_to_show, with_decoding
from mdlstm_tk.report.panels import Panel, draw_values
from mdlstm_tk.report.plots import draw_curves, draw_loss_comparison, draw_panels
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint
from mdlstm_tk.training.comparison import Comparison
from mdlstm_tk.training.networks import build_network
from mdlstm_tk.training.progress import WINDOW
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.run_task import match_run
from mdlstm_tk.training.tasks import load_task

COLUMNS = 4  # panels in a row of the picture


def draw_run(run: Run, task: Task | None = None, network: nn.Module | None = None) -> None:
    """Write `curves.png` and `prediction.png` from the metrics and the best weights of a run.

    Args:
        run: a run with a best checkpoint.
        task: its task; required if it is on the user's data.
        network: the network with these weights, if the caller has it.

    Raises:
        InputError: the checkpoint is damaged, the run needs its task, or it was trained on another one.
    """
    checkpoint = load_checkpoint(run.best)
    if task is None:
        task = load_task(checkpoint.config, checkpoint.spec)
    else:
        match_run(task, checkpoint.config, checkpoint.spec)
    network = network or checkpoint.network()
    title = f"{checkpoint.config.model} on {checkpoint.spec.name} {format_size(checkpoint.spec.size)}"
    draw_curves(run.curves, title, run.read_metrics(), checkpoint.config.best_by)
    if isinstance(task, DiagonalTask):
        _draw_diagonal(run, checkpoint, task, network, title)
    else:
        _draw_examples(run, checkpoint, task, network, title)


def draw_comparison(comparison: Comparison) -> list[Path]:
    """Write loss curves into the folder of a comparison, and return the paths of the pictures.

    On the random diagonal they are `overall.png` and `relevant.png`, on other tasks `loss.png`.
    """
    plan = comparison.plan
    pictures = {"loss": ("loss.png", "training loss")}
    if plan.is_diagonal:
        pictures = {"loss": ("overall.png", "overall loss"), "relevant": ("relevant.png", "relevant loss")}
    paths = []
    for metric, (name, label) in pictures.items():
        paths.append(plan.folder / name)
        label = f"{label} (mean of {WINDOW} steps)"
        draw_loss_comparison(paths[-1], plan.title, label, comparison.curves(metric))
    return paths


def _draw_diagonal(
    run: Run, checkpoint: Checkpoint, task: DiagonalTask, network: nn.Module, title: str
) -> None:
    """One matrix of the random diagonal, with the predictions of the untrained and the trained network."""
    config = checkpoint.config
    untrained = build_network(config, checkpoint.spec).eval().to(next(network.parameters()).device)
    panels = []
    for when, each in (("before", untrained), ("after", network)):
        (example,) = make_examples(each, task, "validation", config, [0])
        grids = (example.batch.x, example.output, example.batch.y)
        names = ("input", f"prediction {when} training", "truth")
        panels += [
            Panel(name, draw_values(grid[0, ..., 0], 0, 1), "0 … 1")
            for name, grid in zip(names, grids, strict=True)
        ]
    draw_panels(run.prediction, f"{title}: only the lower one can be predicted", panels, len(names))


def _draw_examples(run: Run, checkpoint: Checkpoint, task: Task, network: nn.Module, title: str) -> None:
    """Samples that represent the split, with what the trained network predicts."""
    config, task = checkpoint.config, with_decoding(task, run, checkpoint.step)
    label, task, split = split_to_show(task)
    kind = training_of(checkpoint.spec.kind)
    indices = example_indices(task, split, config.seed, kind.pictured)
    examples = make_examples(network, task, split, config, indices)
    panels = kind.picture(examples, network, config, label)
    colors = kind.colors(checkpoint.spec)
    draw_panels(run.prediction, f"{title}, {label} data", panels, COLUMNS, colors)
