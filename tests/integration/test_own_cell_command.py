"""A cell in a user's own file, from training to inference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"


def test_train_export_verify_and_infer(tmp_path: Path) -> None:
    name = "input-gated"  # the one without recurrent weights
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    np.save(tmp_path / "matrix.npy", np.eye(8, dtype=np.float32))
    cell = f"mine.py:{name}"
    trained = mdlstm("train", "--cell", cell, "--steps", 30, "-o", "run", "--json", "-q", cwd=tmp_path)
    assert trained.code == 0, trained.err
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    file = ("--cell", f"moved.py:{name}")
    described = mdlstm("info", "run", "--json", *file, cwd=tmp_path)
    assert json.loads(described.out)["cell"] == name
    assert f"mdlstm export run --cell moved.py:{name}" in described.err
    for form in ("unrolled", "scan"):
        model = f"{form}.onnx"
        exported = mdlstm("export", "run", "--form", form, "-o", model, *file, cwd=tmp_path)
        assert exported.code == 0, exported.err
    assert mdlstm("verify", "unrolled.onnx", "--against", "run", *file, cwd=tmp_path).code == 0
    resumed = mdlstm("train", "--resume", "run", "--steps", 31, *file, cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert resumed.err.rstrip().endswith(f"mdlstm export run --size 8x8 --cell moved.py:{name}")
    (tmp_path / "moved.py").unlink()  # an exported model needs the file no longer
    assert mdlstm("infer", "matrix.npy", "-m", "scan.onnx", cwd=tmp_path).code == 0
    assert np.load(tmp_path / "matrix.out.npy").shape == (8, 8)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("mine.py:absent", "'absent'"), ("gone.py:coupled", "gone.py"), ("gravse", "'graves'")],
)
def test_an_unknown_cell_is_a_usage_error(cell: str, value: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    result = mdlstm("train", "--cell", cell, "--steps", 30, cwd=tmp_path)
    assert result.code == 2
    assert value in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
