"""`mdlstm infer` with bad files, a full disk and missing packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.infer import Infer
from helpers.without_packages import python_without
from PIL import Image

from mdlstm_tk._util.installation import install_command
from mdlstm_tk.runtime.preprocessing import SUFFIXES

RNG = np.random.default_rng(0)


@pytest.fixture
def infer(model: Path, capfd: pytest.CaptureFixture[str]) -> Infer:
    return Infer(model, capfd)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def text(path: Path) -> None:
    path.write_text("no numbers")


def ragged(path: Path) -> None:
    path.write_text("1,2\n3\n")


def half(path: Path) -> None:
    Image.fromarray((RNG.random((8, 8)) * 255).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def wide(path: Path) -> None:
    Image.new("RGB", (9, 8)).save(path)


BAD_FILES = {
    "text.npy": (text, ".npy array"),
    "text2.npz": (text, ".npz archive"),
    "text3.png": (text, "PNG"),
    "half.png": (half, "PNG"),
    "wide.png": (wide, "8x9"),
    "text4.csv": (text, "table"),
    "ragged.csv": (ragged, "row 2"),
    "nan.csv": (lambda path: path.write_text("nan,1"), "1 NaN"),
    "note.csv": (lambda path: path.write_text("# 1\n"), "table"),
    "empty.csv": (lambda path: path.touch(), "empty"),
    "none.npz": (lambda path: np.savez(path), "no array"),
    "objects.npz": (lambda path: np.savez(path, x=np.array([None])), "'x'"),
    "part.npz": (lambda path: np.savez(path, a=np.eye(8), b=np.eye(7)), "'b'"),
    "flat.npy": (lambda path: np.save(path, np.zeros(8)), "(8,)"),
    "grid.npy": (lambda path: np.save(path, np.zeros((5, 7))), "--size 5x7"),
}


def test_each_bad_file_is_named_and_the_rest_go_on(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (make, _) in BAD_FILES.items():
        make(folder / name)
    (folder / "dangling.npy").symlink_to("nowhere")  # ignored, as it is not a file
    np.save(folder / "good.npy", np.eye(8))
    done = infer(folder, folder / "gone.npy", folder / "odd.mat", "-o", tmp_path / "out")
    assert done.code == 1
    failures = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    expected = {name: reason for name, (_, reason) in BAD_FILES.items()}
    expected |= {"gone.npy": "no file", "odd.mat": "'.mat'"}
    for name, reason in expected.items():
        (line,) = [line for line in failures if name in line]
        assert reason in line
    count = len(expected)
    assert len(failures) == count
    assert f"1 done, 0 skipped, {count} failed" in done.err
    assert f"{count} of {count + 1}" in done.err.splitlines()[-1]
    assert names(tmp_path / "out") == {"good.out.npy"}
    assert len(infer(folder, "-o", tmp_path / "out", "-q", "--force").err.splitlines()) == count - 1


def test_a_full_disk_ends_the_run_and_leaves_no_half_file(model: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
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
    assert "out/4.out.npy" in done.stderr.splitlines()[-1]
    assert "4 done, 0 skipped, 0 failed" in done.stderr
    assert "5 to do" in done.stderr
    assert names(tmp_path / "out") == {f"{n}.out.npy" for n in range(4)}


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        *(("PIL", "image", (f"x{suffix}",)) for suffix in SUFFIXES),
        ("PIL", "image", ("x.npy", "-o", "y.png")),
        ("ray", "ray", ("--engine", "ray")),
    ],
    ids=[*(f"reading {suffix}" for suffix in SUFFIXES), "writing png", "ray"],
)
def test_missing_packages_are_named(
    package: str, extra: str, arguments: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.eye(8))
    for suffix in SUFFIXES:
        Image.new("L", (8, 8)).save(tmp_path / f"x{suffix}")
    arguments = arguments if arguments[0].startswith("x") else ("x.npy", *arguments)
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without((package,), code, "infer", *arguments, "-m", model, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(install_command([extra]))
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == {"x.npy", *(f"x{suffix}" for suffix in SUFFIXES)}
