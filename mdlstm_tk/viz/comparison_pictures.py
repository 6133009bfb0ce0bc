"""Draw the loss curves of a comparison of networks."""

from __future__ import annotations

from pathlib import Path

from mdlstm_tk.training.comparison import Comparison
from mdlstm_tk.training.progress import WINDOW
from mdlstm_tk.viz.plots import draw_loss_comparison


def draw_comparison(comparison: Comparison) -> list[Path]:
    """Write loss curves into the folder of a comparison, and return the paths of the pictures.

    On the random diagonal they are `overall.png` and `relevant.png`, on other tasks `loss.png`.
    """
    plan = comparison.plan
    pictures = {"loss": ("loss.png", f"training loss (mean of {WINDOW} steps)")}
    if plan.is_diagonal:
        pictures = {
            "loss": ("overall.png", f"overall loss (mean of {WINDOW} steps)"),
            "relevant": ("relevant.png", f"relevant loss (mean of {WINDOW} steps)"),
        }
    paths = []
    for metric, (name, label) in pictures.items():
        paths.append(plan.folder / name)
        draw_loss_comparison(paths[-1], plan.title, label, comparison.curves(metric))
    return paths
