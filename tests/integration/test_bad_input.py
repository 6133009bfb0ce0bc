"""Bad arguments and files: one line of error, the documented exit code, and no file changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mdlstm_tk.cli import main
from mdlstm_tk.training import Run

Maker = Callable[[Path], None]


def saved(array: object) -> Maker:
    return lambda path: np.save(path, array, allow_pickle=True)


def with_nan() -> np.ndarray:
    matrix = np.zeros((8, 8))
    matrix[3, 4] = np.nan
    return matrix


def truncated(path: Path) -> None:
    np.save(path, np.zeros((8, 8)))
    path.write_bytes(path.read_bytes()[:200])


def broken_header(path: Path) -> None:
    np.save(path, np.zeros((8, 8)))
    path.write_bytes(path.read_bytes().replace(b"(8, 8)", b"(8,9**"))


ARRAYS: dict[str, tuple[Maker | None, str]] = {
    "missing": (None, "matrix.npy"),
    "text": (lambda path: path.write_text("1 2 3\n"), ".npy array"),
    "empty file": (lambda path: path.touch(), ".npy array"),
    "truncated": (truncated, ".npy array"),
    "broken header": (broken_header, ".npy array"),
    "npz": (lambda path: np.savez(path.open("wb"), x=np.zeros((8, 8))), ".npy array"),
    "pickle": (saved({"a": 1}), "Python objects"),
    "objects": (saved(np.array([[None]])), "Python objects"),
    "strings": (saved(np.array([["a"]])), "real numbers"),
    "complex": (saved(np.zeros((8, 8), complex)), "complex128"),
    "structured": (saved(np.zeros((8, 8), [("a", "f4")])), "real numbers"),
    "NaN": (saved(with_nan()), "1 NaN"),
    "infinite": (saved(np.full((8, 8), np.inf)), "64 NaN"),
    "too large": (saved(np.full((8, 8), 1e300)), "float32 cannot hold"),
    "no rows": (saved(np.zeros((0, 8))), "(0, 8)"),
    "no batch": (saved(np.zeros((0, 8, 8, 1))), "(0, 8, 8, 1)"),
    "scalar": (saved(np.float32(1)), "(H, W)"),
    "1-D": (saved(np.zeros(8)), "(H, W)"),
    "5-D": (saved(np.zeros((1, 1, 8, 8, 1))), "(H, W)"),
    "channels": (saved(np.zeros((8, 8, 3))), "3 channels"),
    "grid": (saved(np.zeros((5, 7))), "--size 5x7"),
    "folder": (lambda path: path.mkdir(), "matrix.npy"),
}


class Call:
    """Calls `mdlstm` in this process, from a folder, and checks how it fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def fails(self, *arguments: object, cwd: Path, code: int, message: str) -> None:
        self.monkeypatch.chdir(cwd)
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        line = self.capfd.readouterr().err.strip()
        assert ended.value.code == code, line
        check(line, message)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    return Call(monkeypatch, capfd)


def check(line: str, message: str) -> None:
    """Check that the last line is the only error and holds the value that matters."""
    assert "Traceback" not in line
    errors = [text for text in line.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, line
    assert line.splitlines()[-1] == errors[0]
    assert message in errors[0], errors[0]


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case: str, model: Path, tmp_path: Path, call: Call) -> None:
    maker, message = ARRAYS[case]
    if maker is not None:
        maker(tmp_path / "matrix.npy")
    call.fails("infer", "matrix.npy", "-m", model, cwd=tmp_path, code=2, message=message)
    assert not (tmp_path / "matrix.out.npy").exists()


def text_model(path: Path, model: Path) -> None:
    path.write_text("not a model")


def empty_model(path: Path, model: Path) -> None:
    path.touch()


def cut_model(path: Path, model: Path) -> None:
    path.write_bytes(model.read_bytes()[:-500])


def foreign_model(path: Path, model: Path) -> None:
    proto = onnx.load(model)
    proto.ClearField("metadata_props")
    path.write_bytes(proto.SerializeToString())


def damaged_metadata(path: Path, model: Path) -> None:
    proto = onnx.load(model)
    next(p for p in proto.metadata_props if p.key == "mdlstm.grid").value = "{"
    path.write_bytes(proto.SerializeToString())


MODELS = {
    "text": (text_model, "bad.onnx"),
    "empty": (empty_model, "bad.onnx"),
    "cut off": (cut_model, "bad.onnx"),
    "foreign": (foreign_model, "was not exported"),
    "damaged metadata": (damaged_metadata, "metadata"),
    "missing": (None, "bad.onnx"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str, model: Path, tmp_path: Path, call: Call) -> None:
    maker, message = MODELS[case]
    if maker is not None:
        maker(tmp_path / "bad.onnx", model)
    np.save(tmp_path / "matrix.npy", np.zeros((8, 8)))
    call.fails("infer", "matrix.npy", "-m", "bad.onnx", cwd=tmp_path, code=2, message=message)
    call.fails("info", "bad.onnx", cwd=tmp_path, code=2, message=message)
    assert not (tmp_path / "matrix.out.npy").exists()


COMMANDS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown verb": (("trian",), 2, "'train'"),
    "unknown option": (("train", "--stepz", "3"), 2, "'--steps'"),
    "steps in words": (("train", "--steps", "many"), 2, "--steps"),
    "no steps": (("train", "--steps", "0"), 2, "steps"),
    "rate NaN": (("train", "--lr", "nan"), 2, "--lr"),
    "rate infinite": (("train", "--lr", "inf"), 2, "lr"),
    "rate beyond float32": (("train", "--lr", "1e300"), 2, "lr"),
    "setting NaN": (("train", "--set", "clip=nan"), 2, "clip"),
    "huge seed": (("train", "--seed", "9" * 23), 2, "seed"),
    "huge hidden": (("train", "--hidden", "1000000000"), 2, "1000000"),
    "many workers": (("train", "--set", "workers=100000"), 2, "256"),
    "emoji": (("train", "--model", "no.py:x:"), 2, "no.py:x:"),
    "one seed to compare": (("compare", "--set", "seed=3"), 2, "seed"),
    "one model to compare": (
        ("compare", "--set", "model=snake"),
        2,
        "model",
    ),
    "unknown model": (("train", "--model", "snak"), 2, "'snake'"),
    "file to import gone": (("train", "--import", "no.py"), 2, "no.py"),
    "unknown cell": (("train", "--cell", "grave"), 2, "'graves'"),
    "cell unlike all others": (
        ("train", "--cell", "xyz"),
        2,
        "leaky, slstm",
    ),
    "cell for a snake": (("train", "--model", "snake", "--cell", "leaky"), 2, "cell"),
    "unknown device": (("train", "--device", "tpu"), 2, "--device"),
    "absent device": (("train", "--device", "cuda:9"), 4, "'cuda:9'"),
    "size 0": (("train", "--size", "0"), 2, "at least 1"),
    "size 1": (("train", "--size", "1"), 2, "1x1"),
    "size 2x9": (("train", "--size", "2x9"), 2, "2x9"),
    "size in words": (("train", "--size", "big"), 2, "'big'"),
    "3-D size": (("train", "--size", "8x8x8"), 2, "8x8x8"),
    "no config": (("train", "-c", "no.toml"), 2, "no.toml"),
    "bad config": (("train", "-c", "bad.toml"), 2, "bad.toml"),
    "config with a typo": (("train", "-c", "typo.toml"), 2, "'hidden'"),
    "unknown task": (("train", "--task", "digit"), 2, "'digits'"),
    "data without task": (("train", "--data", "."), 2, "task"),
    "data gone": (("train", "--data", "no", "--task", "classify"), 2, "folder no, which --data"),
    "bad precision": (("train", "--precision", "int8"), 2, "int8"),
    "bad share": (("train", "--set", "dropout=1"), 2, "dropout"),
    "bad windows": (("train", "--windows", "2,x"), 2, "--windows"),
    "set without value": (("train", "--set", "steps"), 2, "'steps'"),
    "set unknown": (("train", "--set", "hiden=1"), 2, "'hidden'"),
    "run folder not empty": (("train", "-o", "full"), 2, "full"),
    "run folder a file": (("train", "-o", "bad.toml"), 2, "bad.toml"),
    "resume nothing": (("train", "--resume", "none"), 2, "none"),
    "resume no run": (("train", "--resume", "full"), 2, "full"),
    "resume damaged": (("train", "--resume", "cut", "--steps", "999"), 2, "last.safetensors"),
    "export without runs": (("export",), 2, "runs/"),
    "export no run": (("export", "none"), 2, "none"),
    "export without checkpoint": (("export", "full"), 2, "full"),
    "export damaged": (("export", "cut"), 2, "best.safetensors"),
    "export size 0": (("export", "run", "--size", "0"), 2, "at least 1"),
    "export no such form": (("export", "run", "-o", "m.onnx", "--form", "scam"), 2, "'scan'"),
    "export no such dtype": (("export", "run", "-o", "m.onnx", "--dtype", "int4"), 2, "--dtype"),
    "export size twice": (("export", "run", "--size", "3", "--size", "3x3"), 2, "3x3"),
    "export exists": (("export", "run"), 2, "model-8x8.onnx"),
    "export two to one": (
        ("export", "run", "--size", "3", "--size", "4", "-o", "m.onnx"),
        2,
        "folder",
    ),
    "report without runs": (("report",), 2, "runs/"),
    "report no run": (("report", "none"), 2, "none"),
    "report without checkpoint": (("report", "full"), 2, "full"),
    "report damaged": (("report", "cut"), 2, "best.safetensors"),
    "report exists": (("report", "run", "-o", "ok.npy"), 2, "ok.npy"),
    "report onto a folder": (("report", "run", "-o", "full"), 2, "full is a folder"),
    "verify no model": (("verify", "no.onnx"), 2, "no.onnx"),
    "verify no run": (
        ("verify", "run/model-8x8.onnx", "--against", "none"),
        2,
        "none",
    ),
    "info nothing": (("info", "none"), 2, "none"),
    "info no run": (("info", "full"), 2, "full"),
    "infer nothing": (("infer",), 2, "FILE"),
    "infer without model": (("infer", "ok.npy"), 2, "-m"),
    "infer exists": (
        ("infer", "ok.npy", "-m", "run", "-o", "bad.toml", "--format", "npy"),
        2,
        "bad.toml",
    ),
    "infer into unsupported type": (
        ("infer", "ok.npy", "-m", "run", "-o", "y.jpg"),
        2,
        "y.jpg",
    ),
    "infer over its input": (
        ("infer", "ok.npy", "-m", "run", "-o", "full/../ok.npy", "--force"),
        2,
        "full/../ok.npy",
    ),
    "infer two to one": (("infer", "ok.npy", "ok.csv", "-m", "run"), 2, "ok.out.npy"),
    "infer unsupported type": (("infer", "bad.toml", "-m", "run"), 2, "'.toml'"),
    "infer unknown format": (("infer", "ok.npy", "-m", "run", "--format", "pgn"), 2, "'png'"),
    "infer folder to stdout": (("infer", "run", "-m", "run", "-o", "-"), 2, "-o -"),
    "infer useless folder": (
        ("infer", "full", "-m", "run"),
        2,
        "full, only 1",
    ),
    "infer stdin and more": (("infer", "-", "ok.npy", "-m", "run"), 2, "stdin"),
    "infer keep and replace": (("infer", "ok.npy", "--skip-existing", "--force"), 2, "--skip-existing"),
    "infer no rows": (("infer", "ok.npy", "-m", "run", "--batch-size", "0"), 2, "--batch-size"),
    "infer too large": (("infer", "ok.npy", "-m", "run", "--max-bytes", "99"), 2, "99 bytes"),
    "infer local workers": (("infer", "ok.npy", "--workers", "2"), 2, "--workers"),
    "infer stdin by ray": (("infer", "-", "--engine", "ray"), 2, "--engine ray"),
    "infer onto a folder": (
        ("infer", "ok.npy", "ok.npy", "-m", "run", "-o", "d"),
        2,
        "ok.out.npy",
    ),
    "infer unknown device": (("infer", "ok.npy", "-m", "run", "--device", "gpu"), 2, "--device"),
    "infer negative threads": (("infer", "ok.npy", "-m", "run", "--threads", "-1"), 2, "--threads"),
    "compare one step": (("compare", "--seeds", "1", "--steps", "5"), 2, "20"),
    "compare size": (("compare", "--size", "2"), 2, "2x2"),
    "unknown compared task": (("compare", "--task", "texture"), 2, "'textures'"),
    "unknown schedule": (("train", "--schedule", "cosin"), 2, "'cosine'"),
    "bad windows setting": (("train", "--set", "windows=2,x"), 2, "'x'"),
    "original settings elsewhere": (("compare", "--task", "digits", "--original-settings"), 2, "digits"),
    "quiet and verbose": (("info", "run", "-q", "-v"), 2, "-q and -v"),
    "export two places": (("export", "run", "-o", "m.onnx", "--web", "page"), 2, "--web"),
    "infer json and stdout": (("infer", "ok.npy", "-m", "run", "-o", "-", "--json"), 2, "--json"),
    "infer unknown engine": (("infer", "ok.npy", "-m", "run", "--engine", "rey"), 2, "'ray'"),
}


@pytest.fixture
def workspace(trained: Run, tmp_path: Path) -> Path:
    """A folder with a good run, a damaged one, a folder without a run, and files of several types."""
    shutil.copytree(trained.folder, tmp_path / "run")
    (tmp_path / "cut").mkdir()
    for name in ("best.safetensors", "last.safetensors"):
        (tmp_path / "cut" / name).write_bytes((trained.folder / name).read_bytes()[:5000])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "bad.toml").write_text("steps = = 3")
    (tmp_path / "typo.toml").write_text("hiden = 3")
    np.save(tmp_path / "ok.npy", np.zeros((8, 8)))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(case: str, workspace: Path, call: Call) -> None:
    arguments, code, message = COMMANDS[case]
    before = contents(workspace)
    call.fails(*arguments, cwd=workspace, code=code, message=message)
    assert contents(workspace) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_exit_code_4(workspace: Path, call: Call) -> None:
    arguments = ("infer", "ok.npy", "-m", "run", "--device", "cuda")
    call.fails(*arguments, cwd=workspace, code=4, message="'cuda'")
    assert not (workspace / "ok.out.npy").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "-o", "locked/run"),
        ("export", "run", "-o", "locked/m.onnx"),
        ("report", "run", "-o", "locked/report.html"),
        ("infer", "ok.npy", "-m", "run", "-o", "locked/y.npy"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_folders_that_cannot_be_written(arguments: tuple[str, ...], workspace: Path, call: Call) -> None:
    (workspace / "locked").mkdir(mode=0o555)
    if os.access(workspace / "locked", os.W_OK):  # root ignores the mode, so use a file instead
        (workspace / "locked").rmdir()
        (workspace / "locked").touch()
    before = contents(workspace)
    # A file where `train` and `export` want a folder is a mistake in their arguments.
    code = 2 if (workspace / "locked").is_file() and arguments[0] in ("train", "export") else 1
    call.fails(*arguments, cwd=workspace, code=code, message="locked")
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_never_replaced(model: Path, call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.zeros((8, 8)))
    os.mkfifo(tmp_path / "pipe")
    call.fails(
        "infer", "matrix.npy", "-m", model, "-o", "pipe", "--force",
        cwd=tmp_path, code=2, message="pipe",
    )  # fmt: skip
    assert (tmp_path / "pipe").is_fifo()


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
