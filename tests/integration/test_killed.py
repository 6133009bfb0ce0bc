"""Commands that are killed while they write: nothing they leave is taken for a result, and the next one
removes it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.forks import kill_at

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.browser.build import check_page
from mdlstm_tk.export.browser.build import write_page as write
from mdlstm_tk.report import draw_run
from mdlstm_tk.runtime.io import files
from mdlstm_tk.runtime.io.files import (
    TEMPORARY_SUFFIX,
    UNLOCKED_AGE,
    atomic_write,
    is_empty,
    remove_abandoned,
    staging,
)
from mdlstm_tk.runtime.jobs import plan_jobs
from mdlstm_tk.runtime.model_discovery import find_model, models_in
from mdlstm_tk.training import Run, describe_run, latest_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]


@pytest.fixture
def place(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user: a run in runs/ with its export, and a matrix."""
    shutil.copytree(trained.folder, tmp_path / "runs/md-8x8")
    np.save(tmp_path / "matrix.npy", np.zeros((8, 8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPORT = ("export", "runs/md-8x8", "--size", "3x4")
VERBS = {  # verb: (arguments, what is about to appear when the command is killed)
    "export": (EXPORT, "model-3x4.onnx"),
    "export to a file": ((*EXPORT, "-o", "net.onnx"), "net.onnx"),
    "export to a server": ((*EXPORT, "--server-repo", "served"), "served/md-8x8-3x4"),
    "infer": (("infer", "matrix.npy", "-m", "runs/md-8x8"), "matrix.out.npy"),
    "infer into a folder": (("infer", ".", "-m", "runs/md-8x8", "-o", "results"), "matrix.out.npy"),
    "report": (("report", "runs/md-8x8"), "report.html"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_command_leaves_no_result_and_the_next_one_cleans_up(verb: str, place: Path) -> None:
    arguments, name = VERBS[verb]
    before = {path for path in place.rglob("*") if path.is_file()}
    kill_at(name, main, [*arguments], cwd=place)
    left = temporaries(place)
    assert left
    new = {path for path in place.rglob("*") if path.is_file()} - before
    assert all(any(path == one or one in path.parents for one in left) for path in new)
    # nothing that searches finds it
    exported = place / "runs/md-8x8/model-8x8.onnx"
    assert find_model(None) == find_model("runs/md-8x8") == Path("runs/md-8x8/model-8x8.onnx")
    assert not models_in(place) and models_in(exported.parent) == [exported]
    assert describe_run(exported.parent)["exports"] == [exported.name]
    assert latest_run().folder == Path("runs/md-8x8")
    assert [job.source for job in plan_jobs(["."], None, None)[0]] == ["./matrix.npy"]
    # the next command works without --force, as if there had been none before
    done = mdlstm(*arguments, cwd=place)
    assert done.code == 0, done.err
    assert not temporaries(place)
    assert {path for path in place.rglob("*") if path.is_file()} - before


@pytest.mark.parametrize("picture", ["curves.png", "prediction.png"])
def test_killed_pictures_are_drawn_by_the_next_call(picture: str, place: Path) -> None:
    run = Run(Path("runs/md-8x8"))
    kill_at(picture, draw_run, run, cwd=place)
    assert len(temporaries(place)) == 1
    draw_run(run)
    assert not temporaries(place)
    assert (place / "runs/md-8x8" / picture).is_file()


def test_a_killed_page_does_not_make_its_folder_count_as_used(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    kill_at("", write, model, page, "title", {}, cwd=tmp_path)
    assert temporaries(page)
    shutil.rmtree(page / "ort", ignore_errors=True)  # written before the first file is moved
    check_page(page, force=False)
    write(model, page, "title", {})
    assert not temporaries(page)
    with pytest.raises(InputError):
        check_page(page, force=False)


REMOVE = """
import sys
from pathlib import Path
from mdlstm_tk.runtime.io.files import remove_abandoned
remove_abandoned(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("make", [lambda folder: atomic_write(folder / "x.npy"), staging])
def test_what_a_live_process_writes_is_never_removed(make: Callable[..., Path], tmp_path: Path) -> None:
    with make(tmp_path) as temporary:
        if temporary.is_dir():
            (temporary / "part").touch()
        os.utime(temporary, (0, 0))  # its age does not matter
        subprocess.run([sys.executable, "-c", REMOVE, tmp_path], check=True)
        remove_abandoned(tmp_path)
        assert temporary.exists()
        assert is_empty(tmp_path)
    assert not temporaries(tmp_path)


def test_only_abandoned_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / f".a.0123{TEMPORARY_SUFFIX}").touch()
    (tmp_path / f".0123{TEMPORARY_SUFFIX}/deeper").mkdir(parents=True)
    for name in ("model.onnx", ".hidden.onnx", ".tmp"):
        (tmp_path / name).touch()
    (tmp_path / f".link{TEMPORARY_SUFFIX}").symlink_to(tmp_path / "model.onnx")
    remove_abandoned(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", ".hidden.onnx", ".tmp", f".link{TEMPORARY_SUFFIX}"}
    assert models_in(tmp_path) == [tmp_path / "model.onnx"]


def test_where_files_cannot_be_locked_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    young, old = (tmp_path / f".{name}{TEMPORARY_SUFFIX}" for name in ("young", "old"))
    young.touch()
    old.touch()
    past = time.time() - UNLOCKED_AGE - 60
    os.utime(old, (past, past))
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_bytes(b"x")
    assert young.exists() and not old.exists()
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between creating and locking, a file looks abandoned to other processes."""
    real, removed = files._lock, []

    def remove_first(path: str, wait: bool) -> int | None:
        if len(removed) < 2:
            descriptor = real(path, wait) if removed else None
            os.unlink(path)
            removed.append(path)
            if descriptor is not None:
                return descriptor
        return real(path, wait)

    monkeypatch.setattr(files, "_lock", remove_first)
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_bytes(b"x")
    assert len(removed) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
