"""Run a comparison of networks and draw its loss curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mdlstm_tk.training.comparison import Comparison, ComparisonPlan, ComparisonProgress, compare_models
from mdlstm_tk.training.progress import WINDOW
from mdlstm_tk.viz.plots import draw_loss_comparison
from mdlstm_tk.viz.run_pictures import draw_run


def compare_and_draw(
    plan: ComparisonPlan, on_step: Callable[[ComparisonProgress], None] = lambda progress: None
) -> Comparison:
    """Train all networks of a plan, then draw the comparison, and the runs unless the task is the diagonal.

    Args:
        plan: see `mdlstm_tk.training.plan_comparison`.
        on_step: called after each training step.
    """
    if plan.is_diagonal:
        comparison = compare_models(plan, on_step)
    else:
        comparison = compare_models(plan, on_step, on_run_end=draw_run)
    draw_comparison(comparison)
    return comparison


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
