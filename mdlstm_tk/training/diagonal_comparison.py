"""The comparison that the original code makes on the random diagonal: training losses over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.progress import WINDOW, running_mean

TASK = "diagonal"
MODELS: tuple[str, ...] = ("md", "snake", "horizontal")
ORIGINAL_SETTINGS = {"lr": 0.01, "weight_decay": 0.0, "layer_norm": True}
THRESHOLD = 0.05  # relevant loss below which the task counts as solved
LAST = 100  # steps that the final losses are averaged over


@torch.no_grad()
def init_original_(network: nn.Module, seed: int) -> None:
    """Start a network as philipperemy/tensorflow-multi-dimensional-lstm does.

    Weights are Glorot uniform over inputs and states, and biases 0, but for forget gates of
    one-dimensional LSTMs, which start at 1.
    """
    generator = torch.Generator().manual_seed(seed)
    nn.init.zeros_(network.head.bias)  # type: ignore[union-attr, arg-type]
    for module in network.modules():
        if not isinstance(module, MDLSTM | nn.LSTM):
            continue
        n = module.hidden_size
        axes = module.ndim if isinstance(module, MDLSTM) else 1
        for name, parameter in module.named_parameters():
            if name.startswith("weight"):
                weight_ih = module.get_parameter(f"weight_ih_l{name.rpartition('l')[2]}")
                bound = (6 / (weight_ih.shape[-1] + axes * n + weight_ih.shape[-2])) ** 0.5
                nn.init.uniform_(parameter, -bound, bound, generator)
            elif "bias" in name:
                nn.init.zeros_(parameter)
                if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
                    nn.init.ones_(parameter[n : 2 * n])


def summarize_diagonal(
    overall: Sequence[Sequence[float]], relevant: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Summarize the runs of one network, one per seed.

    Args:
        overall, relevant: the losses at each step of each run.

    Returns:
        "overall" and "relevant": the losses averaged over the last `LAST` steps, median of the seeds;
        "relevant_worst": the largest of the seeds; "passes_at": for each seed the first step at which the
        relevant loss, averaged over `WINDOW` steps, is below `THRESHOLD`, or None.
    """
    last = [mean(losses[-LAST:]) for losses in relevant]
    return {
        "overall": median(mean(losses[-LAST:]) for losses in overall),
        "relevant": median(last),
        "relevant_worst": max(last),
        "passes_at": [_first_step_below(losses) for losses in relevant],
    }


def diagonal_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of summaries by network."""
    columns = ["model", "overall", "relevant", "(worst seed)", f"step below {THRESHOLD}", "(range)"]
    return columns, [_row(model, summary) for model, summary in summaries.items()]


def _first_step_below(relevant: Sequence[float]) -> int | None:
    smooth = running_mean(relevant)[WINDOW - 1 :]
    indices = (smooth < THRESHOLD).nonzero()[0]
    return int(indices[0]) + WINDOW if len(indices) else None


def _row(model: str, summary: Mapping[str, Any]) -> list[str]:
    steps = [step for step in summary["passes_at"] if step is not None]
    failures = len(summary["passes_at"]) - len(steps)
    parts = [f"{min(steps)}–{max(steps)}" if len(steps) > 1 else f"{steps[0]}"] if steps else []
    parts += [f"never: {failures}"] if failures else []
    return [
        model,
        f"{summary['overall']:.4f}",
        f"{summary['relevant']:.5f}",
        f"{summary['relevant_worst']:.5f}",
        f"{median(steps):g}" if steps and failures < len(steps) else "never",
        ", ".join(parts),
    ]
