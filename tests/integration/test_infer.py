"""`mdlstm infer`: which files it takes, what it makes of each, and what it does when one is bad."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm
from PIL import Image
from test_runtime import python_without

from mdlstm_tk import MDLSTM
from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Outcome, Session, batching, inference
from mdlstm_tk.runtime.io.formats import read_arrays, write_arrays
from mdlstm_tk.runtime.jobs import Job, plan_jobs

RNG = np.random.default_rng(0)


class Infer:
    """Calls `mdlstm infer` with a model in this process."""

    def __init__(self, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.model, self.capfd = model, capfd

    def __call__(self, *arguments: object) -> Result:
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["infer", *map(str, arguments), "-m", str(self.model), "--device", "cpu"])
        shown = self.capfd.readouterr()
        assert "Traceback" not in shown.err
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, shown.out, shown.err)


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
def test_all_three_shapes(shape: tuple[int, ...], infer: Infer, tmp_path: Path) -> None:
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
    assert "there is no exported model here; give one with -m" in done.err
    assert mdlstm("infer", matrix, "-o", "b.npy", cwd=empty, env={"MDLSTM_MODEL": str(model)}).code == 0
    assert mdlstm("infer", matrix, "-o", "c.npy", "-m", model.parent, cwd=empty).code == 0
    (empty / "only.onnx").write_bytes(model.read_bytes())
    assert "only.onnx on cpu" in mdlstm("infer", matrix, "-o", "d.npy", cwd=empty).err
    (empty / "another.onnx").write_bytes(model.read_bytes())
    assert "choose one with -m" in mdlstm("infer", matrix, "-o", "e.npy", cwd=empty).err


def on_a_terminal(*arguments: object) -> str:
    """What `mdlstm infer` shows on a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "120"}
    command = [sys.executable, "-m", "mdlstm_tk", "infer", *map(str, arguments)]
    subprocess.run(command, stderr=follower, env=environment, check=True)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode(errors="replace")
    os.close(leader)
    return shown


def test_a_terminal_shows_grids_for_one_file_and_a_bar_for_many(model: Path, matrix: Path) -> None:
    shown = on_a_terminal(matrix, "-m", model)
    assert "input" in shown
    assert "prediction" in shown
    assert "\x1b[48;2;" in shown
    many = ("-m", model, "-o", matrix.parent / "out", "--force")
    shown = on_a_terminal(matrix.parent, *many)
    assert all(part in shown for part in ("1/1", "files/s", "ETA"))
    assert "ETA" not in mdlstm("infer", matrix.parent, *many).err


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of every kind of input that the 8×8 model takes, and of files it leaves out."""
    folder = tmp_path / "tree"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    for path in ("one.npy", "a/two.npy", ".git/hidden.npy", "a/.hidden.npy", "a/old.out.npy"):
        np.save(folder / path, RNG.random((8, 8)))
    arrays = {
        "file": RNG.random((8, 8)),
        "v": RNG.random((3, 8, 8, 1)),
        "u": RNG.random((8, 8)),
    }  # not the order they run in
    write_arrays(str(folder / "a/b/z.npz"), dict(arrays), "npz")
    np.savetxt(folder / "a/t.csv", RNG.random((8, 8)), delimiter=",")
    Image.fromarray((RNG.random((8, 8)) * 255).astype(np.uint8)).save(folder / "a/b/i.PNG")
    (folder / "a/notes.txt").touch()
    os.mkfifo(folder / "a/pipe.npy")
    (folder / "link").symlink_to(folder)
    return folder


RESULTS = {"one.out.npy", "a/two.out.npy", "a/b/z.out.npz", "a/t.out.npy", "a/b/i.out.npy"}


def test_folders_are_searched_and_their_tree_is_kept(tree: Path, infer: Infer, tmp_path: Path) -> None:
    done = infer(tree, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "left out: 1" in done.err
    assert "5 done, 0 skipped, 0 failed" in done.err
    assert names(tmp_path / "out") == RESULTS
    session = Session(infer.model, "cpu")
    for source in ("one.npy", "a/b/z.npz", "a/t.csv", "a/b/i.PNG"):
        x = read_arrays(str(tree / source))
        found = (tmp_path / "out" / source).with_suffix("")
        y = read_arrays(str(next(found.parent.glob(found.name + ".out.*"))))
        assert list(y) == list(x)
        for name in x:
            np.testing.assert_allclose(y[name], session(x[name]), atol=1e-6, strict=True)
    before = names(tree)
    assert infer(tree).code == 0
    assert names(tree) - before == RESULTS
    assert infer(tree, "--force").code == 0
    assert len(names(tree)) == len(before) + len(RESULTS)  # results are not taken for inputs


def test_an_output_folder_within_the_input_is_no_input(tree: Path, infer: Infer) -> None:
    np.save(tree / "a/plain.npy", np.zeros((8, 8)))
    assert infer(tree, "-o", tree / "a").code == 0
    assert not (tree / "a/a").exists()


def test_skip_existing_goes_on_where_it_stopped(tree: Path, infer: Infer) -> None:
    assert infer(tree).code == 0
    (tree / "one.out.npy").write_bytes(b"kept")
    (tree / "a/two.out.npy").unlink()
    assert "one.out.npy exists" in infer(tree).err
    done = infer(tree, "--skip-existing")
    assert done.code == 0
    assert "1 done, 4 skipped, 0 failed" in done.err
    assert (tree / "one.out.npy").read_bytes() == b"kept"
    assert (tree / "a/two.out.npy").exists()
    assert "all 5 results exist" in infer(tree, "--skip-existing").err
    assert infer(tree, "--force", "-q").err == ""
    assert (tree / "one.out.npy").read_bytes() != b"kept"


def text(path: Path) -> None:
    path.write_text("no numbers")


def ragged(path: Path) -> None:
    path.write_text("1,2\n3\n")


def half(path: Path) -> None:
    Image.fromarray((RNG.random((8, 8)) * 255).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def colour(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)


BAD = {
    "text.npy": (text, "text.npy is not a complete .npy array"),
    "text2.npz": (text, "text2.npz is not a complete .npz archive"),
    "text3.png": (text, "text3.png is not a complete PNG or JPEG image"),
    "half.png": (half, "half.png is not a complete PNG or JPEG image"),
    "colour.png": (colour, "colour.png: x of shape (8, 8, 3) has 3 channels"),
    "text4.csv": (text, "text4.csv is not a table of numbers with commas between them and no heading"),
    "ragged.csv": (ragged, "changed from 2 to 1 at row 2"),
    "nan.csv": (lambda path: path.write_text("nan,1"), "nan.csv holds 1 NaN"),
    "note.csv": (lambda path: path.write_text("# 1\n"), "note.csv is not a table"),
    "empty.csv": (lambda path: path.touch(), "empty.csv is empty"),
    "none.npz": (lambda path: np.savez(path), "none.npz holds no array"),
    "objects.npz": (lambda path: np.savez(path, x=np.array([None])), "'x' in"),
    "part.npz": (lambda path: np.savez(path, a=np.eye(8), b=np.eye(7)), "'b' in"),
    "flat.npy": (lambda path: np.save(path, np.zeros(8)), "flat.npy: x has shape (8,), expected (H, W)"),
    "grid.npy": (lambda path: np.save(path, np.zeros((5, 7))), "mdlstm export --size 5x7"),
    "loose.npy": (lambda path: path.symlink_to("nowhere"), None),
}


def test_each_bad_file_is_named_and_the_rest_go_on(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (make, _) in BAD.items():
        make(folder / name)
    np.save(folder / "good.npy", np.eye(8))
    done = infer(folder, folder / "gone.npy", folder / "odd.mat", "-o", tmp_path / "out")
    assert done.code == 1
    failures = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    messages = [message for _, message in BAD.values() if message]
    for message in (*messages, f"there is no file {folder}/gone.npy", "odd.mat"):
        assert sum(message in line for line in failures) == 1, (message, failures)
    count = len(messages) + 2
    assert len(failures) == count
    assert f"1 done, 0 skipped, {count} failed" in done.err
    assert done.err.splitlines()[-1].startswith(f"error: {count} of {count + 1} files failed")
    assert names(tmp_path / "out") == {"good.out.npy"}
    assert len(infer(folder, "-o", tmp_path / "out", "-q", "--force").err.splitlines()) == count - 1


def test_formats_hold_what_they_can(infer: Infer, matrix: Path, tmp_path: Path) -> None:
    y = Session(infer.model, "cpu")(np.load(matrix))
    for form in ("npz", "csv", "png", "json"):
        assert infer(matrix, "-o", tmp_path / f"y.{form}").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["y"], y)
    np.testing.assert_array_equal(read_arrays(str(tmp_path / "y.csv"))[None], y)
    np.testing.assert_array_equal(np.float32(json.loads((tmp_path / "y.json").read_text())), y)
    image = Image.open(tmp_path / "y.png")
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image) / 255, y, atol=0.5 / 255 + 1e-6)
    target = str(tmp_path / "z.png")
    write_arrays(target, {None: np.float32([[[-1, 0.5, 2]]])}, "png")
    assert Image.open(target).getpixel((0, 0)) == (0, 128, 255)
    np.savez(tmp_path / "two.npz", a=np.eye(8), b=np.zeros((2, 8, 8, 1)))
    assert infer(tmp_path / "two.npz", "-o", tmp_path / "two.json").code == 0
    assert set(json.loads((tmp_path / "two.json").read_text())) == {"a", "b"}
    for arrays, form, message in (
        ({"a": y, "b": y}, "npy", "npy holds one array, there are 2"),
        ({None: y[None, ..., None]}, "csv", r"csv holds \(H, W\), the result is \(1, 8, 8, 1\)"),
        ({None: y[..., None, None]}, "png", r"png holds \(H, W\) or \(H, W, 3\)"),
        ({None: y * np.nan}, "json", "the result holds NaN or infinity, which json cannot"),
        ({None: y * np.nan}, "png", "which png cannot"),
    ):
        with pytest.raises(InputError, match=message):
            write_arrays(str(tmp_path / "bad"), arrays, form)
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("L", (5, 8)),
        ("RGB", (5, 8, 3)),
        ("RGBA", (5, 8, 4)),
        ("LA", (5, 8, 2)),
        ("I;16", (5, 8)),
        ("1", (5, 8)),
        ("P", (5, 8, 3)),
    ],
)
def test_images_are_read_as_they_are_stored(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    image = Image.new("L", (8, 5))
    image.putpixel((2, 1), 255)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image = image.convert(mode) if mode != "I;16" else image
    image.save(tmp_path / "x.png")
    (x,) = read_arrays(str(tmp_path / "x.png")).values()
    assert x.shape == shape
    assert x.dtype == np.float32
    grey = x if x.ndim == 2 else x[..., 0]
    assert grey[1, 2] == 1
    assert grey.sum() == 1


def test_jpeg_and_tables_of_spreadsheets(tmp_path: Path) -> None:
    Image.new("RGB", (7, 1), (255, 0, 0)).save(tmp_path / "x.jpeg")
    (x,) = read_arrays(str(tmp_path / "x.jpeg")).values()
    np.testing.assert_allclose(x, np.tile([1.0, 0, 0], (1, 7, 1)), atol=0.02)
    Image.new("L", (300, 200)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match="300x200 pixels, which take more than 900000 bytes"):
        read_arrays(str(tmp_path / "big.png"), max_bytes=900_000)
    (tmp_path / "x.csv").write_bytes("\ufeff1, 2.5e-1\r\n-3,4\r\n\r\n".encode())
    np.testing.assert_array_equal(read_arrays(str(tmp_path / "x.csv"))[None], [[1, 0.25], [-3, 4]])


def test_results_never_meet(tmp_path: Path) -> None:
    for name in ("x.npy", "x.csv", "x.out.npy"):
        (tmp_path / name).touch()
    (tmp_path / "alias").symlink_to(tmp_path)
    x, alias = str(tmp_path / "x.npy"), str(tmp_path / "alias/x.npy")
    for inputs in ([str(tmp_path)], [x, x], [x, alias]):
        with pytest.raises(InputError, match=r"would both be written to .*x\.out\.npy"):
            plan_jobs(inputs, None, None)
    for inputs, output in (([x, str(tmp_path / "alias/x.out.npy")], None), ([x], alias)):
        with pytest.raises(InputError, match="would overwrite the input"):
            plan_jobs(inputs, output, None)


class Recorder:
    """Stands for the session of a model for any grid: doubles, and notes the rows of each run."""

    metadata = SimpleNamespace(ndim=2, grid=None, inputs=("x",))

    def __init__(self) -> None:
        self.runs: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.run_many([x])[0]

    def run_many(self, arrays: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        if any(not 2 <= x.ndim <= 4 for x in arrays):
            raise InputError(f"one of {len(arrays)} is no grid")
        samples = [x if x.ndim == 4 else x[None] for x in arrays]
        (shape,) = {x.shape[1:] for x in samples}
        self.runs.append((shape, sum(map(len, samples))))
        return [x * 2 for x in arrays]


def test_arrays_of_one_shape_share_batches() -> None:
    shapes = [
        (1, 1),
        (1, 7),
        (7, 1),
        (5, 8),
        (8, 5),
        (5, 8, 1),
        (2, 5, 8, 1),
        (9, 5, 8, 1),
        (5, 8, 3),
        (3,),
    ]
    arrays = {number: RNG.random(shapes[number % len(shapes)]) for number in range(3 * len(shapes))}
    session = Recorder()
    results = dict(batching.run_batches(session, arrays.items(), batch_size=4))  # type: ignore[arg-type]
    assert set(results) == set(arrays)
    for tag, x in arrays.items():
        if x.ndim == 1:
            assert str(results[tag]) == "one of 1 is no grid"
        else:
            np.testing.assert_array_equal(results[tag], x * 2, strict=True)
    assert session.runs.count(((1, 7), 3)) == 1
    assert sum(rows for shape, rows in session.runs if shape == (5, 8, 1)) == 3 * (1 + 2 + 9)
    session.runs.clear()
    list(batching.run_batches(session, [(n, np.zeros((256, 256))) for n in range(9)]))  # type: ignore[arg-type]
    assert [rows for _, rows in session.runs] == [4, 4, 1]
    session.runs.clear()
    list(batching.run_batches(session, [(0, np.zeros((9, 5, 8, 1)))], batch_size=4))  # type: ignore[arg-type]
    assert [rows for _, rows in session.runs] == [4, 4, 1]


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


@pytest.mark.parametrize(("window", "limit"), [(4, 2**28), (10**6, 3 * 256)], ids=["files", "bytes"])
def test_memory_holds_two_windows_however_many_files(
    window: int, limit: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = most = 0

    def reading(source: str, max_bytes: int) -> dict[None, Any]:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return {None: np.zeros((8, 8), np.float32)}

    monkeypatch.setattr(batching, "read_arrays", reading)
    monkeypatch.setattr(batching, "WINDOW", window)
    monkeypatch.setattr(batching, "WINDOW_BYTES", limit)
    jobs = [Job(f"{n}.npy", str(tmp_path / f"{n}.out.npy"), "npy") for n in range(50)]
    for done, outcome in enumerate(batching.infer_files(Session(model, "cpu"), jobs), start=1):
        assert outcome == Outcome(jobs[done - 1], None)
        held -= 1
    assert done == 50
    assert most <= 3 * 4  # one in work, one read ahead, one that is being read


def test_a_full_disk_ends_the_run_and_leaves_no_half_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(9):
        np.save(tmp_path / f"in/{n}.npy", np.zeros((1 if n < 4 else 9, 8, 8, 1)))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "mdlstm_tk", "infer", "in", "-o", "out", "-m", str(model)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1
    assert "error: cannot write out/4.out.npy: File too large" in done.stderr.splitlines()[-1]
    assert "4 done, 0 skipped, 0 failed" in done.stderr
    assert "5 to do; go on with --skip-existing" in done.stderr
    assert names(tmp_path / "out") == {f"{n}.out.npy" for n in range(4)}


def test_ctrl_c_says_how_to_go_on(infer: Infer, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(session: Session, jobs: list[Job], *limits: object) -> Iterator[Outcome]:
        yield Outcome(jobs[0], None)
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "infer_files", broken_off)
    done = infer(tree)
    assert done.code == 130
    assert "1 done" in done.err
    assert "4 to do; go on with --skip-existing" in done.err


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("PIL", "image", ("x.png",)),
        ("PIL", "image", ("x.npy", "-o", "y.png")),
        ("ray", "ray", ("--engine", "ray")),
    ],
    ids=["reading png", "writing png", "ray"],
)
def test_missing_packages_are_named(
    package: str, extra: str, arguments: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.eye(8))
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    arguments = arguments if arguments[0].startswith("x") else ("x.npy", *arguments)
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without((package,), code, "infer", *arguments, "-m", model, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"pip install 'mdlstm-tk[{extra}]'")
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == {"x.npy", "x.png"}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_does_what_the_local_engine_does(model: Path, infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(batching.WINDOW + 9):  # two windows, for two workers
        np.save(tmp_path / f"in/{n:03}.npy", RNG.random((8, 8) if n % 3 else (2, 8, 8, 1)))
    (tmp_path / "in/007.npy").write_bytes(b"broken")
    np.save(tmp_path / "in/260.npy", np.zeros((5, 7)))
    here = infer(tmp_path / "in", "-o", tmp_path / "local")
    there = mdlstm(
        *("infer", tmp_path / "in", "-o", tmp_path / "ray", "-m", model, "--device", "cpu"),
        *("--engine", "ray", "--workers", "2"),
    )
    assert (here.code, there.code) == (1, 1)
    assert len(names(tmp_path / "local")) == batching.WINDOW + 7
    assert names(tmp_path / "local") == names(tmp_path / "ray")
    for name in names(tmp_path / "local"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes(), name

    def said(result: Result) -> list[str]:
        return [line for line in result.err.splitlines() if "files/s" not in line]

    assert said(here) == said(there)
