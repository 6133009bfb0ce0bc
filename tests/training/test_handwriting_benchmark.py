"""`benchmarks/handwriting.py` on drawn pages: it measures each row, and goes on after an interrupt."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers.checkout import ROOT
from helpers.pages import draw_page

from mdlstm_tk.runtime.pages import read_page

QUICK = ("--minutes", "0.02", "--set", "hidden=4", "--set", "batch_size=2", "--set", "evaluate_every=2")


@pytest.fixture
def handwriting(fresh_registries: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which registers its networks when it is imported; they are gone after the test."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in ("handwriting", "rival_networks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module("handwriting")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four pages, as a download may have them: in folders, without splits.json."""
    for name in ("x/a-0", "x/b-0", "y/c-0", "y/d-0"):
        draw_page(tmp_path / f"source/{name}.xml", ("ab", "ba", None, "aab"))
    return tmp_path / "source"


@pytest.mark.weekly
def test_rows_are_measured_once(
    handwriting: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--pages", str(source), *QUICK, "-o", str(tmp_path / "out"), "--networks"]
    first = handwriting.main([*arguments, "default"])["default, seed 0"]
    assert first["bytes"] < 4e6 and min(first["speed"], first["speed_lm"]) > 0
    assert first["greedy"]["groups"] == 1  # one page is for testing
    capsys.readouterr()
    rows = handwriting.main([*arguments, "default,blstm"])
    table = capsys.readouterr().out.splitlines()
    assert rows["default, seed 0"] == first  # from results.json
    assert abs(rows["blstm, seed 0"]["parameters"] / first["parameters"] - 1) < 0.02
    assert len(table) == 4 and table[2].startswith("| default, seed 0 |")
    assert table[0].count("|") == table[2].count("|")
    with pytest.raises(SystemExit, match="another folder"):
        handwriting.main([*arguments, "default", "--lines", "3"])


def test_pages_are_linked_by_split_and_writer(handwriting: Any, source: Path, tmp_path: Path) -> None:
    files = handwriting.link_pages(source, tmp_path / "all", None)
    assert {split: len(paths) for split, paths in files.items()} == {"train": 2, "test": 1, "valid": 1}
    assert all(len(read_page(path).lines) == 4 for paths in files.values() for path in paths)
    (source / "splits.json").write_text('{"train": ["a", "b"], "valid": ["c"], "test": ["d"]}')
    few = handwriting.link_pages(source, tmp_path / "few", 3)
    assert len(few["train"]) == 1  # three of its four lines have a text
    assert set(few["test"].values()) == {"d"}
