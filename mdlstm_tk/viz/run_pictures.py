"""Draw a run: its loss curves, and what its network predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mdlstm_tk.data import Batch, DiagonalTask, Split, Task
from mdlstm_tk.sizes import format_size
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.evaluation import predict
from mdlstm_tk.training.job import TrainingJob, run_job
from mdlstm_tk.training.networks import build_network
from mdlstm_tk.training.progress import Progress
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.tasks import make_task
from mdlstm_tk.viz.panels import panels_of
from mdlstm_tk.viz.plots import Floats, plot_curves, plot_panels, plot_prediction

EXAMPLES = 12  # that a picture shows, of classes or texts
ROWS = 4  # of grids or masks, each beside its truth


def train_and_draw(
    job: TrainingJob, on_step: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Train, write `result.json`, and draw the run; draw it also if training is interrupted.

    Args:
        job: see `mdlstm_tk.training.new_job` and `resume_job`.
        on_step: called after each step, in the main process only.

    Returns:
        The content of `result.json`; {} in processes other than the main one.

    Raises:
        KeyboardInterrupt: training was interrupted; checkpoint and pictures are written before.
        MDLSTMError: see `mdlstm_tk.training.run_job`.
    """
    try:
        result = run_job(job, on_step)
    except KeyboardInterrupt:
        if job.context.is_main and job.run.best.exists():
            draw_run(job.run, job.task)
        raise
    if job.context.is_main:
        draw_run(job.run, job.task)
    return result


def draw_run(run: Run, task: Task | None = None) -> None:
    """Write `curves.png` and `prediction.png` from the run's metrics and best checkpoint."""
    checkpoint = load_checkpoint(run.best)
    task = task or make_task(checkpoint.config)
    network, config, spec = checkpoint.network(), checkpoint.config, checkpoint.spec
    prefix = "" if isinstance(task, DiagonalTask) else f"{spec.name} "
    title = f"{config.model} on {prefix}{format_size(spec.size)}"
    plot_curves(run.curves, title, run.read_metrics())
    if isinstance(task, DiagonalTask):
        batch: Batch = task.batch(config.seed, 1, 1, "validation")
        untrained = build_network(config, spec).eval()
        x, y, before, after = (
            grid[0, ..., 0] for grid in (batch.x, batch.y, _run(untrained, batch), _run(network, batch))
        )
        plot_prediction(
            run.prediction, f"{title}: only the lower one can be predicted", x, y, before, after
        )
        return
    split = shown_stream(task)
    whole = spec.kind in ("grid", "segment")
    batch = task.batch(config.seed, 0, ROWS if whole else EXAMPLES, split)
    prediction = _run(network, batch)
    panels = [
        panel
        for k in range(len(batch.x))
        for panel in panels_of(batch.sample(k), prediction[k : k + 1], spec)
    ]
    plot_panels(run.prediction, f"{title}, {split} data", panels, columns=4)


@torch.no_grad()
def _run(network: nn.Module, batch: Batch) -> Floats:
    prediction: Floats = predict(network, batch, torch.device("cpu")).numpy()
    return prediction


def shown_stream(task: Task) -> Split:
    """The split to show a network on: the one that chose least."""
    return "test" if task.count("test") else "validation" if task.count("validation") else "train"
