"""Scripts in benchmarks/ run with their smallest sizes, and pages show the numbers that they measured."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.checkout import ROOT
from helpers.pages import draw_page
from helpers.small_models import recogniser

from mdlstm_tk.models import registry

sys.path.insert(0, str(ROOT / "benchmarks"))
with pytest.MonkeyPatch.context() as patched:  # no other test sees the networks that they register
    patched.setattr(registry, "_FACTORIES", copy.deepcopy(registry._FACTORIES))
    import baselines
    import handwriting
    import learning
    import own_data
    from density_tasks import Ising
    from measuring import RESULTS, python, read_rows

SMALL = "--shape 1,3x4,1,2 --seconds 0"
PAGES = "--pages pages --minutes 0.02 --set hidden=4 --set batch_size=2 --results results.tsv"
QUICK = "--set steps=2 --set batch_size=2 --results ."
SCRIPTS = {  # calls: least number of rows below the heading, 0 where no table is printed
    f"bench layer {SMALL} --threads 1": 2,
    f"bench runtime {SMALL}": 2,
    "tiling training --extent 16 --rounds 1 --tile 8 --hidden 2": 2,
    "tiling inference --extent 16 --tile 16 --hidden 2": 0,
    f"learning diagonal {QUICK}": 3,
    "own_data masks --samples 20 --minutes 0.02 --results results.tsv": 1,
    f"handwriting {PAGES} --lines 2": 1,
    f"handwriting {PAGES} --network rows": 1,
    f"baselines {PAGES} --set resize=64x* --recogniser reader.onnx": 1,
    "gpu --device cpu --only 1,4x4,1,4 --seconds 0 --no-tests --output .": 0,
}


@pytest.mark.weekly
@pytest.mark.parametrize("call", SCRIPTS)
def test_a_script_prints_its_table(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a-0", "b-0", "c-0", "d-0", "e-0"):
        draw_page(tmp_path / f"pages/{name}.xml", ("ab" * 9, "ba" * 9, "aab"))
    splits = {"train": ["a", "b"], "valid": ["c"], "test": ["d", "e"]}
    (tmp_path / "pages/splits.json").write_text(json.dumps(splits), encoding="utf-8")
    recogniser(tmp_path / "reader.onnx")
    script, *words = call.split()
    printed = python(ROOT / f"benchmarks/{script}.py", *words)
    lines = [line for line in printed.splitlines() if line[:1] == "|" and ":---" not in line]
    assert len(lines) > SCRIPTS[call] or not SCRIPTS[call], printed


def shown(page: str, name: str) -> str:
    """What stands between the marks of a table in a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    assert found, f"docs/{page}.md has no <!-- {name} -->"
    return found[1]


def test_pages_show_what_was_measured() -> None:
    for name, table in learning.TABLES.items():
        page = "density" if "nats" in table.measures else "results"
        assert shown(page, name) == learning.Results(name, read_rows(RESULTS / f"{name}.tsv")).text()
    for name, script in (("handwriting", handwriting), ("baselines", baselines)):
        assert shown("handwriting", name) == script.table(read_rows(RESULTS / f"{name}.tsv"))
    rows = read_rows(RESULTS / "own-data.tsv")
    for kind in own_data.TASKS:
        assert shown("training", f"own-data-{kind}") == own_data.table(kind, rows)


def test_every_number_of_readme_stands_in_the_page_that_it_links() -> None:
    rows = re.findall(r"^\| \[.*?\]\((\S+?)\),(.*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for page, text in rows:
        tables = (ROOT / page).read_text(encoding="utf-8")
        for number, worst in re.findall(r"([\d.]+) ?%? \(([\d.]+)\)", text):
            assert f"| {number} ({worst}) |" in tables, (page, number)


def test_probabilities_and_entropy_of_the_ising_model_are_those_of_an_enumeration() -> None:
    task = Ising((2, 3), beta=0.6)
    images = np.indices((2,) * 6).reshape(6, -1).T.reshape(-1, 2, 3, 1)
    p = np.exp(task.log_prob(images))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert task.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
    numbers = task.batch(0, 0, 20_000).x.reshape(-1, 6) @ 2 ** np.arange(6)[::-1]
    frequency = np.bincount(numbers.astype(int), minlength=64) / 20_000
    assert (np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()
