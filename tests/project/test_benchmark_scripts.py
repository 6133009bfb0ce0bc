"""Scripts in benchmarks/: pages name them, and they run with their smallest sizes."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkout import ROOT
from helpers.learning_scripts import baselines, handwriting, learning, own_data
from helpers.pages import draw_page
from helpers.small_models import recogniser

sys.path.insert(0, str(ROOT / "benchmarks"))

import density_tasks
import measuring
from contenders import Shape, floor

from mdlstm_tk.data import Task
from mdlstm_tk.training import TrainConfig, make_task

SHARED = {"measuring", "contenders"}  # modules that scripts import
SMALL = ("--shape", "1,3x4,1,2", "--seconds", "0")
TILES = ("--tile", "8", "--hidden", "2")
weekly = partial(pytest.param, marks=pytest.mark.weekly)


def rows_of(out: str) -> list[str]:
    """The rows of the tables that were printed, with their headings."""
    return [line for line in out.splitlines() if line.startswith("|") and ":---" not in line]


def test_each_script_is_named_by_a_page_and_each_name_is_one_of_a_script() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "Makefile"))]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert set(re.findall(r"benchmarks/(\w+)\.py", text)) == scripts - SHARED


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_registries", "one_thread")
@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("bench", "layer", *SMALL, "--threads", "1"), 3),
        weekly(("bench", "runtime", *SMALL), 3),
        weekly(("tiling", "training", "--extent", "16", "--rounds", "1", *TILES), 3),
    ],
)
def test_a_table_is_printed(words: tuple[str, ...], rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(words[0]).main(words[1:])
    assert len(rows_of(capsys.readouterr().out)) == rows


@pytest.mark.weekly
def test_a_tiled_inference_is_measured() -> None:
    words = ("inference", "--extent", "16", "--hidden", "2", "--tile", "16")
    assert "peak" in measuring.python(ROOT / "benchmarks/tiling.py", *words)


@pytest.mark.weekly
def test_the_steps_of_a_training_are_counted() -> None:
    training = importlib.import_module("training")
    assert training.steps_a_second({"task": "diagonal", "steps": 3}, 2, 1) > 0


def small_task(config: TrainConfig) -> Task:
    """A task that is measured on few samples."""
    task = make_task(config)
    whole = task.count
    task.count = lambda split: min(8, whole(split))  # type: ignore[method-assign]
    return task


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_registries", "one_thread")
@pytest.mark.parametrize("name", ["diagonal", weekly("ising")])
def test_a_table_of_learning_is_trained_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rival_networks", "density_tasks"):  # they register what a test forgets
        importlib.reload(importlib.import_module(module))
    monkeypatch.setattr(learning, "TIMED_STEPS", 2)
    monkeypatch.setattr(learning, "make_task", small_task)
    words = [name, "--set", "steps=2", "--set", "batch_size=2", "--results", str(tmp_path)]
    learning.main(words)
    table = rows_of(capsys.readouterr().out)
    assert len(table) > len(learning.TABLES[name].networks)
    monkeypatch.setattr(learning, "train", None)  # all rows are there
    learning.main(words)
    assert rows_of(capsys.readouterr().out) == table
    for row in measuring.read_rows(tmp_path / f"{name}.tsv"):
        of_test = all(row[measure] for measure in learning.TABLES[name].measures)
        assert of_test == (row["seed"] != "0")  # no test data choose a learning rate


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.parametrize("kind", own_data.TASKS)
def test_own_data_of_each_kind(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "images" and not own_data.CLOTHES.is_dir():
        pytest.skip("Debian's package with the pictures of clothes is not installed")
    words = [kind, "--samples", "20", "--minutes", "0.02", "--results", str(tmp_path / "results.tsv")]
    own_data.main(words)
    assert len(measuring.read_rows(tmp_path / "results.tsv")) == 1
    assert any("20 samples" in row for row in rows_of(capsys.readouterr().out))


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries")
def test_handwriting_and_lines_of_pages_are_measured(tmp_path: Path) -> None:
    importlib.reload(importlib.import_module("rival_networks"))
    for name in ("a-0", "b-0", "c-0", "d-0", "e-0"):
        draw_page(tmp_path / f"pages/{name}.xml", ("ab" * 9, "ba" * 9, "aab"))
    splits = {"train": ["a", "b"], "valid": ["c"], "test": ["d", "e"]}
    (tmp_path / "pages/splits.json").write_text(json.dumps(splits), encoding="utf-8")
    words = ["--pages", str(tmp_path / "pages"), "--minutes", "0.02", "--set", "hidden=4"]
    words += ["--set", "batch_size=2", "--results", str(tmp_path / "results.tsv")]
    handwriting.main([*words, "--lines", "2"])
    handwriting.main([*words, "--network", "rows"])
    few, rows = measuring.read_rows(tmp_path / "results.tsv")
    assert abs(int(rows["parameters"]) / int(few["parameters"]) - 1) < 0.05
    words[-1] = str(tmp_path / "lines.tsv")
    reader = recogniser(tmp_path / "recogniser.onnx")
    baselines.main([*words, "--set", "resize=64x*", "--recogniser", str(reader)])
    (row,) = measuring.read_rows(tmp_path / "lines.tsv")
    assert 0 <= float(row["whole_low"]) <= float(row["whole"]) <= float(row["whole_high"]) <= 1


@pytest.mark.weekly
def test_the_report_of_a_gpu_has_a_row_for_each_pass_and_dtype(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--only", "1,4x4,1,4", "--seconds", "0", "--no-tests", "--output", tmp_path)
    measuring.python(ROOT / "benchmarks/gpu.py", *words)
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert len({(row["dtype"], row["pass"]) for row in report["rows"]}) == 4 and not report["missing"]


def test_steps_take_turns() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = measuring.interleave(steps, 0, least=2)
    assert calls == [*"ababab"] and {len(each) for each in times.values()} == {2}
    assert measuring.ratio(np.array([1.0, 6.0, 9.0]), np.array([1.0, 2.0, 3.0])) == 3


@pytest.mark.parametrize("training", [False, True])
def test_floor_is_the_products_of_a_sweep(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    products, multiply = list[int](), torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        products.append(a.shape[0] * a.shape[1] * b.shape[1])
        return multiply(a, b, **options)

    step = floor(Shape(3, (4, 5), 2, 7), training, {})
    monkeypatch.setattr(torch, "mm", mm)
    step()
    inputs, recurrent, first = 3 * 20 * 2 * 35, 3 * 20 * 14 * 35, 3 * 14 * 35
    # The first wavefront has no predecessors, and the gradient of x is not computed.
    forward = inputs + recurrent - first
    assert sum(products) == forward + training * (inputs + 2 * recurrent - first)


def test_probabilities_and_entropy_of_the_ising_model_are_those_of_an_enumeration() -> None:
    task = density_tasks.Ising((2, 3), beta=0.6)
    images = np.indices((2,) * 6).reshape(6, -1).T.reshape(-1, 2, 3, 1)
    p = np.exp(task.log_prob(images))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert task.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
    numbers = task.batch(0, 0, 20_000).x.reshape(-1, 6) @ 2 ** np.arange(6)[::-1]
    frequency = np.bincount(numbers.astype(int), minlength=64) / 20_000
    assert (np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()


def test_idx_files_are_read_compressed_or_not(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = bytes([0, 0, 8, 3]) + np.array(images.shape, ">i4").tobytes() + images.tobytes()
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b.gz").write_bytes(gzip.compress(content))
    for name in "ab":
        assert np.array_equal(density_tasks.read_idx(tmp_path / name), images)
