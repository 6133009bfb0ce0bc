"""`describe_run`: the settings of a training run, and how far it got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

from torch import nn

from mdlstm_tk.kinds import training_of
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.runtime.infer import models_in
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.networks import count_parameters
from mdlstm_tk.training.run_folder import metric_names, open_run


def describe_run(folder: str | Path) -> dict[str, Any]:
    """Describe a run, as `mdlstm info` prints it.

    Args:
        folder: the run folder.

    Returns:
        "kind": "run"; all settings, where "cell" and "directions" are as in the network;
        "steps_done", "training_seconds" (see `TrainingTimes`), "parameters"; "best_step" and "best_score",
        the measure that chose the weights, 0 and None before there is a score; the mean of each loss and
        error over the last 100 steps as "last_100_NAME", None if it is not finite; "exports", the names of
        the exported models. All values are JSON values.

    Raises:
        InputError: there is no run in the folder, or its checkpoint is damaged.
    """
    run = open_run(folder)
    last = load_checkpoint(run.last if run.last.exists() else run.best)
    network = last.network()
    recent = run.read_metrics()[-100:]
    is_negative = training_of(last.spec.kind).further_measures.get(last.config.best_by, False)
    score = -last.state.score if is_negative else last.state.score  # a measure that is better if higher
    return {
        "kind": "run",
        **asdict(last.config),
        **_recurrence(network),
        "task": last.spec.name,
        "steps_done": last.step,
        "training_seconds": round(run.read_times().training, 1),
        "parameters": count_parameters(network),
        "best_step": last.state.best_step,
        "best_score": score if isfinite(score) else None,
        **{
            f"last_100_{name}": _mean([record[name] for record in recent if name in record])
            for name in metric_names(recent)
        },
        "exports": sorted(path.name for path in models_in(run.folder)),
    }


def _recurrence(network: nn.Module) -> dict[str, Any]:
    """The cell and the number of sweep directions of the network's layers; lists if they differ."""
    layers = [module for module in network.modules() if isinstance(module, MDLSTM)]
    values: dict[str, list[Any]] = {
        "cell": [layer.cell for layer in layers],
        "directions": [len(layer.directions) for layer in layers],
    }
    distinct = {name: list(dict.fromkeys(each)) for name, each in values.items()}
    return {name: each[0] if len(each) == 1 else each or None for name, each in distinct.items()}


def _mean(values: Sequence[float]) -> float | None:
    mean = sum(values) / len(values) if values else nan
    return mean if isfinite(mean) else None
