"""`benchmarks/handwriting.py` on drawn pages: it measures each row, and goes on after an interrupt."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers.checkout import ROOT
from helpers.pages import draw_page

QUICK = ("--minutes", "0.02", "--set", "hidden=4", "--set", "batch_size=2", "--set", "evaluate_every=2")


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries")
def test_rows_are_measured_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in ("handwriting", "rival_networks"):  # which register networks when they are imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    handwriting = import_module("handwriting")
    for name in ("x/a-0", "x/b-0", "y/c-0", "y/d-0"):  # in folders, without splits.json, as downloads are
        draw_page(tmp_path / f"source/{name}.xml", ("ab", "ba", None, "aab"))
    arguments = ["--pages", str(tmp_path / "source"), *QUICK, "-o", str(tmp_path / "out"), "--networks"]
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
