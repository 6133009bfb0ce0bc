"""Scripts in benchmarks/: pages name them, and they run with their smallest sizes."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkout import ROOT
from helpers.learning_scripts import learning, learning_tables
from helpers.pages import draw_page
from helpers.small_models import recogniser
from matplotlib import font_manager
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))

import measuring
import performance
from contenders import Shape, floor

from mdlstm_tk.data import Task
from mdlstm_tk.training import TrainConfig, configure, load_checkpoint, make_task, train

MODULES = {"measuring", "contenders", "equal_time"}  # that scripts share
NAMED = re.compile(r"benchmarks/(\w+)\.py")
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")),
]
PAGES += [ROOT / ".ci/lowest-onnxruntime"]
SMALL = ("--shape", "1,3x4,1,2", "--seconds", "0")
weekly = partial(pytest.param, marks=pytest.mark.weekly)
CASES = [  # script and table, options, columns of the table
    ("bench layer", (*SMALL, "--threads", "1"), 10),
    weekly("bench runtime", SMALL, 11),
    weekly("bench exports", SMALL, 5),
    ("ragged", ("--extent", "8", "20", "--seconds", "0"), 6),
    weekly("rivals", ("--shape", "1", "8", "8", "--seconds", "0"), 4),
    weekly("tiling training", ("--extent", "16", "--tile", "8", "--hidden", "2", "--rounds", "1"), 5),
    ("density", ("--pictures", "2", "--extent", "4"), 3),
    weekly("runtimes", ("--form", "scan"), None),
]
EVALUATED = 8  # samples of each split, so that it takes little time
OTHER_TABLES = [name for name in learning_tables.TABLES if name != "diagonal"]
IN_PROCESSES = {  # script with its options, and what it prints; they set variables or take a path
    ("load", *SMALL): "8 columns",
    ("export_networks", "sequences/rotary/scan"): "9 runs",
    ("tiling", "inference", "--extent", "16", "--tile", "16", "--hidden", "2"): "peak",
}


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def columns(out: str) -> int:
    """The number of columns of the first table that was printed."""
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) > 2, out
    return lines[0].count("|") - 1


def test_each_script_is_named_by_a_page_and_each_name_is_one_of_a_script() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    named = {name for page in PAGES for name in NAMED.findall(page.read_text(encoding="utf-8"))}
    code = [
        path
        for folder in ("mdlstm_tk", "models", "cli", "export")
        for path in (ROOT / folder).rglob("*.py")
    ]
    of_code = {name for path in code for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert named == scripts - MODULES and of_code <= scripts
    text = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in scripts if not re.search(rf"\b{name}\b", text)} == set()


def test_the_page_has_a_place_for_each_table_and_the_command_that_fills_it() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- /\1 -->", page, re.DOTALL))
    assert {*performance.COMMANDS, "machine"} == sections.keys()
    for name, command in performance.COMMANDS.items():
        assert sections[name].startswith(f"`python benchmarks/{command}`\n\n"), name
    assert "cores" in performance.machine()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_registries", "one_thread")
@pytest.mark.parametrize(("name", "options", "expected"), CASES)
def test_a_table_is_printed(
    name: str, options: Sequence[str], expected: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *table = name.split()
    script(module).main([*table, *options])
    found = columns(capsys.readouterr().out)
    assert found == (expected or found)  # the runtimes of `runtimes` are those that are installed


def test_json_has_the_ratio_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    script("bench").main(["--json", *SMALL, "--threads", "1"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["N, grid, C, n"], row["pass"]) for row in rows] == [
        ("1, 3x4, 1, 2", "forward"),
        ("1, 3x4, 1, 2", "training"),
    ]
    assert all(row["÷ floor"] > 0 for row in rows)


@pytest.mark.weekly
@pytest.mark.parametrize(("words", "expected"), IN_PROCESSES.items(), ids=lambda words: words[0])
def test_a_script_runs_in_a_process_of_its_own(words: Sequence[object], expected: str) -> None:
    name, *options = words
    out = measuring.python(ROOT / f"benchmarks/{name}.py", *options)
    assert "!!!" not in out  # with which `export_networks` marks a network that fails
    assert expected in (out if "|" not in out else f"{columns(out)} columns {out}")


@pytest.mark.weekly
def test_sections_of_the_page_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(performance.COMMANDS, "layer", "bench.py --shape 1,3x4,1,2 --seconds 0")
    page = tmp_path / "page.md"
    page.write_text("<!-- layer -->\nold\n<!-- /layer -->\n", encoding="utf-8")
    performance.main(["layer", "--page", str(page)])
    assert columns(page.read_text(encoding="utf-8")) == 10 and "old" not in page.read_text(encoding="utf-8")


@pytest.mark.weekly
def test_compiling_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("bench")
    monkeypatch.setattr(bench, "COMPILED", {"first": ("graves", False, False)})
    assert [row["s"] > 0 for row in bench.compiling_rows()] == [True]


@pytest.mark.weekly
def test_training_prints_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    training = script("training")
    monkeypatch.setitem(training.TASKS, "diagonal", (3, {"task": "diagonal"}))
    assert [len(row) for row in training.table(["diagonal"], rounds=1)] == [len(training.COLUMNS)]


def fresh(*names: str) -> None:
    """Let modules that register networks be imported anew."""
    for name in names:
        sys.modules.pop(name, None)


def test_bounds_fall_with_what_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    script("field_bounds").main(["--extent", "4"])
    bounds = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert bounds[:3] == sorted(bounds[:3], reverse=True) and bounds[3:] == sorted(bounds[3:], reverse=True)


def make_small_task(config: TrainConfig) -> Task:
    task = make_task(config)
    whole = task.count
    task.count = lambda split: min(EVALUATED, whole(split))  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize(
    "name", [pytest.param("diagonal", marks=pytest.mark.slow), *map(weekly, OTHER_TABLES)]
)
@pytest.mark.usefixtures("fresh_registries", "one_thread")
def test_a_table_of_learning(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it was, looks at no test data to choose, and is written into page and README."""
    few = np.random.default_rng(0).integers(0, 2, (60, 8, 8), np.uint8)
    monkeypatch.setattr(learning, "make_task", make_small_task)
    fresh("rival_networks", "density_tasks")
    importlib.import_module("rival_networks")
    monkeypatch.setattr(script("density_tasks"), "load_clothes", lambda folder: (few, few[:20]))
    table = learning_tables.TABLES[name]
    for file, marker in (("README.md", "learning"), (f"docs/{table.page}", name)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"<!-- {marker} -->\nold\n<!-- /{marker} -->\n", encoding="utf-8")
    options = ["--set", "steps=2", "--set", "batch_size=2", "--results", str(tmp_path)]
    arguments = [name, *options, "--write", "--root", str(tmp_path)]
    learning.main(arguments)
    page = measuring.between_markers(tmp_path / "docs" / table.page, name)
    assert capsys.readouterr().out == f"{page}\n\n"
    assert columns(page) == 5 + 2 * len(table.measures)
    monkeypatch.setattr(learning, "train", None)  # all cells are there
    learning.main(arguments)
    cells = learning_tables.Results(name, tmp_path).cells
    assert all(("errors" in each) != (", seed 0" in k) for k, each in cells.items() if ", seed" in k)
    parameters = [each["parameters"] for each in cells.values() if "parameters" in each]
    assert max(parameters) / min(parameters) < 1.1
    with pytest.raises(SystemExit, match="was measured with"):
        learning.main([*arguments, "--set", "steps=3"])


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries")
def test_own_data_of_each_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh("own_data")
    own_data = script("own_data")
    counts = {"images": "20", "masks": "10"}
    if not own_data.CLOTHES.is_dir():  # Debian's package with the pictures of clothes
        del counts["images"]
    for kind, count in counts.items():
        arguments = [kind, "--samples", count, "--minutes", "0.02", "-o", str(tmp_path / "out")]
        arguments += ["--results", str(tmp_path)]
        monkeypatch.setattr(own_data, "TIMING_SECONDS", 0)
        settings, seconds, cell = own_data.main(arguments).values()
        assert settings == {"set": []}
        assert cell["steps"] == max(1, round(1.2 / next(iter(seconds.values()))))
        assert columns(capsys.readouterr().out) == 2


def test_masks_keep_the_greys_of_their_images(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    own_data = script("own_data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(own_data.TEST_SAMPLES, "masks", 1)
        own_data.write_masks(tmp_path, 4)
    pixels = np.stack([np.asarray(Image.open(path)) for path in (tmp_path / "train/images").iterdir()])
    assert np.isin(pixels, (0, 255)).mean() < 0.05


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    equal_time = script("equal_time")
    draw_page(tmp_path / "pages/a.xml", ("ab", "ba", "aab", "b"))
    draw_page(tmp_path / "pages/b.xml", ("ab", "b"))
    settings = {"task": "transcribe", "data": str(tmp_path / "pages"), "hidden": 4, "batch_size": 2}
    config = configure(**settings, evaluate_every=2, steps=6)
    whole, run = (tmp_path / name for name in ("whole", "run"))
    train(config, whole)
    steps: list[int] = []

    def fail_at_4(state: Any, *_: Any) -> None:
        steps.append(state.step)
        if state.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, run, on_step=fail_at_4)
    equal_time.new_or_interrupted(config, run, on_step=lambda state, *_: steps.append(state.step))
    assert steps == [1, 2, 3, 4, 3, 4, 5, 6]  # step 4 was not saved
    weights, resumed = (load_checkpoint(folder / "last.safetensors").tensors for folder in (whole, run))
    assert all(torch.equal(each, resumed[name]) for name, each in weights.items())
    assert equal_time.trained(config, run)["step"] and len(steps) == 8  # evaluated, not trained
    other = replace(config, seed=1)
    equal_time.new_or_interrupted(other, run, on_step=lambda state, *_: steps.append(state.step))
    assert steps[8:] == [*range(1, 7)]


@pytest.mark.weekly
def test_two_processes_train(tmp_path: Path) -> None:
    equal_time = script("equal_time")
    config = configure(steps=5, hidden=4)
    assert equal_time.clocked_rate(config, processes=2) > 0
    assert equal_time.trained(config, tmp_path / "run", processes=2)["errors"]
    assert equal_time.gain_of_processes(config, 1) == 1


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries")
def test_handwriting_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh("rival_networks", "handwriting")
    for name in ("x/a-0", "x/b-0", "y/c-0", "y/d-0"):  # in folders, without splits.json, as downloads are
        draw_page(tmp_path / f"source/{name}.xml", ("ab", "ba", None, "aab"))
    settings = ("--set", "hidden=4", "--set", "batch_size=2", "--set", "evaluate_every=2")
    arguments = ["--pages", str(tmp_path / "source"), "--minutes", "0.02", "--seeds", "1", *settings]
    arguments += ["-o", str(tmp_path / "out"), "--results", str(tmp_path / "results.json")]
    main = script("handwriting").main
    fonts = ("--fonts", font_manager.findfont("DejaVu Sans"), "--count", "8")
    first, few = main(["results", *arguments, *fonts]).values()
    assert first["bytes"] < 4e6 and min(first["speed"], first["speed_lm"]) > 0
    assert first["greedy"]["groups"] == 1  # one page is for testing
    assert few["parameters"] == first["parameters"]  # there are no more lines than few
    capsys.readouterr()
    rows = main(["networks", *arguments])
    default, *rivals = rows.values()
    assert len(rivals) == 2 and columns(capsys.readouterr().out) == 12
    assert all(abs(row["parameters"] / default["parameters"] - 1) < 0.05 for row in rivals)
    parts = main(["parts", *arguments, "--only", "no lengths", "defaults"])
    assert default in parts.values() and len(parts) == 2  # from the file of results
    with pytest.raises(SystemExit):
        main(["results", *arguments])  # without fonts
    with pytest.raises(SystemExit, match="was measured with"):
        main(["networks", *arguments, "--set", "hidden=5"])


@pytest.mark.weekly
@pytest.mark.usefixtures("fresh_registries")
def test_lines_of_pages_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh("rival_networks", "baselines")
    for name in "abcd":
        draw_page(tmp_path / f"pages/{name}.xml", ("ab" * 9, "ba" * 9))
    splits = {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}
    (tmp_path / "pages/splits.json").write_text(json.dumps(splits), encoding="utf-8")
    arguments = ["--pages", str(tmp_path / "pages"), "--minutes", "0.02", "-o", str(tmp_path / "out")]
    arguments += ["--results", str(tmp_path / "results.json"), "--set", "hidden=4"]
    arguments += ["--set", "resize=64x*", "--set", "batch_size=2"]
    arguments += ["--recogniser", str(recogniser(tmp_path / "recogniser.onnx"))]
    rows = script("baselines").main(arguments)
    assert columns(capsys.readouterr().out) == 11 and len(rows) == 3
    assert script("baselines").main(arguments) == rows  # from the file of results
    counts = [row["parameters"] for row in rows.values()]
    assert max(counts) / min(counts) < 1.2 and len(rows["default, 0.02 min, seed 0"]["wrong"]) == 2


@pytest.mark.weekly
def test_files_are_saved_for_other_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtimes = ROOT / "benchmarks/runtimes.py"
    measuring.python(runtimes, "--save", tmp_path)
    count = len(script("runtimes").FORMS)
    assert f"{count} of {count} files" in measuring.python(runtimes, "--check", tmp_path)


def test_nan_is_no_small_difference() -> None:
    """`.ci/lowest-onnxruntime` relies on it."""
    runtimes = script("runtimes")
    case = runtimes.Case("scan", "3-D", b"", {}, np.ones(2))
    assert np.isnan(runtimes.difference(lambda model, feeds: np.array([1.0, np.nan]), case))
    assert (
        runtimes.difference(lambda model, feeds: np.ones(1), case) == "y has the shape (1,), expected (2,)"
    )


def test_steps_take_turns() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = measuring.interleave(steps, 0, least=2, runs=2)
    assert calls == [*"ab", *"aabb" * 2]
    assert {name: series.shape for name, series in times.items()} == {"a": (2, 2), "b": (2, 2)}
    assert measuring.ratio(np.array([1.0, 6.0, 9.0]), np.array([1.0, 2.0, 3.0])) == 3


def test_an_interrupted_table_goes_on(tmp_path: Path) -> None:
    def fail() -> float:
        raise KeyboardInterrupt

    file = tmp_path / "a/results.json"
    with pytest.raises(KeyboardInterrupt):
        measuring.resumed(file, {"one": lambda: 1.0, "two": fail})
    assert measuring.resumed(file, {"one": fail, "two": lambda: 2.0}) == {"one": 1.0, "two": 2.0}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


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


def run_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/gpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.weekly
def test_the_report_of_a_gpu_has_a_row_for_each_pass_and_dtype(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--only", "1,4x4,1,4", "--seconds", "0", "--no-tests")
    done = run_gpu(*options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    cases = {(row["dtype"], row["pass"]) for row in report["rows"]}
    assert len(cases) == len(report["rows"]) == 4 and report["missing"] == {}
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.count("| 1, 4x4, 1, 4 |") == 4 and "Not measured" not in page


@pytest.mark.weekly
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run_gpu("--output", str(tmp_path / "gpu"))
    assert done.returncode == 1
    assert done.stderr.startswith("not measured: torch sees no NVIDIA GPU") and done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu").exists()


@pytest.mark.usefixtures("fresh_registries")
def test_probabilities_and_entropy_of_the_ising_model_are_those_of_an_enumeration() -> None:
    fresh("density_tasks")
    task = script("density_tasks").Ising((2, 3), beta=0.6)
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
        assert np.array_equal(script("density_tasks").read_idx(tmp_path / name), images)
