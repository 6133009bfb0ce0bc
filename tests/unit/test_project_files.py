"""Files that hosts and package indexes read: workflows, templates, citation, metadata of the project."""

from __future__ import annotations

import re
import sys
import tomllib
from typing import Any

import pytest
import yaml
from helpers.checkout import ROOT

from mdlstm_tk import __version__

sys.path.insert(0, str(ROOT / "benchmarks"))
from differences import comment

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def steps(path: Any) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_a_file_is_yaml(path: Any) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_and_names_what_exists(path: Any) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "write" not in workflow["permissions"].values() or "workflow_run" in workflow[True]  # "on"
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for run in (str(step.get("run", "")) for step in steps(path)):
        assert set(re.findall(r"^make (\S+)", run)) <= set(targets)
        for extras in re.findall(r"\"(?:\.|\./head)\[([\w,]+)\]\"", run):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
        for file in re.findall(r"(?:^|/)(benchmarks/\w+\.py|\.ci/run)", run):
            assert (ROOT / file).exists()


def test_python_versions_agree() -> None:
    matrix = yaml.safe_load((GITHUB / "workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]["matrix"]
    versions = matrix["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    classified = [
        f"3.{name.removeprefix(prefix)}" for name in PROJECT["classifiers"] if name.startswith(prefix)
    ]
    assert versions == classified and PROJECT["requires-python"] == f">={versions[0]}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_differences_in_speed() -> None:
    base = {("16,8x8,1,16", "forward"): [1.0, 1.1, 1.05], ("1,64x64,1,32", "training"): [1.0, 1.0, 2.0]}
    head = {("16,8x8,1,16", "forward"): [1.3, 1.2, 1.25], ("1,64x64,1,32", "training"): [1.2, 1.3, 1.2]}
    text = comment(base, head)
    assert "1 of 2" in text and "| 16,8x8,1,16 | forward | 1.05 | 1.25 | **+19%** |" in text
    assert "| 1,64x64,1,32 | training | 1.00 | 1.20 | +20% |" in text  # base has a slower round
    assert "**" not in comment(base, base)


def test_links_to_other_sites_are_checked_every_week() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows/docs.yml").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+ \d+ \* \* \d", workflow[True]["schedule"][0]["cron"])  # "on"
    (check,) = (step for step in steps(GITHUB / "workflows/docs.yml") if "linkcheck" in step.get("run", ""))
    assert check["if"] == "github.event_name == 'schedule'"
