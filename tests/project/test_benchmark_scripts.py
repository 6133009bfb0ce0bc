"""Scripts in benchmarks/: what they count and print. No test asserts a measurement."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from helpers.checkout import ROOT

from mdlstm_tk.benchmark import Shape


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak memory there")
def test_a_row_of_the_table_of_memory() -> None:
    script = importlib.import_module("memory")
    row = script.measure(ROOT, Shape(1, (5, 6), 2, 3), "any")
    assert len(row) == len(script.COLUMNS) and row[1] == "any"
    assert int(row[2]) > 1 and int(row[3]) > 10 and all(float(text) >= 0 for text in row[3:])


def test_differences_in_speed() -> None:
    comment = importlib.import_module("differences").comment
    base = {("16,8x8,1,16", "forward"): [1.0, 1.1, 1.05], ("1,64x64,1,32", "training"): [1.0, 1.0, 2.0]}
    head = {("16,8x8,1,16", "forward"): [1.3, 1.2, 1.25], ("1,64x64,1,32", "training"): [1.2, 1.3, 1.2]}
    text = comment(base, head)
    assert "1 of 2" in text and "| 16,8x8,1,16 | forward | 1.05 | 1.25 | **+19%** |" in text
    assert "| 1,64x64,1,32 | training | 1.00 | 1.20 | +20% |" in text  # base has a slower round
    assert "**" not in comment(base, base)


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


@pytest.mark.slow
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
