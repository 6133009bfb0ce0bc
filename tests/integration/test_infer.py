"""`mdlstm infer`: files and folders in, results and messages out."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm, mdlstm_process
from helpers.infer import Infer
from PIL import Image

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Outcome, Session, batching, inference
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.io.writers import write_arrays
from mdlstm_tk.runtime.jobs import Job

RNG = np.random.default_rng(0)


@pytest.fixture
def infer(model: Path, capfd: pytest.CaptureFixture[str]) -> Infer:
    return Infer(model, capfd)


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "matrix.npy", RNG.random((8, 8)) * 0.1)
    return tmp_path / "matrix.npy"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (3, 8, 8, 1)], ids=str)
def test_each_shape_of_input(shape: tuple[int, ...], infer: Infer, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape))
    assert infer(tmp_path / "x.npy", "-o", tmp_path / "deep/y.npy").code == 0
    assert np.load(tmp_path / "deep/y.npy").shape == shape


def test_stdin_to_stdout(model: Path, matrix: Path) -> None:
    command = [sys.executable, "-m", "mdlstm_tk", "infer", "-", "-m", str(model)]
    done = subprocess.run(command, input=matrix.read_bytes(), capture_output=True, check=True)
    expected = Session(model, "cpu")(np.load(matrix))
    np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout)), expected)
    command += ["--format", "json"]
    done = subprocess.run(command, input=matrix.read_bytes(), capture_output=True, check=True)
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)), expected)


def test_the_model_is_found(model: Path, matrix: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = mdlstm("infer", matrix, "-o", "a.npy", cwd=empty)
    assert done.code == 2
    assert "-m" in done.err
    assert mdlstm("infer", matrix, "-o", "b.npy", cwd=empty, env={"MDLSTM_MODEL": str(model)}).code == 0
    assert mdlstm("infer", matrix, "-o", "c.npy", "-m", model.parent, cwd=empty).code == 0
    (empty / "only.onnx").write_bytes(model.read_bytes())
    assert "only.onnx on cpu" in mdlstm("infer", matrix, "-o", "d.npy", cwd=empty).err
    (empty / "another.onnx").write_bytes(model.read_bytes())
    assert "2 .onnx models" in mdlstm("infer", matrix, "-o", "e.npy", cwd=empty).err


def on_a_terminal(*arguments: object) -> str:
    """What `mdlstm infer` prints on a terminal."""
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "120"}
    command = [sys.executable, "-m", "mdlstm_tk", "infer", *map(str, arguments)]
    subprocess.run(command, stderr=follower, env=environment, check=True)
    os.close(follower)
    printed = os.read(leader, 1 << 16).decode(errors="replace")
    os.close(leader)
    return printed


def test_a_terminal_shows_grids_for_one_file_and_a_bar_for_many(model: Path, matrix: Path) -> None:
    printed = on_a_terminal(matrix, "-m", model)
    assert "input" in printed
    assert "prediction" in printed
    assert "\x1b[48;2;" in printed
    many = ("-m", model, "-o", matrix.parent / "out", "--force")
    printed = on_a_terminal(matrix.parent, *many)
    assert "1/1" in printed and "files/s" in printed
    assert "1/1" not in mdlstm("infer", matrix.parent, *many).err


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with every file type that the 8×8 model takes, and with files that are ignored."""
    folder = tmp_path / "tree"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    for path in ("one.npy", "a/two.npy", ".git/hidden.npy", "a/.hidden.npy", "a/old.out.npy"):
        np.save(folder / path, RNG.random((8, 8)))
    arrays = {
        "file": RNG.random((8, 8)),
        "v": RNG.random((3, 8, 8, 1)),
        "u": RNG.random((8, 8)),
    }  # results keep this order, although arrays of one shape run together
    write_arrays(str(folder / "a/b/z.npz"), dict(arrays), "npz")
    np.savetxt(folder / "a/t.csv", RNG.random((8, 8)), delimiter=",")
    Image.fromarray((RNG.random((8, 8)) * 255).astype(np.uint8)).save(folder / "a/b/i.PNG")
    (folder / "a/notes.txt").touch()
    if os.name == "posix":
        os.mkfifo(folder / "a/pipe.npy")
        (folder / "link").symlink_to(folder)
    return folder


RESULTS = {"one.out.npy", "a/two.out.npy", "a/b/z.out.npz", "a/t.out.npy", "a/b/i.out.npy"}


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on Windows")
def test_links_that_lead_out_of_a_folder_are_left_out(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in (tmp_path / "private.npy", folder / "own.npy"):
        np.save(path, np.eye(8))
    (folder / "inside.npy").symlink_to("own.npy")
    (folder / "outside.npy").symlink_to("../private.npy")
    done = infer(folder, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert names(tmp_path / "out") == {"own.out.npy", "inside.out.npy"}
    assert "outside the folder, left out: 1" in done.err


def test_folders_are_searched_and_their_tree_is_kept(tree: Path, infer: Infer, tmp_path: Path) -> None:
    done = infer(tree, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "1" in done.err.splitlines()[0]  # notes.txt
    assert "5 done, 0 skipped, 0 failed" in done.err
    assert names(tmp_path / "out") == RESULTS
    session = Session(infer.model, "cpu")
    for source in ("one.npy", "a/b/z.npz", "a/t.csv", "a/b/i.PNG"):
        x = read_input(str(tree / source)).arrays_for(session.metadata)
        stem = (tmp_path / "out" / source).with_suffix("")
        y = read_input(str(next(stem.parent.glob(stem.name + ".out.*")))).arrays
        assert list(y) == list(x)
        for name in x:
            np.testing.assert_allclose(y[name], session(x[name]), atol=1e-6, strict=True)
    before = names(tree)
    assert infer(tree).code == 0
    assert names(tree) - before == RESULTS
    assert infer(tree, "--force").code == 0
    assert len(names(tree)) == len(before) + len(RESULTS)  # results are not taken for inputs


def test_the_output_folder_is_not_searched_for_inputs(tree: Path, infer: Infer) -> None:
    np.save(tree / "a/plain.npy", np.zeros((8, 8)))
    assert infer(tree, "-o", tree / "a").code == 0
    assert not (tree / "a/a").exists()


def test_skip_existing_resumes(tree: Path, infer: Infer) -> None:
    assert infer(tree).code == 0
    (tree / "one.out.npy").write_bytes(b"kept")
    (tree / "a/two.out.npy").unlink()
    assert "one.out.npy exists" in infer(tree).err
    done = infer(tree, "--skip-existing")
    assert done.code == 0
    assert "1 done, 4 skipped, 0 failed" in done.err
    assert (tree / "one.out.npy").read_bytes() == b"kept"
    assert (tree / "a/two.out.npy").exists()
    assert "5 results" in infer(tree, "--skip-existing").err
    assert infer(tree, "--force", "-q").err == ""
    assert (tree / "one.out.npy").read_bytes() != b"kept"


@pytest.mark.parametrize("form", ["any", "sizes"])
def test_one_model_for_many_grids_runs_a_mixed_folder(form: str, infer: Infer, tmp_path: Path) -> None:
    options: dict[str, Any] = (
        {"grid": None, "form": "scan"} if form == "any" else {"grid": (8, 8), "padded": True}
    )
    infer.model = export_onnx(MDLSTM(1, 3), tmp_path / "m.onnx", **options).path
    shapes = [(1, 1), (1, 7), (7, 1), (5, 8), (8, 5), (2, 5, 8, 1)] * 3
    (tmp_path / "in").mkdir()
    for number, shape in enumerate(shapes):
        np.save(tmp_path / f"in/{number:02}.npy", RNG.random(shape))
    done = infer(tmp_path / "in", "-o", tmp_path / "out", "--batch-size", "4")
    assert done.code == 0, done.err
    session = Session(infer.model, "cpu")
    for path in (tmp_path / "in").iterdir():
        y = np.load(tmp_path / "out" / f"{path.stem}.out.npy")
        np.testing.assert_allclose(y, session(np.load(path)), atol=1e-6, strict=True)


def test_ctrl_c_reports_how_to_resume(infer: Infer, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(session: Session, jobs: list[Job], *limits: object) -> Iterator[Outcome]:
        yield Outcome(jobs[0], None)
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "infer_files", interrupted)
    done = infer(tree)
    assert done.code == 130
    assert "1 done" in done.err
    assert "4 to do" in done.err and "--skip-existing" in done.err


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_does_what_the_local_engine_does(model: Path, infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(batching.WINDOW + 9):  # two windows, for two workers
        np.save(tmp_path / f"in/{n:03}.npy", RNG.random((8, 8) if n % 3 else (2, 8, 8, 1)))
    (tmp_path / "in/007.npy").write_bytes(b"broken")
    (tmp_path / "in/008.npy").unlink()
    Image.effect_noise((8, 8), 50).convert("RGB").save(tmp_path / "in/008.bmp")
    np.save(tmp_path / "in/260.npy", np.zeros((5, 7)))
    local = infer(tmp_path / "in", "-o", tmp_path / "local")
    ray = mdlstm_process(
        *("infer", tmp_path / "in", "-o", tmp_path / "ray", "-m", model, "--device", "cpu"),
        *("--engine", "ray", "--workers", "2"),
    )
    assert (local.code, ray.code) == (1, 1)
    assert len(names(tmp_path / "local")) == batching.WINDOW + 7
    assert names(tmp_path / "local") == names(tmp_path / "ray")
    for name in names(tmp_path / "local"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes(), name

    def messages(result: Result) -> list[str]:
        return [line for line in result.err.splitlines() if "files/s" not in line]

    assert messages(local) == messages(ray)
