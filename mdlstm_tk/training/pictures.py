"""Drawing a run: its curves, and what it predicts."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mdlstm_tk.runtime.decode import labels, transcripts
from mdlstm_tk.sizes import show_size
from mdlstm_tk.tasks import Batch, DiagonalTask, Facts, Stream, Task
from mdlstm_tk.training.build import build_network, make_task
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.plots import Floats, Panel, plot_curves, plot_panels, plot_prediction
from mdlstm_tk.training.run import Run
from mdlstm_tk.training.trainer import predict

EXAMPLES = 12  # that a picture shows, of classes or texts
ROWS = 4  # of grids or masks, each beside its truth


def draw_run(run: Run, task: Task | None = None) -> None:
    """Write `curves.png` and `prediction.png` from the run's metrics and best checkpoint."""
    checkpoint = load_checkpoint(run.best)
    task = task or make_task(checkpoint.config)
    network, config, facts = checkpoint.network(), checkpoint.config, checkpoint.facts
    prefix = "" if isinstance(task, DiagonalTask) else f"{facts.name} "
    title = f"{config.model} on {prefix}{show_size(facts.size)}"
    plot_curves(run.curves, title, run.read_metrics())
    if isinstance(task, DiagonalTask):
        batch: Batch = task.batch(config.seed, 1, 1, "validation")
        untrained = build_network(config, facts).eval()
        x, y, before, after = (
            grid[0, ..., 0] for grid in (batch.x, batch.y, _run(untrained, batch), _run(network, batch))
        )
        plot_prediction(
            run.prediction, f"{title}: only the lower one can be predicted", x, y, before, after
        )
        return
    stream: Stream = "test" if task.count("test") else "validation" if task.count("validation") else "train"
    whole = facts.kind in ("grid", "segment")
    batch = task.batch(config.seed, 0, ROWS if whole else EXAMPLES, stream)
    panels = _panels(batch, _run(network, batch), facts)
    plot_panels(run.prediction, f"{title}, {stream} data", panels, columns=3 if whole else 4)


@torch.no_grad()
def _run(network: nn.Module, batch: Batch) -> Floats:
    prediction: Floats = predict(network, batch, torch.device("cpu")).numpy()
    return prediction


def _panels(batch: Batch, prediction: Floats, facts: Facts) -> list[Panel]:
    """What to show of each sample: its image with label or text, or input, prediction and truth."""
    images = [_crop(x, batch, k) for k, x in enumerate(batch.x)]
    if facts.kind == "classify":
        said = [facts.classes[k] for k in labels(prediction)]
        truth = [facts.classes[k] for k in batch.y]
    elif facts.kind == "transcribe":
        said = transcripts(prediction, facts.classes)
        truth = ["".join(facts.classes[k - 1] for k in row if k > 0) for row in batch.y]
    else:
        y = labels(prediction)[..., None] if facts.kind == "segment" else prediction
        target = batch.y[..., None] if facts.kind == "segment" else batch.y
        panels = []
        for k, image in enumerate(images):
            panels.append(Panel("input", image))
            for name, grid in (("prediction", y), ("truth", target)):
                panels.append(Panel(name, _crop(grid[k], batch, k)[..., 0], len(facts.classes)))
        return panels
    titles = (a if a == b else f"{a}, is {b}" for a, b in zip(said, truth, strict=True))
    return [Panel(name, image) for name, image in zip(titles, images, strict=True)]


def _crop(grid: Floats, batch: Batch, k: int) -> Floats:
    """(H, W, C) without sample k's padding; (H, W) if there are no colours."""
    if batch.sizes is not None:
        grid = grid[tuple(slice(extent) for extent in batch.sizes[k])]
    colours: Floats = np.clip(grid, 0, 1) if grid.shape[-1] == 3 else grid[..., :1]
    return colours
