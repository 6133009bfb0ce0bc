"""Errors of networks that learn a task on equal terms: tables of README, docs/results.md, docs/density.md.

    python benchmarks/learning.py --estimate       # the hours of one core that each table takes
    python benchmarks/learning.py digits           # measures what is missing, and prints the table
    python benchmarks/learning.py --write          # all, for eight hours, and writes the pages

docs/results.md describes the terms. A cell of a table is one training; it is kept in a file of
benchmarks/results/ when it ends, so that an interrupted table goes on. `--write` leaves tables with missing
cells as they are in the pages; with `--estimate`, nothing is trained before.
"""

from __future__ import annotations

import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import density_tasks  # noqa: F401  it registers tasks
import rival_networks  # noqa: F401  it registers the rivals
import torch
from equal_time import seconds_a_step
from learning_tables import TABLES, TOLERANCE, Results, section, write
from measuring import (
    RESULTS,
    ROOT,
    add_names,
    argument_parser,
    hold_settings,
    machine,
    resumed,
    settings_of,
)

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training import TrainConfig, build_network, configure, make_task, train
from mdlstm_tk.training.comparison import MOST_HIDDEN, with_equal_parameters
from mdlstm_tk.training.networks import count_parameters


def configurations(name: str, settings: Mapping[str, Any]) -> dict[str, TrainConfig]:
    """The configuration of each network, with equally many parameters."""
    table = TABLES[name]
    values = {"model": table.networks[0], "device": "cpu", "patience": 0, **table.settings, **settings}
    base = configure(task=name, **values)
    task = make_task(base)

    def count(config: TrainConfig) -> int:
        with torch.device("meta"):
            return count_parameters(build_network(config, task.spec))

    configs, target = {base.model: base}, count(base)
    for network in table.networks[1:]:
        config = replace(with_equal_parameters(base, network, task), **table.own.get(network, {}))
        widths = range(1, MOST_HIDDEN)
        least = bisect_left(widths, target, key=lambda hidden: count(replace(config, hidden=hidden))) + 1
        near = [replace(config, hidden=hidden) for hidden in (max(least - 1, 1), least)]
        configs[network] = min(near, key=lambda each: abs(count(each) - target))
    counts = {network: count(each) for network, each in configs.items()}
    if any(abs(number / target - 1) > TOLERANCE for number in counts.values()):
        raise SystemExit(f"{name}: the numbers of parameters differ too much, {counts}")
    return configs


def train_once(config: TrainConfig, measure: str, *, chooses: bool) -> dict[str, Any]:
    """Train a network, and return its cell, with its errors on test data.

    With `chooses` test data are hidden, and it has a score on validation data instead, which is that
    measure. A training that diverges has neither.
    """
    task = make_task(config)
    if task.count("validation"):
        config = replace(config, best_by=measure)
    if chooses:
        whole = task.count
        task.count = lambda split: 0 if split == "test" else whole(split)  # type: ignore[method-assign]
    parameters = count_parameters(build_network(config, task.spec))
    cell: dict[str, Any] = {"machine": machine(), "parameters": parameters}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = train(config, folder, task=task)
        except MDLSTMError as error:
            if "diverged" not in str(error):
                raise
            return {**cell, "diverged": str(error)}
    cell |= {"seconds": result["seconds"], "step": result["step"]}
    return cell | ({"score": result["errors"][measure]} if chooses else {"errors": result["errors"]})


def prepare(results: Results, configs: Mapping[str, TrainConfig]) -> None:
    """Measure how long a step takes, and hold that the results are of these settings."""
    base, usual = next(iter(configs.values())), vars(TrainConfig())
    terms = {k: value for k, value in vars(base).items() if k in ("steps", "lr") or value != usual[k]}
    terms |= {"choosing": dict(results.table.choosing), "own": dict(results.table.own)}
    hold_settings(results.file, terms)
    seconds = min(20.0, base.steps / 100)
    times = {
        "seconds a step": partial(seconds_a_step, configs, seconds),
        "machine of the seconds": machine,
    }
    results.cells = resumed(results.file, times)


def measure(results: Results, configs: Mapping[str, TrainConfig]) -> None:
    """Do the trainings that are missing: those that choose learning rates, and then the others."""
    table, base = results.table, next(iter(configs.values()))

    def baselines() -> list[dict[str, dict[str, float]]]:
        seeds = [replace(base, seed=seed) for seed in range(1, table.seeds + 1)]
        return [make_task(each).baselines(each.seed) for each in seeds]

    for _ in range(2):
        cells: dict[str, Callable[[], Any]] = {"baselines": baselines}
        for each in results.trainings:
            config = replace(configs[each.network], lr=each.rate, steps=each.steps, seed=each.seed)
            if each.seed == 0:
                last = {"evaluate_every": each.steps} if table.choosing else {}
                config = replace(config, **{**table.choosing, **last})
            cells[each.name] = partial(train_once, config, table.measures[0], chooses=each.seed == 0)
        results.cells = resumed(results.file, cells)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    add_names(parser, "TASK", TABLES)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    parser.add_argument("--estimate", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="write the pages")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of cells")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README and docs/")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    for name in options.names:
        results = Results(name, options.results)
        configs = configurations(name, settings_of(options.set))
        prepare(results, configs)
        done = sum(each.name in results.cells for each in results.trainings)
        print(f"{name}: {results.hours:.2f} hours of one core; {done} trainings are done", file=sys.stderr)
        if not options.estimate:
            measure(results, configs)
            print(f"{section(results)}\n")
    if options.write:
        write(options.results, options.root)


if __name__ == "__main__":
    main()
