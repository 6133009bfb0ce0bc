"""Commands that are killed while they write: nothing that they leave is taken for a result."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command import succeed
from helpers.forks import kill_at

from mdlstm_tk.cli import main
from mdlstm_tk.export.browser.build import check_page
from mdlstm_tk.export.browser.build import write_page as write
from mdlstm_tk.io.files import TEMPORARY_SUFFIX, find_files
from mdlstm_tk.runtime.infer import find_model, models_in
from mdlstm_tk.training import Run, describe_run, latest_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

EXPORT = ("export", "runs/md-8x8", "--size", "3x4")
VERBS = {  # verb: (arguments, what is about to appear when the command is killed)
    "export": (EXPORT, "model-3x4.onnx"),
    "infer": (("infer", "matrix.npy", "-m", "runs/md-8x8"), "matrix.out.npy"),
    "infer into a folder": (("infer", ".", "-m", "runs/md-8x8", "-o", "results"), "matrix.out.npy"),
    "report": (("report", "runs/md-8x8"), "report.html"),
}


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_command_leaves_no_result(
    verb: str, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.folder, tmp_path / "runs/md-8x8")
    np.save(tmp_path / "matrix.npy", np.zeros((8, 8)))
    monkeypatch.chdir(tmp_path)
    arguments, name = VERBS[verb]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    kill_at(name, main, [*arguments], cwd=tmp_path)
    left = temporaries(tmp_path)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert left and all(any(path == one or one in path.parents for one in left) for path in new)
    # nothing that searches finds it
    exported = Path("runs/md-8x8/model-8x8.onnx")
    assert find_model() == find_model("runs/md-8x8") == exported
    assert not models_in(tmp_path) and describe_run(exported.parent)["exports"] == [exported.name]
    assert latest_run().folder == exported.parent
    assert find_files(["."]) == [("./matrix.npy", "matrix.npy")]
    # the next command works without --force, as if there had been none before
    succeed(*arguments, cwd=tmp_path)


def test_a_killed_page_does_not_make_its_folder_count_as_used(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    kill_at("", write, model, page, "title", {}, cwd=tmp_path)
    assert temporaries(page)
    shutil.rmtree(page / "ort", ignore_errors=True)  # written before the first file is moved
    check_page(page, force=False)
