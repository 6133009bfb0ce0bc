"""`benchmarks/memory.py`, which measures what exported files take. No test asserts how much."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from helpers.checkout import ROOT

from mdlstm_tk.benchmark import Shape


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak memory there")
def test_a_row_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("memory")
    row = script.measure(ROOT, Shape(1, (5, 6), 2, 3), "any")
    assert len(row) == len(script.COLUMNS) and row[1] == "any"
    assert int(row[2]) > 1 and int(row[3]) > 10 and all(float(text) >= 0 for text in row[3:])
