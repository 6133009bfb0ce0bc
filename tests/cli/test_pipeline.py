"""The files that a run was trained on give `mdlstm infer` what they give torch in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from PIL import Image

from mdlstm_tk import MDLSTM
from mdlstm_tk.data.images import read_pixels
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Metadata, Session, load_image
from mdlstm_tk.runtime.io import IMAGE_SUFFIXES
from mdlstm_tk.runtime.preprocessing import Preprocessing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `benchmarks/trial.py`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import trial

    return trial


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["classify", "segment", "transcribe", "grid", "segment, resized", "grid, arrays", "classify, arrays"],
)
def test_infer_gives_what_torch_gives_for_every_file(name: str, trial: Any, tmp_path: Path) -> None:
    rows = trial.run_trial(name, tmp_path, steps=10)
    assert [row for row in rows if not row.passed] == []
    expected = {*trial.TRIALS[name].file_types, *(("npz",) if "arrays" in name else ())}
    assert {row.file_type for row in rows} == expected


def test_the_trial_finds_files_that_differ(trial: Any) -> None:
    good = trial.Row("classify", "PNG L", files=2, read=2, difference=1e-6, agreeing=2)
    assert good.passed
    for name, value in {"read": 1, "difference": 2e-5, "agreeing": 1, "files": 3}.items():
        assert not dataclasses.replace(good, **{name: value}).passed
    assert not dataclasses.replace(good, difference=np.nan).passed


def test_the_trial_has_every_suffix(trial: Any, tmp_path: Path) -> None:
    data = trial.write_data("classify", tmp_path, list(trial.IMAGE_TYPES), 1)
    assert {path.suffix.lower() for _, path, _ in data.files} == set(IMAGE_SUFFIXES)


def test_training_and_inference_decode_every_file_type_alike(trial: Any, tmp_path: Path) -> None:
    data = trial.write_data("classify", tmp_path, list(trial.IMAGE_TYPES), 1)
    for channels in (1, 3):
        preprocessing = Preprocessing(channels, (7, 5))
        metadata = Metadata(
            "0", None, "scan", "N H W C", channels, 1, preprocessing=preprocessing.to_json()
        )
        for name, path, _ in data.files:
            x = load_image(path, metadata)
            assert x.std() > 0, name
            expected = preprocessing(read_pixels(path))
            np.testing.assert_array_equal(x.reshape(7, 5, channels), expected, err_msg=name)


def test_a_channels_first_model_of_ones_own_takes_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(MDLSTM(3, 2, channels_last=False), tmp_path / "model.onnx", form="scan", grid=None)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/colour.tif")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "in/grey.gif")
    done = mdlstm("infer", "in", "-m", "model.onnx", "-o", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    session = Session(tmp_path / "model.onnx")
    for name, x in {"colour": pixels, "grey": pixels[..., :1].repeat(3, axis=-1)}.items():
        expected = session(np.moveaxis(x / np.float32(255), -1, 0))
        assert expected.shape == (2, 5, 8)
        np.testing.assert_allclose(np.load(tmp_path / f"out/{name}.out.npy"), expected, atol=1e-6)
    piped = (tmp_path / "in/colour.tif").read_bytes()
    assert mdlstm("infer", "-", "-m", "model.onnx", "-o", "y.npy", stdin=piped, cwd=tmp_path).code == 0
    assert np.load(tmp_path / "y.npy").tolist() == np.load(tmp_path / "out/colour.out.npy").tolist()
