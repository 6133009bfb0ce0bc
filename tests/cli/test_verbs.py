"""The verbs from end to end: help, the four commands, JSON, standard streams, missing packages, Ctrl-C."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from itertools import count
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from helpers.command import mdlstm, succeed
from helpers.damage import damage
from helpers.layouts import write
from helpers.small_models import classifier, recogniser, segmenter, write_model
from helpers.without_packages import TRAINING, python_without
from PIL import Image

from mdlstm_tk import training
from mdlstm_tk._version import __version__
from mdlstm_tk.cli import console
from mdlstm_tk.cli.app import VERBS, typer_app
from mdlstm_tk.training import Run
from mdlstm_tk.training.config import TrainConfig, configure


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_eighty_columns(verb: str) -> None:
    done = succeed(*filter(None, [verb]), "--help", env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert max(map(len, done.out.splitlines())) <= 80 and "--help" in done.out
    if verb == "train":
        wide = succeed("train", "--help").out
        for each in fields(TrainConfig):
            assert f"--{each.name.replace('_', '-')} " in wide and each.metadata["panel"] in wide
        assert ["--model" in line for line in wide.splitlines() if " -m " in line] == [True]
    elif not verb:
        assert all(name in done.out for name in VERBS)
        assert succeed("--version").out == f"mdlstm-tk {__version__}\n"


def test_flags_are_off_unless_they_are_given() -> None:
    commands: Any = typer.main.get_command(typer_app([*VERBS]))
    for verb, command in commands.commands.items():
        flags = {each.name: each.default for each in command.params if getattr(each, "is_flag", False)}
        assert {*flags.values()} == {False} and ("json" in flags or verb == "read"), verb


def test_the_four_commands(tmp_path: Path) -> None:
    words = ("train", "--steps", 20, "--batch-size", 4, "--layer-norm", "false", "--json")
    done, run = succeed(*words, cwd=tmp_path), tmp_path / "runs/md-8x8"
    assert json.loads(done.out)["run"] == "runs/md-8x8"
    assert "next: mdlstm export runs/md-8x8 --size 8x8" in done.err
    names = {"curves.png", "prediction.png", "report.html", "result.json"}
    assert names <= {path.name for path in run.iterdir()}
    config = configure(run / "config.toml")
    assert (config.steps, config.batch_size, config.layer_norm) == (20, 4, False)
    done = succeed("export", "--size", 4, "--size", "2x3", "--json", cwd=tmp_path)
    paths = [Path(each["path"]).name for each in json.loads(done.out)]
    assert paths == ["model-4x4.onnx", "model-2x3.onnx"]
    assert "next: mdlstm infer FILE -m runs/md-8x8/model-2x3.onnx" in done.err
    np.save(tmp_path / "matrix.npy", np.random.default_rng(0).random((2, 3)) / 10)
    done = succeed("infer", "matrix.npy", cwd=tmp_path)
    assert "matrix.npy → matrix.out.npy 2x3" in done.err
    assert np.load(tmp_path / "matrix.out.npy").shape == (2, 3)
    done = succeed("verify", "runs/md-8x8", cwd=tmp_path)
    assert "within tolerance" in done.err and "ONNX Runtime, cpu" in done.out
    assert "FAILED" not in done.out and "e-" in done.out
    done = succeed("verify", "runs/md-8x8/model-2x3.onnx", "--json", cwd=tmp_path)
    assert {case.split()[-1] for case in json.loads(done.out)["ONNX Runtime, cpu"]} == {"0", "1"}
    done = succeed("report", "--json", cwd=tmp_path)
    page = Path(json.loads(done.out)["path"])
    size = (tmp_path / page).stat().st_size
    assert json.loads(done.out)["bytes"] == size
    assert done.err.splitlines()[:1] == [f"{page}: {size / 1024:.0f} KiB; open it in a browser"]
    assert "next: mdlstm infer FILE -m runs/md-8x8/model-" in done.err
    succeed("train", "--resume", "runs/md-8x8", "--steps", 125, cwd=tmp_path)
    values, metrics = json.loads(succeed("info", run, "--json").out), [*Run(run).read_metrics()]
    best = next(each for each in metrics if each["step"] == values["best_step"])
    assert values["best_score"] == best["validation"]["relevant_mean"]
    assert values["last_100_loss"] == pytest.approx(mean(each["loss"] for each in metrics[-100:]))
    assert (values["steps_done"], values["exports"]) == (125, ["model-2x3.onnx", "model-4x4.onnx"])
    assert 0 <= values["training_seconds"] == round(values["training_seconds"], 1)
    err = succeed("info", run).err
    assert "has gone on since" in err and f"next: mdlstm infer FILE -m {run}/model-2x3.onnx" in err
    done = mdlstm("train", "--steps", 5, "-o", run)
    assert done.code == 2 and "--force" in done.err


def test_a_file_that_is_damaged_fails_the_verification(trained: Run, tmp_path: Path) -> None:
    damage(trained.folder / "model-8x8.onnx", tmp_path / "d.onnx", 5)
    done = mdlstm("verify", tmp_path / "d.onnx", "--against", trained.folder)
    assert done.code == 3 and "FAILED" in done.out, done.err


def test_models_and_tasks_are_described(tmp_path: Path) -> None:
    images = {"channels": 1, "resize": [None, 64]}
    path = classifier(tmp_path / "c.onnx", grid=(8, None), threshold=0.25, preprocessing=images)
    values = json.loads(succeed("info", path, "--json").out)
    assert (values["grid"], values["classes"][1], values["threshold"]) == ([8, None], "dög", 0.25)
    cells = dict(line.rstrip().split(maxsplit=1) for line in succeed("info", path).out.splitlines()[1:])
    assert (cells["grid"], cells["threshold"], cells["classes"]) == ("8x*", "0.25", "cat, dög, <b>")
    assert cells["preprocessing"] == "channels 1, resize *x64" and "window" not in cells
    values = json.loads(succeed("info", "digits", "--json").out)
    assert values["task"]["default"] == "digits" and values["lr"]["meaning"]
    done = succeed("info", "digits")
    defaults = {row.split()[0]: row.split()[1] for row in done.out.splitlines()[1:]}
    assert (defaults["task"], defaults["steps"]) == ("digits", str(values["steps"]["default"]))
    assert done.err == "next: mdlstm train --task digits\n"
    assert succeed("info", "classify").err == "next: mdlstm train --task classify --data PATH\n"


def test_a_comparison_shows_what_its_runs_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", -1)  # a line for each step
    small = ("--steps", 3, "--seed", 5, "--seeds", 2, "--size", 4, "--evaluate-every", 3)
    words = ("compare", *small, "-o", tmp_path / "c")
    done = succeed(*words, "--json")
    results = json.loads(done.out)["results"]
    told = [line.split()[0] for line in done.err.splitlines() if ", loss " in line]
    assert told == ["1/3", "2/3", "3/3"] * (2 * len(results)) and (tmp_path / "c/relevant.png").is_file()
    heading, *rows = (line.split("  ") for line in succeed(*words, "--force").out.splitlines())
    columns = [name.strip() for name in heading if name.strip()]
    for cells in ([cell.strip() for cell in row if cell.strip()] for row in rows):
        entry = results[cells[0]]
        for name, cell in zip(columns[1:], cells[1:], strict=True):
            if isinstance(values := entry[name], list):
                ends = f" ({min(values):.4g}–{max(values):.4g})" if len({*values}) > 1 else ""
                assert name == "seconds" or cell == f"{mean(values):.4g}{ends}"


def test_samples_are_arrays_or_a_picture(tmp_path: Path, density_run: Run) -> None:
    run = density_run.folder
    done = succeed("sample", run, "-n", 2, "-o", "s.npy", "--size", "5x6", "--json", cwd=tmp_path)
    assert json.loads(done.out)["images"] == 2 and np.load(tmp_path / "s.npy").shape[:3] == (2, 5, 6)
    assert done.err.startswith("s.npy: 2 of 5x6, ") and "next: mdlstm export" in done.err
    done = succeed("sample", run, "--size", 5, cwd=tmp_path)
    assert done.out == "" and done.err.startswith("samples.png: 64 of 5x5, ")
    assert Image.open(tmp_path / "samples.png").size[0] > 0
    assert mdlstm("sample", run, cwd=tmp_path).code == 2  # it exists


@pytest.mark.parametrize("options", ["--best-by iou", "--validation 0", "--crop 4 --minutes 0.02"])
def test_what_a_training_says_is_in_its_run(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = write(tmp_path / "data", "segment", "folder"), Run(tmp_path / "run")
    stray = next((data / "images").iterdir())
    shutil.copy(stray, stray.with_stem("stray"))  # without a mask
    monkeypatch.setattr(console, "LINE_SECONDS", -1)
    seconds, train = list[float](), training.train  # of each step

    def spied(*arguments: Any, on_step: Any, **how: Any) -> Any:
        def record(state: Any, *values: Any) -> None:
            seconds.append(state.seconds)
            on_step(state, *values)

        return train(*arguments, on_step=record, **how)

    monkeypatch.setattr(training, "train", spied)
    steps, held_out = "minutes" not in options, "validation" not in options
    words = f"--task segment --hidden 3 --augment 0 --evaluate-every 10 --batch-size 8 {options}".split()
    words += ["--steps", "30"] * steps
    lines = succeed("train", "--data", data, *words, "-o", run.folder).err.splitlines()
    assert sum(line.startswith("warning: files in images/ without one") for line in lines) == 1
    result, losses = run.read_result(), [each["loss"] for each in run.read_metrics()]
    told = [line.partition("  ") for line in lines if "loss" in line]
    assert len(told) == len(losses)
    ends = [f"{k}/30 steps" for k in range(1, 31)] if steps else [f"{done}" for done, _, _ in told]
    assert [done for done, _, _ in told] == ends and (steps or all(end.endswith("/1.2 s") for end in ends))
    for k, (_, _, text) in enumerate(told, 1):
        loss, *others = text.split(", ")
        assert loss == f"loss {mean(losses[max(0, k - 20) : k]):.4g}"
        if k > 1:
            assert others[-1] == f"{(k - 1) / (seconds[k - 1] - seconds[0]):.3g} steps/s"
        assert any(each.startswith("error ") for each in others) == (k >= 10 and held_out)
    ended, best, wrote, following = lines[-4:]
    assert ended == f"{run.folder} has {result['ending']}, {result['steps_per_second']:.3g} steps/s"
    if held_out:
        assert f"error {result['errors']['error']:.4g}" in best and "which chose them" in best
        assert ("cropped to 4" in best) == ("crop" in options)
    else:
        assert best.startswith("nothing was held out")
    assert all(Path(file).is_file() for file in wrote.removeprefix("wrote ").split(", "))
    assert ("prediction.png" in wrote) == held_out
    assert following == f"next: mdlstm export {run.folder} --form scan"
    if steps and held_out:
        values = json.loads(succeed("info", run.folder, "--json").out)
        measures = {each["step"]: each.get("validation") for each in run.read_metrics()}
        assert values["best_score"] == measures[values["best_step"]]["iou"] > 0
        monkeypatch.setattr(console, "LINE_SECONDS", 1e9)  # a line for each tenth
        done = succeed("train", "--resume", run.folder, "--steps", 60)
        tenths = [each.split()[0] for each in done.err.splitlines() if "loss" in each]
        assert tenths == [f"{k}/60" for k in range(36, 61, 6)]
        done = succeed("-q", "train", "--resume", run.folder, "--steps", 61)
        assert (done.out, done.err) == ("", "")


@pytest.mark.parametrize("words", [("--processes", 2), ("--processes=2",)])
def test_processes_train_with_the_same_words(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    monkeypatch.setattr("mdlstm_tk.cli.train._launch", lambda *given: launched.append(given) or 0)
    succeed("train", *words, "--steps", 3)
    assert launched == [(2, ["train", "--steps", "3"])]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with models, an array and an image."""
    write_model(tmp_path / "m.onnx")
    classifier(tmp_path / "c.onnx")
    segmenter(tmp_path / "s.onnx")
    recogniser(tmp_path / "r.onnx")
    np.save(tmp_path / "x.npy", np.eye(8))
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    return tmp_path


def test_standard_streams(place: Path) -> None:
    succeed("infer", "-", "-m", "m.onnx", cwd=place, stdin=b"1,2\n3,4\n")
    succeed("infer", "-", "-m", "m.onnx", "-o", "y.npy", cwd=place, stdin=(place / "x.npy").read_bytes())
    np.testing.assert_array_equal(np.load(place / "y.npy"), 2 * np.eye(8))
    done = succeed("infer", "x.npy", "-m", "m.onnx", "-o", "-", "--format", "json", cwd=place)
    assert json.loads(done.out)[0][0] == 2
    done = succeed("infer", "x.png", "-m", "c.onnx", "--json", cwd=place)
    assert json.loads(done.out)["files"][0]["answers"][0]["label"] == "dög"
    done = succeed("infer", "x.npy", "x.png", "-m", "c.onnx", cwd=place)
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["x.npy", "x.png"]
    Image.new("L", (24, 8)).save(place / "line.png")
    line = ("infer", "line.png", "-m", "r.onnx")
    text = json.loads(succeed(*line, "--json", cwd=place).out)["files"][0]["answers"][0]["text"]
    assert succeed(*line, cwd=place).out.startswith(f"{text}\t0.")
    assert "mdlstm infer" in mdlstm("read", "line.png", "-m", "r.onnx", cwd=place).err
    done = mdlstm("infer", "x.npy", "nix.npy", "-m", "m.onnx", "--json", "--force", cwd=place)
    assert done.code == 1 and ["error" in each for each in json.loads(done.out)["files"]] == [False, True]


def test_messages_of_many_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on the way for each tenth, each failure, and the numbers; each result with -v alone."""
    names = [f"x{k}.npy" for k in range(25)]
    for name in names:
        np.save(place / name, np.eye(8))
    clock = SimpleNamespace(perf_counter=count(3, 2).__next__)  # a file each two seconds
    monkeypatch.setattr("mdlstm_tk.cli.infer.time", clock)
    first, *lines = succeed("infer", *names, "-m", "m.onnx", cwd=place).err.splitlines()
    assert all(line.endswith(" 0.5 files/s") for line in lines[:-1])
    tenths = [f"{-(-25 * k // 10)}/25" for k in range(1, 11)]
    assert first.startswith("m.onnx") and [line.split()[0] for line in lines] == [*tenths, "25"]
    assert lines[-1] == "25 done, 0 failed"
    done = mdlstm("-v", "infer", *names, "nix.npy", "-m", "m.onnx", "--force", cwd=place)
    assert sum(" → " in line for line in done.err.splitlines()) == 25
    assert "failed: there is no file nix.npy\n" in done.err and "25 done, 1 failed\n" in done.err
    done = mdlstm("-q", "infer", *names, "nix.npy", "-m", "m.onnx", "--force", cwd=place)
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 2)
    done = succeed("infer", *names, "-m", "m.onnx", "--skip-existing", cwd=place)
    assert done.err.splitlines()[-1].endswith(": 25")


@pytest.mark.parametrize(
    ("env", "line"), [({}, "PASSIVE True"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE False")]
)
def test_idle_threads_do_not_spin_unless_the_user_says_so(
    env: dict[str, str], line: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    code = "import os; print(os.environ['OMP_WAIT_POLICY'], 'GOMP_SPINCOUNT' in os.environ)"
    (place / "own.py").write_text(code)
    assert succeed("--import", "own.py", "info", "m.onnx", cwd=place, env=env).out.splitlines()[0] == line


@pytest.mark.parametrize("level", [0, 1])
def test_a_bar_is_for_a_person_and_on_stderr(
    level: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "level", level)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.progress(4, 1, "files") as show:
        show(4, "\x1b[2J fast")
    out, err = capsys.readouterr()
    assert out == "" and "\x1b[2J" not in err
    assert ("━" in err) == ("4/4" in err) == ("fast" in err) == (level > 0)


def test_a_closed_pipe_ends_quietly(place: Path) -> None:
    for k in range(300):
        shutil.copy(place / "x.npy", place / f"x{k}.npy")
    command = f"{sys.executable} -m mdlstm_tk infer . -m c.onnx -q -o - | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (1, 1, "")


COMMAND = "from mdlstm_tk.cli.app import main; main(sys.argv[1:])"
INFER = ("infer", "-m", "m.onnx", "--force")


def test_infer_and_info_run_where_neither_torch_nor_onnx_can_be_imported(place: Path) -> None:
    for arguments in ((*INFER, "x.npy"), ("info", "m.onnx"), ("infer", "--help"), ("doctor",)):
        done = python_without((*TRAINING, "scipy"), COMMAND, *arguments, cwd=place)
        assert done.returncode == 0, done.stderr
    assert np.load(place / "x.out.npy").shape == (8, 8)


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        *((TRAINING, words, "train") for words in (("train",), ("export",), ("verify", "m.onnx"))),
        (("onnxruntime",), (*INFER, "x.npy"), "cpu"),
        (("PIL",), (*INFER, "x.png"), "image"),
        (("PIL",), ("infer", "-m", "s.onnx", "x.npy"), "image"),
        (("ray",), (*INFER, "x.npy", "--workers", "1"), "ray"),
    ],
    ids=str,
)
def test_the_command_that_installs_what_is_missing_is_named(
    absent: tuple[str, ...], arguments: tuple[str, ...], extra: str, place: Path
) -> None:
    before = sorted(place.rglob("*"))
    done = python_without(absent, COMMAND, *arguments, cwd=place)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"pip install 'mdlstm-tk[{extra}]'"), done.stderr
    assert "Traceback" not in done.stderr and sorted(place.rglob("*")) == before


def test_the_installation_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {check["name"]: check["state"] for check in json.loads(succeed("doctor", "--json").out)}
    assert "broken" not in states.values()
    assert states["onnxruntime on CPU"] == states["kernels for the CPU"] == "ok"

    def broken(*_: object) -> str:
        raise RuntimeError("no\nlibrary")

    monkeypatch.setattr("mdlstm_tk.installation._run_tiny_model", broken)
    done = mdlstm("doctor")
    assert done.code == 1 and "no library" in done.err.splitlines()[-1]


START = "import sys; from mdlstm_tk.cli.app import main; print('ready', flush=True); main(sys.argv[1:])"
INTERRUPTED = {
    "train": ("train", "--steps", "300", "-o", "new"),
    "export": ("export", "run", "--size", "6x7", "-o", "new.onnx"),
    "infer": ("infer", "matrix.npy", "images", "-m", "scan.onnx", "-o", "results"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", INTERRUPTED)
def test_ctrl_c_at_random_moments_is_one_line(verb: str, trained: Run, tmp_path: Path) -> None:
    from mdlstm_tk.export import export_run

    rng, whole = random.Random(verb), tmp_path / "whole"
    shutil.copytree(trained.folder, whole / "run")
    export_run(Run(whole / "run"), whole / "scan.onnx", form="scan")
    np.save(whole / "matrix.npy", np.zeros((500, 500), np.float32))
    (whole / "images").mkdir()
    for k in range(20):
        np.save(whole / f"images/{k}.npy", np.zeros((90 + k, 90), np.float32))
    begin, duration = time.perf_counter(), 0.0
    for number in range(4):
        place = tmp_path / str(number)
        shutil.copytree(whole, place)
        process = subprocess.Popen(
            [sys.executable, "-c", START, *INTERRUPTED[verb]],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal sends Ctrl-C to all processes of a group
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if number:
            time.sleep(rng.random() * duration)
            os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
        duration = duration or time.perf_counter() - begin
        last = err.splitlines()[-1]
        if process.returncode == -signal.SIGINT:  # it came as Python shut down, after all was done
            assert last.startswith("next:") or " done, " in last, err
        elif number and process.returncode:  # else all was done
            assert (process.returncode, last) == (130, "error: interrupted"), err
        else:
            assert process.returncode == 0, err
        assert "Traceback" not in err and not [*place.rglob("*.mdlstm-tmp")], err
        for path in place.rglob("*.npy"):
            np.load(path)
