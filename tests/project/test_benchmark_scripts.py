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

from mdlstm_tk.backends.cpu.plan import plans

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench
import differences
import memory
import parts
import rivals
from contenders import SHAPES, Shape, floor


def test_shape_from_text() -> None:
    shape = Shape.parse("16,8x12,1,32")
    assert shape == Shape(16, (8, 12), 1, 32)
    assert Shape.parse("1,4,2,3").grid == (4, 4)
    assert Shape.parse("1,2x3x4,2,3").grid == (2, 3, 4)
    assert str(shape) == "16, 8x12, 1, 32"
    assert len({str(shape) for shape in SHAPES}) == len(SHAPES)


def test_flops() -> None:
    """Two per multiplication of the input's C × G·n and the recurrent D·n × G·n at each position."""
    shape = Shape(3, (4, 5), 2, 7)
    assert shape.flops(False) == 2 * 3 * 20 * (2 + 14) * 5 * 7
    assert shape.flops(True) == 3 * shape.flops(False)
    assert shape.lstm_flops(False) == 2 * 3 * 20 * (2 + 7) * 4 * 7
    assert Shape(3, (4, 5), 2, 7, (("directions", "all"),)).flops(False) == 4 * shape.flops(False)
    assert shape.wavefronts == 8


@pytest.mark.parametrize("training", [False, True])
def test_floor_is_the_products_of_a_sweep(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, products = Shape(3, (4, 5), 2, 7), []
    multiply = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        products.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return multiply(a, b, **options)

    step = floor(shape, training)
    monkeypatch.setattr(torch, "mm", mm)
    step()
    first_wavefront = 2 * 3 * 14 * 35  # has no predecessors, so there is nothing to multiply
    dx = 2 * 3 * 20 * 2 * 35  # the gradient of the input data is not computed
    skipped = 2 * first_wavefront + dx if training else first_wavefront
    assert sum(products) == shape.flops(training) - skipped


def test_a_row_of_the_layer() -> None:
    shape = Shape(1, (3, 4), 1, 2, (("cell", "leaky"),))
    row = bench.measure(shape, 1, training=True, seconds=0.0)
    assert row["shape"] == "1, 3x4, 1, 2, cell=leaky" and row["training"] and row["backend"] == "fused"
    assert row["peak_bytes"] > 12 * (5 + 2) * 2 * 4
    assert row["gflops"] == pytest.approx(shape.flops(True) / row["seconds"] / 1e9)
    per_flop = shape.lstm_flops(True) / shape.flops(True)
    assert row["to_lstm_per_flop"] / row["to_lstm"] == pytest.approx(per_flop)


def test_the_tables_of_bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--shape", "1,3x4,1,2", "--threads", "1", "--seconds", "0"]
    bench.main(arguments)
    passes = [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert passes == ["forward", "training"]
    monkeypatch.setattr(bench, "STARTS", 1)
    bench.main([*arguments, "--runtime"])
    out = capsys.readouterr().out
    assert "| unrolled |" in out and "| scan |" in out and "times as long as" in out
    bench.main([*arguments, "--runtime", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert all(0 < row["max_abs"] < 1e-5 and row["to_floor"] > 0 for row in rows)


def test_parts_of_a_sweep() -> None:
    row = parts.measure(Shape(1, (3, 2), 1, 2), training=False, seconds=0)
    assert len(row) == len(parts.COLUMNS) and all(text.endswith("%") for text in row[3:])
    assert parts._no_cell.address not in {plan.cell for plan in plans.values()}


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
