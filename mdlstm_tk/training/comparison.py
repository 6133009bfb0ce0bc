"""Several networks with equally many parameters on one task, over several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdlstm_tk.data import Digits, TaskSpec
from mdlstm_tk.models import model_names, model_options
from mdlstm_tk.training.build import NETWORK, build_network, make_task
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.evaluation import evaluate_run
from mdlstm_tk.training.loop import train
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.trainer import Progress
from mdlstm_tk.viz.run_pictures import draw_run


def compare_models(
    config: TrainConfig,
    seeds: int,
    folder: Path,
    report: Callable[[str, int, Progress], None] = lambda model, seed, progress: None,
) -> dict[str, dict[str, Any]]:
    """Train all networks that a task can have, on the same data and for the same steps.

    Args:
        config: of the MD-LSTM; the others get as many units as make them as large.
        seeds: runs of each network: of weights, data and what is tested with.
        folder: a run folder for each is made in it.
        report: called after each step with network, seed and where it is.

    Returns:
        By network: hidden, parameters, seconds of each run, and each error on the test data by seed. Of
        methods without training, the errors alone.
    """
    results: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        task = make_task(replace(config, seed=seed))
        for model in model_names(task.spec.kind):
            chosen = equally_large(replace(config, seed=seed), model, task.spec)
            run = Run(folder / f"{model}-{seed}")
            run.folder.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            train(chosen, run, report=lambda state, m=model, s=seed: report(m, s, state), task=task)  # type: ignore[misc]
            result = evaluate_run(run, task, time.perf_counter() - start)
            draw_run(run, task)
            entry = results.setdefault(model, {"hidden": chosen.hidden, "parameters": result["parameters"]})
            entry.setdefault("seconds", []).append(result["seconds"])
            _collect(entry, result["errors"])
        if isinstance(task, Digits):
            for name, error in task.baselines().items():
                _collect(results.setdefault(name, {}), {"error": error})
    return results


def _collect(entry: dict[str, Any], errors: dict[str, float]) -> None:
    for name, value in errors.items():
        entry.setdefault("errors", {}).setdefault(name, []).append(value)


def equally_large(config: TrainConfig, model: str, spec: TaskSpec) -> TrainConfig:
    """The config of another network with as many parameters as this one's, as nearly as units allow."""
    if model == config.model:
        return config
    wanted = _parameters(config, spec, config.hidden)
    lacking = set(NETWORK) - set(model_options(model, spec.kind))
    other = replace(config, model=model, **{name: getattr(TrainConfig(), name) for name in lacking})
    low, high = 1, 2  # the wanted number of parameters lies between theirs
    while _parameters(other, spec, high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _parameters(other, spec, middle) < wanted else (low, middle)
    return replace(other, hidden=min(low, high, key=lambda n: abs(_parameters(other, spec, n) - wanted)))


def _parameters(config: TrainConfig, spec: TaskSpec, hidden: int) -> int:
    network = build_network(replace(config, hidden=hidden), spec)
    return sum(parameter.numel() for parameter in network.parameters())
