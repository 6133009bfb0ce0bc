"""Scripts in benchmarks/: they run, and report each case. No test asserts a measurement."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkout import ROOT

from mdlstm_tk.benchmark import Shape

sys.path.insert(0, str(ROOT / "benchmarks"))

import differences
import memory
import rivals


@pytest.mark.weekly
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak memory there")
def test_a_row_of_the_table_of_memory() -> None:
    row = memory.measure(ROOT, Shape(1, (5, 6), 2, 3), "any")
    assert len(row) == len(memory.COLUMNS) and row[1] == "any"
    assert int(row[2]) > 1 and int(row[3]) > 10 and all(float(text) >= 0 for text in row[3:])


def test_differences_in_speed() -> None:
    base = {("16,8x8,1,16", "forward"): [1.0, 1.1, 1.05], ("1,64x64,1,32", "training"): [1.0, 1.0, 2.0]}
    head = {("16,8x8,1,16", "forward"): [1.3, 1.2, 1.25], ("1,64x64,1,32", "training"): [1.2, 1.3, 1.2]}
    text = differences.comment(base, head)
    assert "1 of 2" in text and "| 16,8x8,1,16 | forward | 1.05 | 1.25 | **+19%** |" in text
    assert "| 1,64x64,1,32 | training | 1.00 | 1.20 | +20% |" in text  # base has a slower round
    assert "**" not in differences.comment(base, base)


def test_nan_is_no_small_difference() -> None:
    """`.ci/lowest-onnxruntime` relies on it."""
    script = importlib.import_module("runtimes")
    case = script.Case("scan", "3-D", b"", {}, np.ones(2))
    assert np.isnan(script.difference(lambda model, feeds: np.array([1.0, np.nan]), case))
    assert script.difference(lambda model, feeds: np.ones(1), case) == "y has the shape (1,), expected (2,)"


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries", "one_thread")
def test_random_layers() -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module("random_layers").main(["--count", "2"])
    assert end.value.code == 0


@pytest.mark.weekly
def test_a_table_of_all_networks() -> None:
    rows = rivals.table([(2, (8, 16))], seconds=0)
    assert [row[:2] for row in rows[:2]] == [["2, 8x16, 3", "MD-LSTM"], ["2, 8x16, 3", "MD-LSTM, scan"]]
    assert [row[1] for row in rows[2:]] == ["2 nn.LSTM", "7 convolutions", "ViT block"]
    assert {len(row) for row in rows} == {len(rivals.COLUMNS)}
    assert all(float(text) >= 0 for row in rows for text in row[2:] if text)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/gpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.weekly
def test_its_report_has_a_row_for_each_pass_and_dtype(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--only", "1,4x4,1,4", "--seconds", "0", "--no-tests")
    done = run(*options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    cases = {(row["dtype"], row["training"]) for row in report["rows"]}
    assert len(cases) == len(report["rows"]) == 4 and report["missing"] == {}
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.count("| 1, 4x4, 1, 4 |") == 4 and "Not measured" not in page


@pytest.mark.weekly
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "gpu"))
    assert done.returncode == 1
    assert done.stderr.startswith("not measured: torch sees no NVIDIA GPU") and done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu").exists()
