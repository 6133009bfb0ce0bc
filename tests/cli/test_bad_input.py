"""Bad arguments and files: one line of error, the documented exit code, and no file changed.

What the library refuses is tested there; here each verb passes such an error on, and the options are read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm

from mdlstm_tk.training import Run


def check_fails(*arguments: object, cwd: Path, code: int, message: str) -> None:
    """A call fails with this exit code, and its last line is the only error and holds the message."""
    done = mdlstm(*arguments, cwd=cwd)
    assert done.code == code, done.err
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and done.err.endswith(errors[0] + "\n"), done.err
    assert message in errors[0]


COMMANDS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown verb": (("trian",), 2, "'train'"),
    "unknown option": (("train", "--stepz", "3"), 2, "--steps"),
    "unknown choice": (("export", "run", "--form", "scam"), 2, "'scan'"),
    "a number below its bound": (("infer", "ok.npy", "--batch-size", "0"), 2, "--batch-size"),
    "unknown device": (("infer", "ok.npy", "--device", "gpu"), 2, "auto, cpu, cuda or cuda:N, got 'gpu'"),
    "device 01": (("infer", "ok.npy", "--device", "cuda:01"), 2, "cuda or cuda:N, got 'cuda:01'"),
    "a bad size": (("export", "run", "--size", "big"), 2, "--size': size must be written like 8 or 8x12"),
    "no file": (("infer",), 2, "FILE"),
    "quiet and verbose": (("info", "run", "-q", "-v"), 2, "-q and -v"),
    "file to import gone, before the verb": (("--import", "no.py", "train"), 2, "no.py"),
    "file to import no Python": (("train", "--import", "full/notes.txt"), 2, "notes.txt"),
    "train, unknown task": (("train", "--task", "digit"), 2, "'digits'"),
    "train, bad option": (("train", "--lr", "nan"), 2, "lr must be a number above 0"),
    "train, bad setting": (("train", "--set", "clip=nan"), 2, "--set: clip must be"),
    "train, setting without value": (("train", "--set", "steps"), 2, "'steps'"),
    "train, setting without name": (("train", "--set", "=3"), 2, "key=value"),
    "train, bad config": (("train", "-c", "bad.toml"), 2, "bad.toml"),
    "train, absent device": (("train", "--device", "cuda:9"), 4, "'cuda:9'"),
    "train, folder not empty": (("train", "-o", "full"), 2, "full"),
    "train, a file for a folder": (("train", "-o", "ok.npy/run"), 2, "ok.npy"),
    "train, resume elsewhere": (("train", "--resume", "run", "-o", "run"), 2, "--resume"),
    "compare, one seed": (("compare", "--set", "seed=3"), 2, "seed"),
    "compare, one step": (("compare", "--seeds", "1", "--steps", "5"), 2, "20"),
    "compare, original settings": (("compare", "--task", "digits", "--original-settings"), 2, "digits"),
    "export without runs": (("export",), 2, "runs/"),
    "export, no run": (("export", "none"), 2, "none"),
    "export, damaged": (("export", "cut"), 2, "best.safetensors"),
    "export, exists": (("export", "run"), 2, "--force"),
    "export, two places": (("export", "run", "-o", "m.onnx", "--web", "page"), 2, "--web"),
    "export, data of no page": (("export", "run", "--data", "x.npz"), 2, "--web DIR"),
    "report, exists": (("report", "run", "-o", "ok.npy"), 2, "ok.npy"),
    "report, a file for a folder": (("report", "run", "-o", "ok.npy/report.html"), 1, "ok.npy"),
    "verify, no model": (("verify", "no.onnx"), 2, "no.onnx"),
    "info, nothing": (("info", "none"), 2, "none"),
    "info, no run": (("info", "full"), 2, "full"),
    "sample, no size": (("sample", "run", "--size", "2x3x4"), 2, "a height and a width"),
    "infer, not a model": (("infer", "ok.npy", "-m", "cut/bad.onnx"), 2, "bad.onnx"),
    "infer without model": (("infer", "ok.npy"), 2, "-m"),
    "infer, bad array": (("infer", "bad.npy", "-m", "run"), 2, "1 NaN"),
    "infer over its input": (("infer", "ok.npy", "-m", "run", "-o", "full/../ok.npy"), 2, "overwrite"),
}


@pytest.fixture(scope="module")
def workspace(trained: Run, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good run, a damaged one, a folder without a run, and files of several types."""
    folder = tmp_path_factory.mktemp("workspace")
    assert model.parent == trained.folder  # the run that is copied holds a model
    shutil.copytree(trained.folder, folder / "run")
    (folder / "cut").mkdir()
    for name in ("best.safetensors", "last.safetensors"):
        (folder / "cut" / name).write_bytes((trained.folder / name).read_bytes()[:5000])
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").touch()
    (folder / "bad.toml").write_text("steps = = 3")
    (folder / "cut" / "bad.onnx").write_text("not a model")
    np.save(folder / "ok.npy", np.zeros((8, 8)))
    np.save(folder / "bad.npy", np.diag([np.nan, *range(7)]))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(case: str, workspace: Path) -> None:
    arguments, code, message = COMMANDS[case]
    before = contents(workspace)
    check_fails(*arguments, cwd=workspace, code=code, message=message)
    assert contents(workspace) == before


def test_a_closed_pipe_is_no_traceback(model: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "mdlstm_tk", "info", str(model), "--json"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_closed_streams_are_no_traceback(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.zeros((8, 8)))
    mdlstm = f"{sys.executable} -m mdlstm_tk"
    for command, code in (
        (f"{mdlstm} infer matrix.npy -m {model} -o - >&-", 1),
        (f"{mdlstm} info {model} >&-", 1),
        (f"{mdlstm} infer matrix.npy -m {model} >&-", 0),
        (f"{mdlstm} infer gone.npy -m {model} 2>&-", 2),
    ):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (command, done.stderr)
        assert "Traceback" not in done.stderr
