"""The command line on good input: what lies where afterwards, and what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkout import ROOT
from helpers.command import mdlstm, mdlstm_process, succeed

from mdlstm_tk.cli import info
from mdlstm_tk.cli.progress import next_of_run
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.kinds import Kind, all_kinds
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Checkpoint, Run, TrainConfig, load_checkpoint
from mdlstm_tk.training.run_state import RunState

QUICK = ("--steps", "30", "--hidden", "4", "--batch-size", "4")


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "matrix.npy", np.random.default_rng(0).random((8, 8)) * 0.1)
    return tmp_path / "matrix.npy"


def test_all_verbs_propose_the_same_export_of_own_data(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((12, 4, 4))
    np.savez(tmp_path / "d.npz", x=x, y=x)
    trained = succeed("train", "--data", "d.npz", "--task", "grid", *QUICK, "-o", "run", cwd=tmp_path)
    for done in (trained, succeed("info", "run", cwd=tmp_path)):
        assert done.err.splitlines()[-1] == "next: mdlstm export run --form scan"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("resize", "32x*", "32x*"), ("resize", [32, None], "32x*"), ("grid", None, "any")],
)
def test_info_shows_sizes_of_runs_and_of_models(name: str, value: Any, text: str) -> None:
    assert info._text(name, value) == text


def test_all_verbs_propose_to_draw_with_a_density_model(tmp_path: Path) -> None:
    trained = succeed("train", "--task", "digits-binary", "--steps", "1", "--hidden", "2", cwd=tmp_path)
    folder = next((tmp_path / "runs").iterdir()).relative_to(tmp_path)
    for done in (trained, *(succeed(verb, folder, cwd=tmp_path) for verb in ("info", "report"))):
        assert done.err.splitlines()[-1] == f"next: mdlstm sample {folder}"


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.name)
def test_the_next_command_of_a_run_is_that_of_its_kind(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(data: str, size: tuple[int, ...], mixed_sizes: bool = False) -> str:
        count = 3
        names = tuple(map(str, range(kind.name_count(count))))
        spec = TaskSpec("mine", kind.name, 1, count, size, names, mixed_sizes=mixed_sizes)
        checkpoint = Checkpoint(TrainConfig(data=data), spec, RunState(), {})
        monkeypatch.setattr("mdlstm_tk.training.load_checkpoint", lambda path: checkpoint)
        return next_of_run(Run(Path("a run")))

    if kind.name == "density":
        assert command("d.npz", (8, 8)) == command("", (8, 8)) == "mdlstm sample 'a run'"
        return
    assert command("", (8, 9)) == "mdlstm export 'a run' --size 8x9"
    for free in (command("d.npz", (8, 9)), command("", (8, 9), mixed_sizes=True), command("", (8,))):
        assert free == "mdlstm export 'a run' --form scan"


def test_the_main_job_with_bare_verbs(tmp_path: Path, matrix: Path) -> None:
    done = succeed("train", *QUICK, cwd=tmp_path)
    assert done.out == ""
    assert "30/30" in done.err
    assert "next: mdlstm export runs/md-8x8 --size 8x8" in done.err
    done = succeed("export", "--size", "8", "--size", "5x7", cwd=tmp_path)
    assert "runs/md-8x8/model-5x7.onnx: x (N, 5, 7, 1) → y (N, 5, 7, 1)" in done.err
    done = succeed("infer", "matrix.npy", cwd=tmp_path)
    assert "model-8x8.onnx on cpu (CPUExecutionProvider)" in done.err
    expected = Session(tmp_path / "runs/md-8x8/model-8x8.onnx", "cpu")(np.load(matrix))
    np.testing.assert_array_equal(np.load(tmp_path / "matrix.out.npy"), expected)
    np.save(tmp_path / "other.npy", np.zeros((5, 7)))
    assert "model-5x7.onnx on cpu" in mdlstm("infer", "other.npy", cwd=tmp_path).err
    done = succeed("verify", "runs/md-8x8/model-5x7.onnx", "--against", "runs/md-8x8", cwd=tmp_path)
    assert all(name in done.out for name in ("torch, float32", "ONNX Runtime, cpu", "reference evaluator"))
    done = mdlstm("train", *QUICK, "-q", cwd=tmp_path)
    assert (tmp_path / "runs/md-8x8-2/last.safetensors").exists()


def test_settings_come_from_file_flags_and_set(tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text('task = "digits"\nbatch_size = 2\nhidden = 3\nsteps = 9\n')
    flags = ("--steps", "4", "--schedule", "cosine", "--windows", "2x2,1x2", "--clip", "2")
    arguments = ("-c", "cfg.toml", "--set", "hidden=5", *flags, "--dropout", "0.25", "-o", "a")
    succeed("train", *arguments, cwd=tmp_path)
    config = load_checkpoint(tmp_path / "a/last.safetensors").config
    assert (config.task, config.batch_size, config.hidden, config.steps) == ("digits", 2, 5, 4)
    assert (config.schedule, config.windows, config.clip, config.dropout) == ("cosine", "2x2,1x2", 2, 0.25)
    succeed("train", "--resume", "a", "--steps", "6", cwd=tmp_path)
    assert len(Run(tmp_path / "a").read_metrics()) == 6


def test_ctrl_c_leaves_a_checkpoint_to_continue_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mdlstm_tk", "train", "--steps", "100000", "-o", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run/best.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "mdlstm train --resume run" in err
    assert "Traceback" not in err
    step = load_checkpoint(tmp_path / "run/last.safetensors").step
    assert step == len(Run(tmp_path / "run").read_metrics()) >= 50
    assert (tmp_path / "run/curves.png").exists()


def test_info_and_json(trained: Run, model: Path) -> None:
    about = json.loads(mdlstm("info", model, "--json").out)
    assert (about["grid"], about["model"]) == ([8, 8], "md")
    spec = json.loads(mdlstm("info", trained.folder, "--json").out)
    assert (spec["steps_done"], spec["exports"]) == (150, ["model-8x8.onnx"])
    assert "parameters" in mdlstm("info", trained.folder).out
    results = json.loads(mdlstm("verify", model, "--json").out)
    assert all(case["passed"] for cases in results.values() for case in cases.values())


def test_compare_on_the_diagonal(tmp_path: Path) -> None:
    done = succeed("compare", "--seeds", "1", "--steps", "20", "--size", "4", "--json", cwd=tmp_path)
    assert set(json.loads(done.out)) == {"md", "snake", "horizontal"}
    assert (tmp_path / "runs/compare/relevant.png").exists()


@pytest.mark.usefixtures("fresh_registries")
def test_compare_on_a_task_gives_all_networks_as_many_parameters(tmp_path: Path) -> None:
    arguments = ("--task", "digits", "--seeds", "2", "--steps", "2", "--set", "hidden=4")
    rivals = ("--import", ROOT / "benchmarks/rival_networks.py")
    done = succeed("compare", *arguments, *rivals, "--json", cwd=tmp_path)
    results = json.loads(done.out)
    assert list(results) == ["md", "horizontal", "snake", "1-NN", "RBF-SVM"]
    assert all(len(entry["errors"]["error"]) == 2 for entry in results.values())
    assert max(results["1-NN"]["errors"]["error"]) < 0.04
    sizes = [results[model]["parameters"] for model in ("md", "horizontal", "snake")]
    assert max(sizes) < 1.2 * min(sizes)
    folder = tmp_path / "runs/compare-digits"
    assert all((folder / name).exists() for name in ("loss.png", "snake-1/prediction.png"))


def test_a_task_has_its_own_defaults_and_its_run_its_name(tmp_path: Path) -> None:
    arguments = ("--task", "digit-strings", "--hidden", "3", "--steps", "2", "--batch-size", "2")
    done = succeed("train", *arguments, "--set", "evaluate_every=1", cwd=tmp_path)
    run = Run(tmp_path / "runs/digit-strings-md-12x88")
    config = load_checkpoint(run.last).config
    assert (config.schedule, config.hidden, config.clip) == ("cosine", 3, 1.0)
    assert "character_error" in done.err


def test_demo_does_the_whole_job(tmp_path: Path) -> None:
    done = succeed("demo", "--steps", "60", cwd=tmp_path)
    names = {path.name for path in (tmp_path / "runs/demo").iterdir()}
    assert {"model-8x8.onnx", "model-32x32.onnx", "matrix.out.npy", "curves.png", "prediction.png"} <= names
    assert "runs/demo/curves.png" in done.err


def test_version_and_help() -> None:
    assert mdlstm_process("--version").out.startswith("mdlstm-tk ")
    assert mdlstm().out == mdlstm("--help").out != ""


@pytest.mark.skipif(os.name != "posix", reason="Windows removes no folder that a process is in")
def test_the_current_folder_may_be_gone(tmp_path: Path) -> None:
    command = f"cd '{tmp_path}' && rmdir '{tmp_path}' && exec '{sys.executable}' -m mdlstm_tk --version"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("mdlstm-tk") and not done.stderr


def test_train_export_and_report_print_json(trained: Run, matrix: Path) -> None:
    folder = matrix.parent
    done = mdlstm("train", *QUICK, "--json", "-q", cwd=folder)
    assert done.err == ""
    result = json.loads(done.out)
    assert (result["run"], result["step"]) == ("runs/md-8x8", 30)
    assert result["errors"]["relevant"] > 0
    done = mdlstm("export", trained.folder, "--size", "4", "-o", folder / "m.onnx", "--json")
    (report,) = json.loads(done.out)
    assert report["grid"] == [4, 4]
    assert report["bytes"] == (folder / "m.onnx").stat().st_size
    done = mdlstm("report", trained.folder, "--json", "-o", folder / "page.html")
    assert json.loads(done.out)["bytes"] == (folder / "page.html").stat().st_size


def test_infer_warns_if_the_newest_run_has_no_export(trained: Run, matrix: Path) -> None:
    runs = matrix.parent / "runs"
    shutil.copytree(trained.folder, runs / "old")
    shutil.copytree(trained.folder, runs / "new", ignore=shutil.ignore_patterns("*.onnx"))
    os.utime(runs / "old/config.toml", (1, 1))
    done = succeed("infer", "matrix.npy", cwd=matrix.parent)
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert "runs/new" in warning
    assert "runs/old/model-8x8.onnx" in done.err
    done = mdlstm("infer", "matrix.npy", "-m", "runs/old", "--force", cwd=matrix.parent)
    assert "warning" not in done.err


def test_forms_and_types_of_an_export(trained: Run, tmp_path: Path) -> None:
    done = succeed("export", trained.folder, "--form", "scan", "--padded", "-o", tmp_path)
    assert "model-any.onnx: x (N, H, W, 1) → y (N, H, W, 1), scan" in done.err
    done = mdlstm("info", "model-any.onnx", cwd=tmp_path)
    assert re.search(r"grid +any", done.out)
    assert re.search(r"inputs +x, sizes", done.out)
    options = ("--size", "6", "--dtype", "float16", "--json")
    done = succeed("export", trained.folder, *options, "-o", tmp_path / "m.onnx")
    (report,) = json.loads(done.out)
    assert 1e-5 < report["max_abs"] < 5e-3
