"""Every table of errors in the pages, and README's, is what benchmarks/results/ says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# Before `measuring`, which these find.
from helpers.checkout import ROOT
from helpers.learning_scripts import baselines, handwriting, learning, own_data
from measuring import RESULTS, read_rows

PAGES = {
    name: "density" if "nats" in table.measures else "results" for name, table in learning.TABLES.items()
}


def shown(page: str, name: str) -> str:
    """What stands between the marks of a table in a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    assert found, f"docs/{page}.md has no <!-- {name} -->"
    return found[1]


@pytest.mark.parametrize("name", learning.TABLES)
def test_a_page_shows_what_was_measured(name: str) -> None:
    assert shown(PAGES[name], name) == learning.Results(name, read_rows(RESULTS / f"{name}.tsv")).text()


def test_other_tables_show_what_was_measured() -> None:
    for name, script in (("handwriting", handwriting), ("baselines", baselines)):
        assert shown("handwriting", name) == script.table(read_rows(RESULTS / f"{name}.tsv"))
    for kind in own_data.TASKS:
        assert shown("training", f"own-data-{kind}") == own_data.table(
            kind, read_rows(RESULTS / "own-data.tsv")
        )


def test_every_number_of_readme_stands_in_the_page_that_it_links() -> None:
    rows = re.findall(r"^\| \[.*?\]\((\S+?)\),(.*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for page, text in rows:
        tables = (ROOT / page).read_text(encoding="utf-8")
        for number, worst in re.findall(r"([\d.]+) ?%? \(([\d.]+)\)", text):
            assert f"| {number} ({worst}) |" in tables, (page, number)


def test_rates_that_diverged_are_not_chosen_and_minutes_within_5_percent_are_equal(tmp_path: Path) -> None:
    lines = ["network\tlr\tsteps\tseed\tparameters\tseconds\tscore\trelevant"]
    for network, seconds in (("md", 1.0), ("snake", 2.0), ("horizontal", 1.04)):
        for lr, score in (("0.1", "0.3"), ("0.3", "0.3"), ("0.9", "")):
            lines.append(f"{network}\t{lr}\t100\t0\t1000\t{seconds}\t{score}\t")
        lines += [
            f"{network}\t0.3\t100\t1\t1000\t{seconds}\t\t0.1",
            f"{network}\t0.3\t50\t1\t1000\t{seconds}\t\t0.2",
        ]
    (tmp_path / "diagonal.tsv").write_text("\n".join(lines), encoding="utf-8")
    results = learning.Results("diagonal", read_rows(tmp_path / "diagonal.tsv"))
    assert [results.lengths(network) for network in results.table.networks] == [
        (100, 100),
        (100, 50),
        (100, 100),
    ]
    assert {results.rate(network) for network in results.table.networks} == {
        "0.3"
    }  # nearest to the default
    assert "| snake | 1,000 | 0.3 | 100 | 0.10000 (0.10000) | 50 | 0.20000 (0.20000) |" in results.text()
