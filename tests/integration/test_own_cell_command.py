"""A cell in a user's own file, from training to inference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Result, mdlstm

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"


@pytest.fixture
def call(tmp_path: Path, forget: Callable[[], None]) -> Callable[..., Result]:
    """Calls `mdlstm`, which knows the cells of the package and of the files that the call names."""

    def run(*arguments: object) -> Result:
        forget()
        return mdlstm(*arguments, cwd=tmp_path)

    return run


def test_train_export_verify_and_infer(tmp_path: Path, call: Callable[..., Result]) -> None:
    name = "input-gated"  # the one without recurrent weights
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    np.save(tmp_path / "matrix.npy", np.eye(8, dtype=np.float32))
    trained = call("train", "--cell", f"mine.py:{name}", "--steps", 30, "-o", "run", "--json", "-q")
    assert trained.code == 0, trained.err
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    assert call("export", "run", "-o", "unknown.onnx").code == 2  # which cell is it?
    file = ("--cell", f"moved.py:{name}")
    described = call("info", "run", "--json", *file)
    assert json.loads(described.out)["cell"] == name
    assert f"mdlstm export run --cell moved.py:{name}" in described.err
    for form in ("unrolled", "scan"):
        exported = call("export", "run", "--form", form, "-o", f"{form}.onnx", *file)
        assert exported.code == 0, exported.err
    assert call("verify", "unrolled.onnx", "--against", "run", *file).code == 0
    resumed = call("train", "--resume", "run", "--steps", 31, *file)
    assert resumed.code == 0, resumed.err
    assert resumed.err.rstrip().endswith(f"mdlstm export run --size 8x8 --cell moved.py:{name}")
    (tmp_path / "moved.py").unlink()  # an exported model needs the file no longer
    assert call("infer", "matrix.npy", "-m", "scan.onnx").code == 0
    assert np.load(tmp_path / "matrix.out.npy").shape == (8, 8)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("mine.py:absent", "'absent'"), ("gone.py:coupled", "gone.py"), ("gravse", "'graves'")],
)
def test_an_unknown_cell_is_a_usage_error(
    cell: str, value: str, tmp_path: Path, call: Callable[..., Result]
) -> None:
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    result = call("train", "--cell", cell, "--steps", 30)
    assert result.code == 2
    assert value in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
