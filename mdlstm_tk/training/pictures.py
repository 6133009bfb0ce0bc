"""Drawing a run: its curves, and what it predicts before and after training."""

from __future__ import annotations

import torch

from mdlstm_tk.sizes import show_size
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.loop import build
from mdlstm_tk.training.plots import plot_curves, plot_prediction
from mdlstm_tk.training.run import Run


@torch.no_grad()
def draw_run(run: Run) -> None:
    """Write `curves.png` and `prediction.png` from the run's metrics and best checkpoint."""
    checkpoint = load_checkpoint(run.best)
    title = f"{checkpoint.config.model} on {show_size(checkpoint.config.grid)}"
    metrics = run.read_metrics()
    plot_curves(
        run.curves,
        title,
        [record["loss"] for record in metrics],
        [record["relevant"] for record in metrics],
    )
    network, task = build(checkpoint.config)
    network.eval()
    batch = task.batch(checkpoint.config.seed, 1, 1, "validation")
    x = torch.from_numpy(batch.x)
    before = network(x)
    checkpoint.load_model(network)
    after = network(x)
    plot_prediction(
        run.prediction,
        f"{title}: only the lower one can be predicted",
        batch.x[0, ..., 0],
        batch.y[0, ..., 0],
        before[0, ..., 0].numpy(),
        after[0, ..., 0].numpy(),
    )
