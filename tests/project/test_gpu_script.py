"""`benchmarks/gpu.py`, which `make gpu` runs: what of it does not need a GPU."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.checkout import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # as a script has its folder there

GPU = runpy.run_path(str(ROOT / "benchmarks/gpu.py"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/gpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
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


@pytest.mark.slow
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
