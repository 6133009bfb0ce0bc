"""The runtime needs neither torch nor onnx, and a package that is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.small_models import write_model
from helpers.without_packages import TRAINING, python_without
from PIL import Image

from mdlstm_tk.errors import install_command

COMMAND = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
INFER = ("infer", "-m", "m.onnx")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, an array and an image."""
    write_model(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.eye(8))
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    return tmp_path


def test_infer_runs_where_neither_torch_nor_onnx_can_be_imported(place: Path) -> None:
    done = python_without(TRAINING, COMMAND, *INFER, "x.npy", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stderr
    assert np.load(place / "x.out.npy").shape == (8, 8)
    for arguments in (("info", "m.onnx"), ("--help",), ("infer", "--help")):
        assert python_without(TRAINING, COMMAND, *arguments, cwd=place).returncode == 0


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        *((TRAINING, (verb,), "train") for verb in ("train", "export", "compare", "demo")),
        (TRAINING, ("verify", "m.onnx"), "train"),
        (("onnxruntime",), (*INFER, "x.npy"), "cpu"),
        (("PIL",), (*INFER, "x.png"), "image"),
        (("PIL",), (*INFER, "x.npy", "-o", "y.png"), "image"),
        (("ray",), (*INFER, "x.npy", "--engine", "ray"), "ray"),
    ],
    ids=str,
)
def test_the_command_that_installs_what_is_missing_is_named(
    absent: tuple[str, ...], arguments: tuple[str, ...], extra: str, place: Path
) -> None:
    before = sorted(place.rglob("*"))
    done = python_without(absent, COMMAND, *arguments, cwd=place)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(install_command(extra))
    assert "Traceback" not in done.stderr
    assert sorted(place.rglob("*")) == before
