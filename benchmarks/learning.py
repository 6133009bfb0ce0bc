"""Errors of networks that learn a task on equal terms: the tables of docs/results.md and docs/density.md.

    python benchmarks/learning.py digits           # trains what is missing, and prints the table
    python benchmarks/learning.py                  # all tasks, for eight hours of one core

docs/results.md describes the terms. A training becomes a row of benchmarks/results/TASK.tsv when it ends,
so that an interrupted table goes on. Seed 0 chooses learning rates by validation data; the other seeds are
tested.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import isnan, log, nan
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import density_tasks  # noqa: F401  it registers tasks
import rival_networks  # noqa: F401  it registers the rivals
import torch
from measuring import RESULTS, Row, add_row, argument_parser, markdown, read_rows, settings_of

from mdlstm_tk._util.text import duration
from mdlstm_tk.data import Task
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training import TrainConfig, build_network, configure, make_task, train
from mdlstm_tk.training.comparison import MOST_HIDDEN, with_equal_parameters
from mdlstm_tk.training.networks import count_parameters

FACTORS = (1 / 3, 1, 3)  # of the task's learning rate, among which that of each network is chosen
COLUMNS = ("network", "lr", "steps", "seed", "parameters", "seconds", "score")  # before the measures
TIMED_STEPS = 30  # of a training that tells the time of a step
TOLERANCE = 0.05  # by which the steps that take equal time may differ from equal steps
MEASURES = {  # name → column, factor, decimals
    "relevant": ("relevant loss", 1, 5),
    "error": ("wrong, %", 100, 2),
    "character_error": ("wrong characters, %", 100, 2),
    "string_error": ("wrong strings, %", 100, 2),
    "unexplained": ("unexplained", 1, 4),
    "nats": ("nats", 1, 2),
}


class Table(NamedTuple):
    """The measurements of a task.

    Attributes:
        measures: names of the errors.
        networks: the MD-LSTM first, whose number of parameters the others get.
        settings: in place of the task's defaults, for all networks.
        choosing: further settings while learning rates are chosen, for tasks without validation data; the
            last weights count there, as they do with the other seeds.
        own: settings of some networks alone.
        seeds: they count from 1.
    """

    measures: tuple[str, ...]
    networks: tuple[str, ...]
    settings: Mapping[str, Any] = {}
    choosing: Mapping[str, Any] = {}
    own: Mapping[str, Mapping[str, Any]] = {}
    seeds: int = 3


ROWS, DENSITIES = ("md", "snake", "horizontal"), ("pixel", "snake", "row", "conv")
OF_DIGITS = {"snake": {"dropout": 0.3}, "conv": {"layers": 4, "dropout": 0.45}}  # these suited them best
OF_CLOTHES = {"snake": {"layers": 3}, "row": {"layers": 2}, "conv": {"layers": 4}}
OF_ISING = {network: {"layers": 2} for network in ("snake", "row")}  # `conv` would get too many parameters
TABLES = {
    "digits": Table(("error",), ROWS, choosing={"validation": 0.2}),
    "diagonal": Table(("relevant",), ROWS, seeds=5),
    "gaussian-field": Table(("unexplained",), ("raster", *ROWS)),
    "gaussian-field-anisotropic": Table(("unexplained",), ("raster", *ROWS)),
    "textures": Table(("error",), (*ROWS, "conv"), {"steps": 3000}),
    "digit-strings": Table(("character_error", "string_error"), ROWS, {"steps": 4000}),
    "digits-binary": Table(("nats",), DENSITIES, own=OF_DIGITS),
    "digits-grey": Table(("nats",), DENSITIES, own=OF_DIGITS),
    "ising": Table(("nats",), DENSITIES, {"size": "16"}, own=OF_ISING),
    "fashion": Table(("nats",), DENSITIES, {"steps": 1000}, own=OF_CLOTHES),
}


def configurations(name: str, settings: Mapping[str, Any]) -> dict[str, TrainConfig]:
    """The configuration of each network, with equally many parameters."""
    table = TABLES[name]
    values = {"model": table.networks[0], "device": "cpu", "patience": 0, **table.settings, **settings}
    base = configure(task=name, **values)
    task = make_task(base)

    def parameters(config: TrainConfig) -> int:
        with torch.device("meta"):
            return count_parameters(build_network(config, task.spec))

    configs, target = {base.model: base}, parameters(base)
    for network in table.networks[1:]:
        config = replace(with_equal_parameters(base, network, task), **table.own.get(network, {}))
        of = lambda hidden, config=config: parameters(replace(config, hidden=hidden))  # noqa: E731
        least = bisect_left(range(1, MOST_HIDDEN), target, key=of) + 1
        hidden = min(max(least - 1, 1), least, key=lambda units: abs(of(units) - target))
        configs[network] = replace(config, hidden=hidden)
    return configs


def without_test(task: Task) -> Task:
    """A task whose test data are hidden."""
    whole = task.count
    task.count = lambda split: 0 if split == "test" else whole(split)  # type: ignore[method-assign]
    return task


def seconds_a_step(configs: Mapping[str, TrainConfig], rounds: int = 5) -> dict[str, float]:
    """Seconds of a training step of each configuration on one thread: the median of short trainings, which
    take turns. Let nothing else run meanwhile."""
    taken: dict[str, list[float]] = {network: [] for network in configs}
    for _ in range(rounds):
        for network, config in configs.items():
            with tempfile.TemporaryDirectory() as folder:
                short = replace(config, steps=TIMED_STEPS, evaluate_every=TIMED_STEPS)
                result = train(short, folder, task=without_test(make_task(short)))
            taken[network].append(1 / result["steps_per_second"])
    return {network: median(each) for network, each in taken.items()}


def train_once(config: TrainConfig, table: Table, chooses: bool) -> dict[str, Any]:
    """Train a network, and return the end of its row: its errors on test data. With `chooses`, test data
    are hidden, and it has a score on validation data instead. A training that diverges has neither."""
    if chooses and table.choosing:
        config = replace(config, **{**table.choosing, "evaluate_every": config.steps})
    task = make_task(config)
    if task.count("validation"):
        config = replace(config, best_by=table.measures[0])
    task = without_test(task) if chooses else task
    errors: Mapping[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            errors = train(config, folder, task=task)["errors"]
        except MDLSTMError as error:
            if "diverged" not in str(error):
                raise
    row = {"parameters": count_parameters(build_network(config, task.spec))}
    score = errors.get(table.measures[0], "") if chooses else ""
    return row | {"score": score} | {k: "" if chooses else errors.get(k, nan) for k in table.measures}


class Results:
    """What the rows of a task say: its trainings, and the lengths of those that are to be done."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name, self.table, self.rows = name, TABLES[name], rows
        self.seconds = {row["network"]: float(row["seconds"]) for row in rows if row["seconds"]}
        self.steps = int(next((row["steps"] for row in rows if row["seed"] == "0"), 0))

    def lengths(self, network: str) -> tuple[int, int]:
        """As many steps as the MD-LSTM does; and as many as take this network the time of those."""
        other = round(self.steps * self.seconds[self.table.networks[0]] / self.seconds[network])
        return self.steps, self.steps if abs(other / self.steps - 1) <= TOLERANCE else max(other, 1)

    def rate(self, network: str) -> str:
        """The learning rate with the lowest score; of equal ones that which is nearest to the default."""
        chosen = [row for row in self.rows if row["network"] == network and row["seed"] == "0"]
        usual = median(float(row["lr"]) for row in chosen)
        scores = {row["lr"]: float(row["score"]) for row in chosen if row["score"]}
        return min(scores, key=lambda lr: (scores[lr], abs(log(float(lr) / usual))))

    def errors(self, network: str, steps: int | None, measure: str) -> list[float]:
        """An error over the seeds; a baseline has no steps."""
        wanted = {"network": network, "steps": str(steps or ""), "lr": self.rate(network) if steps else ""}
        rows = [row for row in self.rows if row["seed"] != "0" and wanted.items() <= row.items()]
        return [float(row[measure]) for row in rows]

    def text(self) -> str:
        """The table, for a page."""
        names, rows = [MEASURES[measure][0] for measure in self.table.measures], []
        for network in dict.fromkeys(row["network"] for row in self.rows):
            lengths: tuple[Any, Any] = self.lengths(network) if network in self.seconds else (None, None)
            equal, in_time = (
                [number(self.errors(network, steps, measure), measure) for measure in self.table.measures]
                for steps in lengths
            )
            labels = [""] * 4
            if network in self.seconds:
                found = next(row["parameters"] for row in self.rows if row["network"] == network)
                labels = [f"{int(found):,}", self.rate(network), *(f"{steps:,}" for steps in lengths)]
            rows.append([network, *labels[:3], *equal, labels[3], *in_time])
        first = self.table.networks[0]
        taken = duration(self.steps * self.seconds[first])
        columns = ["network", "parameters", "learning rate", "steps", *names, "steps in equal time", *names]
        lead = f"{self.table.seeds} seeds. The steps of `{first}` take {taken} of one core."
        return f"{lead}\n\n{markdown(columns, rows)}"


def number(values: Sequence[float], measure: str) -> str:
    """The mean, and in brackets the worst; of trainings that diverged, that they did."""
    if any(map(isnan, values)):
        return "diverged"
    _, factor, decimals = MEASURES[measure]
    return "{:.{d}f} ({:.{d}f})".format(factor * mean(values), factor * max(values), d=decimals)


def measure(name: str, file: Path, settings: Mapping[str, str]) -> None:
    """Do the trainings of a table that are missing."""
    table, configs = TABLES[name], configurations(name, settings)
    seconds = Results(name, read_rows(file)).seconds or seconds_a_step(configs)

    def add(network: str, lr: str, steps: int, seed: int) -> None:
        row: dict[str, Any] = {"network": network, "lr": lr, "steps": steps, "seed": seed}
        if not any({k: str(v) for k, v in row.items()}.items() <= each.items() for each in read_rows(file)):
            config = replace(configs[network], lr=float(lr), steps=steps, seed=seed)
            trained = train_once(config, table, chooses=seed == 0)
            order = {"parameters": trained.pop("parameters"), "seconds": seconds[network]}
            add_row(file, row | order | trained)

    base = configs[table.networks[0]]
    for network, factor in product(table.networks, FACTORS):
        add(network, f"{factor * base.lr:.2g}", base.steps, 0)
    results = Results(name, read_rows(file))
    for network in table.networks:
        for steps, seed in product(dict.fromkeys(results.lengths(network)), range(1, table.seeds + 1)):
            add(network, results.rate(network), steps, seed)
    if all(row["network"] in table.networks for row in read_rows(file)):
        for seed in range(1, table.seeds + 1):
            for network, errors in make_task(replace(base, seed=seed)).baselines(seed).items():
                row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"network": network, "seed": seed}
                add_row(file, row | {k: errors[k] for k in table.measures})


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="TASK", help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of tables")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    for name in options.names or TABLES:
        file = options.results / f"{name}.tsv"
        measure(name, file, settings_of(options.set))
        print(f"{Results(name, read_rows(file)).text()}\n")


if __name__ == "__main__":
    main()
