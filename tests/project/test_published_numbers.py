"""Every number of README's table, and every table of learning in the pages, is what results files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# Before `measuring`, which these find.
from helpers.checkout import ROOT
from helpers.learning_scripts import baselines, handwriting, own_data
from helpers.learning_scripts import learning_tables as tables
from measuring import RESULTS, between_markers, read_cells

OLD = "version 1.0"  # a table that is not measured anew says so
pytestmark = pytest.mark.usefixtures("fresh_registries")


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_page_shows_what_was_measured(name: str) -> None:
    results = tables.Results(name, RESULTS)
    shown = between_markers(ROOT / "docs" / results.table.page, name)
    if results.is_complete:
        assert shown == tables.section(results), "python benchmarks/learning.py --estimate --write"
    else:
        assert OLD in shown.lower()


@pytest.mark.parametrize("kind", own_data.TASKS)
def test_the_errors_on_own_data_are_those_measured(kind: str) -> None:
    shown = between_markers(ROOT / "docs/training.md", f"own-data-{kind}")
    cells = read_cells(RESULTS / f"own-data-{kind}.json")
    assert shown == own_data.table(kind, cells) if cells else OLD in shown.lower()


@pytest.mark.parametrize("what", ["results", "parts", "networks"])
def test_the_errors_on_handwriting_are_those_measured(what: str) -> None:
    shown = between_markers(ROOT / "docs/handwriting.md", f"handwriting-{what}")
    measured = handwriting.published(what, RESULTS / "handwriting.json")
    assert shown == measured if measured else OLD in shown.lower()


def test_the_lines_found_on_pages_are_those_measured() -> None:
    cells = baselines.trainings(read_cells(RESULTS / "baselines.json"))
    shown = between_markers(ROOT / "docs/handwriting.md", "baselines")
    assert shown == baselines.table(cells) if cells else OLD in shown.lower()


def test_the_table_of_readme_shows_what_was_measured() -> None:
    """Rows whose cells are missing stay; see the marks of their pages."""
    shown = between_markers(ROOT / "README.md", "learning")
    assert shown == tables.readme(shown, RESULTS), "python benchmarks/learning.py --estimate --write"
    assert [row.count("|") for row in shown.splitlines()] == [5] * (2 + len(tables.README))
    assert all(f"[{label}](" in shown for label in tables.README)


def write_results(folder: Path, missing: str = "", **errors: float) -> tables.Results:
    """Results of `diagonal` with an error for each network, the same for each rate and seed."""
    cells: dict[str, Any] = {"settings": {"steps": 100, "lr": 0.3}}
    cells["seconds a step"] = {"md": 1.0, "snake": 2.0, "horizontal": 1.04}
    cells["machine of the seconds"] = "m"
    cells["baselines"] = [{}] * 5
    for network, error in errors.items():
        for rate in ("0.1", "0.3", "0.9"):
            score = abs(float(rate) - 0.3) if rate != "0.9" else None
            chosen = {"machine": "m", "score": score} if score is not None else {"machine": "m"}
            cells[f"{network}, lr {rate}, 100 steps, seed 0"] = chosen
        for seed in range(1, 6):
            for steps in (100, 50):
                cell = {
                    "machine": "m",
                    "parameters": 1000,
                    "errors": {"relevant": error * seed * 100 / steps},
                }
                cells[f"{network}, lr 0.3, {steps} steps, seed {seed}"] = cell
    cells.pop(missing, None)
    (folder / "diagonal.json").write_text(json.dumps(cells), encoding="utf-8")
    return tables.Results("diagonal", folder)


def test_a_table_from_cells(tmp_path: Path) -> None:
    """Minutes within 5 % are the same runs; a rate that diverged is not chosen."""
    results = write_results(tmp_path, md=0.1, snake=0.2, horizontal=0.3)
    rows = [row.split(" | ") for row in tables.section(results).splitlines() if row.startswith("| ")]
    assert rows[2:] == [
        ["| md", "1,000", "0.3", "100", "0.30000 (0.50000)", "100", "0.30000 (0.50000) |"],
        ["| snake", "1,000", "0.3", "100", "0.60000 (1.00000)", "50", "1.20000 (2.00000) |"],
        ["| horizontal", "1,000", "0.3", "100", "0.90000 (1.50000)", "100", "0.90000 (1.50000) |"],
    ]
    row = tables.readme_row("random diagonal", tmp_path)
    assert row is not None and row.endswith(
        "relevant loss | **0.30000 (0.50000)** | snake 0.60000 (1.00000) | horizontal 0.90000 (1.50000) |"
    )


def test_a_row_says_where_the_mdlstm_loses(tmp_path: Path) -> None:
    write_results(tmp_path, md=0.3, snake=0.2, horizontal=0.5)
    row = tables.readme_row("random diagonal", tmp_path)
    assert row is not None and row.endswith(
        "| 0.90000 (1.50000) | **snake 0.60000 (1.00000)** | snake 1.20000 (2.00000) |"
    )


def test_a_row_shows_both_columns_of_a_network_that_does_not_set_the_minutes() -> None:
    row = tables.readme_row("Gaussian fields, plain `md`", RESULTS)
    page = between_markers(ROOT / "docs/results.md", "gaussian-field")
    steps, minutes = next(each.split(" | ") for each in page.splitlines() if "| md |" in each)[4::2]
    assert row is not None and f"| {steps}, in equal minutes {minutes.removesuffix(' |')} |" in row


def test_nothing_is_better_where_mean_and_worst_disagree(tmp_path: Path) -> None:
    cells = {
        f"{network}, defaults, 20 min, all lines, seed {seed}": {"greedy": {"character_error": error}}
        for network, errors in {"default": (1, 1, 4), "rows": (2, 2, 3), "blstm": (5, 5, 5)}.items()
        for seed, error in enumerate(errors)
    }
    (tmp_path / "handwriting.json").write_text(json.dumps(cells), encoding="utf-8")
    row = tables.readme_row("handwriting", tmp_path)
    assert row is not None and "**" not in row
    nan = float("nan")
    assert tables.is_better([1], [nan]) and not tables.is_better([nan], [1])


def test_of_equal_scores_the_rate_nearest_to_the_default_is_chosen(tmp_path: Path) -> None:
    results = write_results(tmp_path, md=0.1, snake=0.2, horizontal=0.3)
    for rate in ("0.1", "0.3", "0.9"):
        results.cells[f"md, lr {rate}, 100 steps, seed 0"]["score"] = 0.5
    assert {each.rate for each in results.finals("md", 100)} == {0.3}


def test_a_row_waits_for_the_last_cell(tmp_path: Path) -> None:
    text = "| [random diagonal](a.md) | old | old | old |\n| [textures](a.md) | old | old | old |"
    write_results(tmp_path, missing="snake, lr 0.3, 50 steps, seed 5", md=0.1, snake=0.2, horizontal=0.3)
    assert tables.readme(text, tmp_path) == text
    write_results(tmp_path, md=0.1, snake=0.2, horizontal=0.3)
    assert [("old" in row) for row in tables.readme(text, tmp_path).splitlines()] == [False, True]


def test_the_row_of_handwriting_is_of_equal_minutes(tmp_path: Path) -> None:
    errors = {"default": (0.25, 0.26, 0.27), "rows": (0.24, 0.25, 0.23), "blstm": (0.27, 0.26, 0.25)}
    cells: dict[str, Any] = {}
    for network, values in errors.items():
        for seed, error in enumerate(values):
            name = f"{network}, defaults, 20 min, all lines, seed {seed}"
            cells[name] = {"greedy": {"character_error": error}}
    (tmp_path / "handwriting.json").write_text(json.dumps(cells), encoding="utf-8")
    row = tables.readme_row("handwriting", tmp_path)
    assert row is not None
    text = "wrong characters after 20 minutes | 26.00 % (27.00) |  | **rows 24.00 % (25.00)** |"
    assert row.endswith(text)
