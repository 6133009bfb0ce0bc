"""Compare networks on one task: equally many parameters, equal data, equally many steps, several seeds."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mdlstm_tk._util.text import to_json
from mdlstm_tk.data.task import Task, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.models.registry import model_names, model_options
from mdlstm_tk.training.checkpoint import State
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.loop import train
from mdlstm_tk.training.networks import build_network, count_parameters, with_windows
from mdlstm_tk.training.run import Run, new_run
from mdlstm_tk.training.tasks import NETWORK_OPTIONS, make_task

log = logging.getLogger("mdlstm_tk.training")
MOST_HIDDEN = 4096
VALIDATIONS = 40  # of a run, for its curves, or more if the settings say so


def compare(
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    seeds: int = 3,
    force: bool = False,
    on_step: Callable[[str, State, float, Mapping[str, float]], None] | None = None,
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Train all networks that are registered for the kind of a task, each with as many parameters as that
    of `config`, and write `summary.json`.

    Args:
        config: of the task, see `configure`.
        folder: holds a run folder MODEL-SEED for each run; runs/TASK-compare-SIZE if None.
        seeds: runs of each network, with the seed of `config` and those that follow it.
        force: allow a folder that is not empty.
        on_step: as of `train`, with the name of the run in front.

    Returns:
        The folder; and by network, or method without one: "hidden", "parameters", "seeds" and lists over
        these: "seconds" and the errors of the best weights by name, on test data if there are any.

    Raises:
        InputError: the runs would not be comparable, or as of `train`.
    """
    if config.minutes or config.init:
        raise InputError("networks are compared from random weights after equally many steps")
    config = replace(
        config, patience=0, evaluate_every=min(config.evaluate_every, max(config.steps // VALIDATIONS, 1))
    )
    task = make_task(config)
    is_plain, kind = len(task.spec.size) == 2, task.spec.kind
    names = [name for name in model_names(kind) if is_plain or "ndim" in model_options(name, kind)]
    whole = new_run(replace(config, model="compare"), task, folder, force).folder
    target = _parameters(with_windows(config, task), task.spec)
    log.info("training %s, each with about %d parameters, into %s", ", ".join(names), target, whole)
    results: dict[str, dict[str, Any]] = {}
    for seed in range(config.seed, config.seed + seeds):
        of_seed = replace(config, seed=seed)
        task = make_task(of_seed)
        for name in names:
            chosen, run = with_equal_parameters(of_seed, name, task), whole / f"{name}-{seed}"
            shown = partial(on_step, run.name) if on_step else None
            result = train(chosen, run, task=task, force=force, on_step=shown)
            entry = results.setdefault(name, {"hidden": chosen.hidden, "parameters": result["parameters"]})
            for key, value in {"seeds": seed, "seconds": result["seconds"], **result["errors"]}.items():
                entry.setdefault(key, []).append(value)
        for method, errors in task.baselines(seed).items():
            for key, value in errors.items():
                results.setdefault(method, {}).setdefault(key, []).append(value)
    Run.write(whole / "summary.json", to_json(results, indent=2) + "\n")
    return whole, results


def with_equal_parameters(config: TrainConfig, model: str, task: Task) -> TrainConfig:
    """The configuration of another network, with the `hidden` for which it has about as many parameters."""
    config = with_windows(config, task)
    if model == config.model:
        return config
    known = model_options(model, task.spec.kind)
    defaults = {name: getattr(TrainConfig, name) for name in NETWORK_OPTIONS if name not in known}
    other = with_windows(replace(config, model=model, **defaults), task)
    target = _parameters(config, task.spec)

    def count(hidden: int) -> int:
        return _parameters(replace(other, hidden=hidden), task.spec)

    least = bisect_left(range(1, MOST_HIDDEN), target, key=count) + 1  # the fewest with at least as many
    hidden = min(max(least - 1, 1), least, key=lambda units: abs(count(units) - target))
    return replace(other, hidden=hidden)


def _parameters(config: TrainConfig, spec: TaskSpec) -> int:
    with torch.device("meta"):
        return count_parameters(build_network(config, spec))
