"""Scripts in benchmarks/: what they compute and report. No test asserts a measurement."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.checkout import ROOT
from onnx import TensorProto, helper

from mdlstm_tk.benchmark import Shape

sys.path.insert(0, str(ROOT / "benchmarks"))

import differences
import memory
import rivals

GPU = runpy.run_path(str(ROOT / "benchmarks/gpu.py"))


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


def test_cpu_times_have_a_row_for_each_turn() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = importlib.import_module("measuring").cpu_times(steps, 0, runs=2, least=3)
    assert calls == [*"ab", *("aabb" * 3)]  # one untimed call of each
    assert times["a"].shape == times["b"].shape == (3, 2) and (times["a"] >= 0).all()


def test_nan_is_no_small_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan, good = np.array([1.0, np.nan]), np.array([1.0, 2.0])
    np.savez(tmp_path / "plain.npz", x=good, weight=good)
    np.savez(tmp_path / "tiled.npz", x=good, weight=nan)
    assert np.isnan(importlib.import_module("tiling").largest_difference(tmp_path))
    script = importlib.import_module("runtimes")
    case = script.Case("scan", "3-D", b"", {}, good)
    monkeypatch.setattr(script, "cases", lambda pairs: [case] * 2)
    monkeypatch.setattr(script, "FORMS", {"scan": {}})
    results = iter([good, nan])
    monkeypatch.setattr(script, "installed_runtimes", lambda: {"one": lambda model, feeds: next(results)})
    assert "| scan | nan |" in script.runs_in()
    assert script.difference(lambda model, feeds: good[:1], case) == "y has the shape (1,), expected (2,)"


def test_an_interrupted_comparison_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("tasks")
    (tmp_path / "md-0").mkdir()  # a run of it

    def run(command: list[str], **options: object) -> None:
        assert "--force" in command
        (tmp_path / "summary.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.load_results(tmp_path, "digits", 1) == {}


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries", "one_thread")
def test_random_layers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("random_layers")
    with pytest.raises(SystemExit) as end:
        script.main(["--count", "2"])
    assert end.value.code == 0, capsys.readouterr().err
    monkeypatch.setattr(script, "random_case", lambda rng: script.Case(cell="absent"))
    with pytest.raises(SystemExit) as end:
        script.main(["--count", "1"])
    assert end.value.code == 1
    captured = capsys.readouterr()
    assert "1 wrong" in captured.out and "seed 0: absent" in captured.err


def seen(network: torch.nn.Module, position: tuple[int, int]) -> np.ndarray:
    """(16, 24): the positions of x whose values change the output at one position."""
    x = torch.randn(1, 16, 24, rivals.CHANNELS, requires_grad=True)
    network(x)[0, *position].sum().backward()
    assert x.grad is not None
    result: np.ndarray = x.grad[0].abs().sum(-1).numpy() > 0
    return result


def test_what_the_networks_see() -> None:
    networks, row, column = rivals.make_networks(), *np.indices((16, 24))
    assert seen(networks["MD-LSTM"], (5, 9)).all() and seen(networks["ViT block"], (5, 9)).all()
    np.testing.assert_array_equal(seen(networks["2 nn.LSTM"], (5, 9)), (row == 5) | (column == 9))
    window = seen(networks["7 convolutions"], (8, 10))
    assert not window[(abs(row - 8) > 7) | (abs(column - 10) > 7)].any()
    rows, columns = window.nonzero()
    assert np.ptp(rows) == np.ptp(columns) == 14


def test_patches_return_to_their_places() -> None:
    """Without attention, a change of one patch changes the output in this patch alone."""
    network = rivals.PatchAttention(rivals.CHANNELS, 8, 2)
    network.block = torch.nn.Identity()
    x = torch.zeros(1, 16, 24, rivals.CHANNELS)
    before = network(x)
    x[0, 9, 17] = 1
    changed = (network(x) != before).any(-1)[0].nonzero()
    assert changed.min(0).values.tolist() == [8, 16] and changed.max(0).values.tolist() == [15, 23]


@pytest.mark.weekly
def test_a_table_of_all_networks() -> None:
    rows = rivals.table([(2, (8, 16))], seconds=0)
    assert [row[:2] for row in rows[:2]] == [["2, 8x16, 3", "MD-LSTM"], ["2, 8x16, 3", "MD-LSTM, scan"]]
    assert [row[1] for row in rows[2:]] == ["2 nn.LSTM", "7 convolutions", "ViT block"]
    assert {len(row) for row in rows} == {len(rivals.COLUMNS)}
    assert all(float(text) >= 0 for row in rows for text in row[2:] if text)
    assert [row.count("") for row in rows] == [0, 4, 0, 0, 0]  # torch runs the layer once, not by form
    assert [rows[0][k] for k in (3, 5, 7)] == ["1.00"] * 3


def test_an_export_that_disagrees_ends_the_script(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    x = torch.tensor([1.0, -1.0])
    rivals.runtime_step(path, x, torch.tensor([1.0, 0.0]))()
    for wrong in ([1.0, 0.01], [1.0, float("nan")]):
        with pytest.raises(SystemExit, match=r"relu\.onnx"):
            rivals.runtime_step(path, x, torch.tensor(wrong))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/gpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.weekly
def test_its_report_has_a_row_for_each_pass_and_dtype(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--only", "1,4x4,1,4", "--seconds", "0", "--no-tests")
    done = run(*options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    rows = report["rows"]
    assert [(row["dtype"], row["training"]) for row in rows] == [
        *[("float32", False), ("float32", True)],
        *[("bfloat16", False), ("bfloat16", True)],
    ]
    assert {row["wavefronts"] for row in rows} == {7}
    assert all(min(row["layer"], row["lstm"]) > 0 for row in rows)
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.count("| 1, 4x4, 1, 4 |") == len(rows)
    assert report["missing"] == {} and "Not measured" not in page


@pytest.mark.weekly
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "gpu"))
    assert done.returncode == 1
    assert done.stderr.startswith("not measured: torch sees no NVIDIA GPU") and done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu").exists()


def test_what_fails_or_takes_too_long_is_a_line_of_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    say = [sys.executable, "-S", "-c"]
    assert GPU["run"]([*say, "print(1); print(2)"], 60) == ["1", "2"]
    assert GPU["run"]([*say, "import os; print(os.environ['HERE'])"], 60, {"HERE": "there"}) == ["there"]
    assert GPU["run"]([*say, "raise SystemExit('broken')"], 60) == ["broken", "failed: broken"]
    sleeps = "import time; time.sleep(99)"
    starts_another = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', '{sleeps}'])"
    assert GPU["run"]([*say, starts_another], 0.5)[-1] == "failed: stopped after 0 s"
    assert "failed: broken" in capfd.readouterr().err


def test_a_failure_of_any_kind_is_a_line_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("out of resource: shared memory\nand more")  # Triton's errors are no RuntimeError

    monkeypatch.setitem(GPU["main"].__globals__, "measure", fail)
    options = ["--device", "cpu", "--only", "1,4x4,1,4", "--no-tests", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    with pytest.raises(SystemExit, match="failed"):
        GPU["main"]()
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(report["missing"].values()) == {"out of resource: shared memory"}


def test_the_page_names_what_was_not_measured() -> None:
    versions = dict.fromkeys(("date", "device", "torch", "cuda", "cudnn"), "?")
    skipped = ["SKIPPED [3] tests/gpu/test_cuda.py:101: this onnxruntime was built without CUDA"]
    report = versions | {
        "seconds": 1.0,
        "tests": "9 passed, 3 skipped in 1s",
        "not_passed": skipped,
        "sanitizer": "not measured: compute-sanitizer is not installed",
        "rows": [],
        "missing": {"1, 4x4, 1, 4, float32, forward": "out of memory"},
    }
    lines = GPU["page"](report).splitlines()
    assert "  - " + skipped[0] in lines and lines[-1] == "- 1, 4x4, 1, 4, float32, forward: out of memory"
