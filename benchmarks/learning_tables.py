"""The tables that `learning.py` measures: what they hold, and how README and pages show their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, log, nan
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import handwriting
from measuring import between_markers, markdown, read_cells, write_between_markers

from mdlstm_tk._util.text import duration

FACTORS = (1 / 3, 1, 3)  # of the task's learning rate, among which that of each network is chosen
MINUTES = 20  # after which README compares networks that read handwriting
TOLERANCE = 0.05  # by which the parameters and the minutes of networks may differ
MDLSTMS = ("md", "raster", "pixel", "default")
MEASURES = {  # name → column, unit, factor, decimals
    "relevant": ("relevant loss", "", 1, 5),
    "error": ("wrong", " %", 100, 2),
    "character_error": ("wrong characters", " %", 100, 2),
    "string_error": ("wrong strings", " %", 100, 2),
    "unexplained": ("unexplained", "", 1, 4),
    "nats": ("nats", "", 1, 2),
}


class Table(NamedTuple):
    """The measurements of a task.

    Attributes:
        page: page that shows it, below docs/.
        measures: names of the errors.
        networks: the MD-LSTM first, whose number of parameters the others get.
        settings: in place of the task's defaults, for all networks.
        choosing: further settings while learning rates are chosen, for tasks without validation data; the
            last weights count there, as they do with the other seeds.
        own: settings of some networks alone.
        seeds: they count from 1; seed 0 chooses the learning rates.
    """

    page: str
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
    "digits": Table("results.md", ("error",), ROWS, choosing={"validation": 0.2}),
    "diagonal": Table("results.md", ("relevant",), ROWS, seeds=5),
    "gaussian-field": Table("results.md", ("unexplained",), ("raster", *ROWS)),
    "gaussian-field-anisotropic": Table("results.md", ("unexplained",), ("raster", *ROWS)),
    "textures": Table("results.md", ("error",), (*ROWS, "conv"), {"steps": 3000}),
    "digit-strings": Table("results.md", ("character_error", "string_error"), ROWS, {"steps": 4000}),
    "digits-binary": Table("density.md", ("nats",), DENSITIES, own=OF_DIGITS),
    "digits-grey": Table("density.md", ("nats",), DENSITIES, own=OF_DIGITS),
    "ising": Table("density.md", ("nats",), DENSITIES, {"size": "16"}, own=OF_ISING),
    "fashion": Table("density.md", ("nats",), DENSITIES, {"steps": 1000}, own=OF_CLOTHES),
}
README = {  # label of a row → task, MD-LSTM: two that it wins, two that it loses
    "random diagonal": ("diagonal", "md"),
    "textures": ("textures", "md"),
    "Gaussian fields, plain `md`": ("gaussian-field", "md"),
    "handwriting": ("handwriting", "default"),
}
PAGES = "docs/"


class Training(NamedTuple):
    """One training, and the name of its cell."""

    network: str
    rate: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}, lr {self.rate:g}, {self.steps} steps, seed {self.seed}"


class Results:
    """The cells of a table that are known.

    Args:
        name: of the task.
        folder: holds the file of its cells: "settings", "seconds a step" by network, "baselines" by seed,
            and the trainings.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.table, self.file = name, TABLES[name], folder / f"{name}.json"
        self.cells = read_cells(self.file)

    def lengths(self, network: str) -> tuple[int, int]:
        """As many steps as the MD-LSTM does; and as many as take this network the time of those."""
        steps, seconds = self.cells["settings"]["steps"], self.cells["seconds a step"]
        other = round(steps * seconds[self.table.networks[0]] / seconds[network])
        return steps, steps if abs(other / steps - 1) <= TOLERANCE else max(other, 1)

    def choices(self, network: str) -> list[Training]:
        """The trainings that choose the learning rate of a network."""
        rates = [float(f"{factor * self.cells['settings']['lr']:.2g}") for factor in FACTORS]
        return [Training(network, rate, self.cells["settings"]["steps"], 0) for rate in rates]

    def finals(self, network: str, steps: int) -> list[Training]:
        """The trainings of a network with the learning rate that has the lowest score; of equal ones that
        which is nearest to the default."""
        scores = {each: self.cells[each.name].get("score", nan) for each in self.choices(network)}
        usual = self.cells["settings"]["lr"]
        best = min(scores, key=lambda k: (isnan(scores[k]), scores[k], abs(log(k.rate / usual))))
        return [best._replace(steps=steps, seed=seed) for seed in range(1, self.table.seeds + 1)]

    @property
    def trainings(self) -> list[Training]:
        """All that are known: the choices, and once these are there, the others."""
        if "seconds a step" not in self.cells:
            return []
        choices = [each for network in self.table.networks for each in self.choices(network)]
        if any(each.name not in self.cells for each in choices):
            return choices
        lengths = [(network, steps) for network in self.table.networks for steps in self.lengths(network)]
        return [*choices, *(each for length in dict.fromkeys(lengths) for each in self.finals(*length))]

    @property
    def is_complete(self) -> bool:
        """True if no cell is missing."""
        return "baselines" in self.cells and all(each.name in self.cells for each in self.trainings)

    @property
    def hours(self) -> float:
        """Hours of one core that all trainings take."""
        seconds, steps = self.cells["seconds a step"], self.cells["settings"]["steps"]
        numbers = {k: len(FACTORS) * steps + self.table.seeds * sum(set(self.lengths(k))) for k in seconds}
        return float(sum(seconds[network] * numbers[network] for network in seconds)) / 3600

    def errors(self, measure: str) -> dict[str, list[list[float]]]:
        """An error over the seeds, after equal steps and in equal minutes, of networks and baselines."""

        def of(training: Training) -> float:
            return float(self.cells[training.name].get("errors", {}).get(measure, nan))

        errors = {
            network: [[of(each) for each in self.finals(network, steps)] for steps in self.lengths(network)]
            for network in self.table.networks
        }
        of_baselines = self.cells["baselines"]
        return errors | {each: [[of[each][measure] for of in of_baselines]] * 2 for each in of_baselines[0]}


def number(measure: str, values: Sequence[float], unit: bool = False) -> str:
    """The mean, and in brackets the worst; of trainings that diverged, that they did."""
    _, suffix, factor, decimals = MEASURES[measure]
    if any(map(isnan, values)):
        return "diverged"
    middle, worst = (f"{factor * value:.{decimals}f}" for value in (mean(values), max(values)))
    return f"{middle}{suffix * unit} ({worst})"


def section(results: Results) -> str:
    """A table with its command, for a page."""
    table, cells = results.table, results.cells
    names = [MEASURES[measure][0] + MEASURES[measure][1].replace(" ", ", ") for measure in table.measures]
    columns = ["network", "parameters", "learning rate", "steps", *names, "steps in equal time", *names]
    by_network: dict[str, list[str]] = {}
    for measure in table.measures:
        for network, errors in results.errors(measure).items():
            by_network.setdefault(network, []).extend(number(measure, values) for values in errors)
    rows = []
    for network, texts in by_network.items():
        labels = [""] * 4
        if network in table.networks:
            steps, in_time = results.lengths(network)
            first = results.finals(network, steps)[0]
            parameters = cells[first.name]["parameters"]
            labels = [f"{parameters:,}", f"{first.rate:g}", f"{steps:,}", f"{in_time:,}"]
        rows.append([network, *labels[:3], *texts[::2], labels[3], *texts[1::2]])
    reference = table.networks[0]
    time_taken = duration(results.lengths(reference)[0] * cells["seconds a step"][reference])
    used = (cells[each.name]["machine"] for each in results.trainings)
    machines = sorted({cells["machine of the seconds"], *used})
    link = "#terms" if table.page == "results.md" else "results.md#terms"
    return (
        f"`python benchmarks/learning.py {results.name}`: mean and, in brackets, worst of {table.seeds} "
        f"seeds ([terms]({link})).\nThe steps of `{reference}` take {time_taken} of one core "
        f"({'; '.join(machines)}).\n\n{markdown(columns, rows, 1)}"
    )


def handwriting_errors(folder: Path) -> dict[str, list[list[float]]]:
    """As `Results.errors`, what handwriting.py measured in equal minutes; {} if cells are missing."""
    cells = read_cells(folder / "handwriting.json")
    names = {
        network: [str(handwriting.Training("defaults", network, MINUTES, None, k)) for k in range(3)]
        for network in handwriting.NETWORKS
    }
    if any(name not in cells for each in names.values() for name in each):
        return {}
    errors = {k: [cells[name]["greedy"]["character_error"] for name in each] for k, each in names.items()}
    return {network: [[], each] for network, each in errors.items()}


def is_better(errors: Sequence[float], others: Sequence[float]) -> bool:
    """True if the mean and the worst are both smaller; one that diverged is never better."""
    if isnan(sum(errors)) or isnan(sum(others)):
        return not isnan(sum(errors))
    return mean(errors) < mean(others) and max(errors) < max(others)


def readme_row(label: str, folder: Path) -> str | None:
    """A row of README's table, None if cells are missing. Bold is what is better than the MD-LSTM, or the
    MD-LSTM if it is better than all others."""
    name, network = README[label]
    if name in TABLES:
        results = Results(name, folder)
        page, measure = results.table.page, results.table.measures[0]
        errors = results.errors(measure) if results.is_complete else {}
    else:
        page, measure, errors = "handwriting.md", "character_error", handwriting_errors(folder)
    if not errors:
        return None
    own = errors[network]
    mine = number(measure, own[0] or own[1], unit=True)
    if own[0] and own[1] != own[0]:
        mine += f", in equal minutes {number(measure, own[1], unit=True)}"
    texts, is_best = ["", ""], True
    for column in (column for column in range(2) if own[column]):
        others = {k: each[column] for k, each in errors.items() if k not in (*MDLSTMS, "exact")}
        best = min(others, key=lambda k: (isnan(sum(others[k])), mean(others[k])))
        texts[column] = f"{best} {number(measure, others[best], unit=True)}"
        is_best &= is_better(own[column], others[best])
        if is_better(others[best], own[column]):
            texts[column] = f"**{texts[column]}**"
    mine = f"**{mine}**" if is_best else mine
    title = MEASURES[measure][0] + ("" if own[0] else f" after {MINUTES} minutes")
    return f"| [{label}]({PAGES}{page}), {title} | {mine} | {texts[0]} | {texts[1]} |"


def readme(text: str, folder: Path) -> str:
    """README's table, with the rows of complete results in place of those in `text`."""
    rows = text.splitlines()
    for k, row in enumerate(rows):
        label = row.partition("[")[2].partition("]")[0]
        if label in README:
            rows[k] = readme_row(label, folder) or row
    return "\n".join(rows)


def write(folder: Path, root: Path) -> None:
    """Write what is complete into the pages and into README's table."""
    for name, table in TABLES.items():
        results = Results(name, folder)
        if results.is_complete:
            write_between_markers(root / "docs" / table.page, name, section(results))
    page = root / "README.md"
    write_between_markers(page, "learning", readme(between_markers(page, "learning"), folder))
