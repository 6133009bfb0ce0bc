"""Channels-first models, x (N, C, H, W), in every verb."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from PIL import Image
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference, verify_model
from mdlstm_tk.export.targets import write_server_repo
from mdlstm_tk.report.exports import measure_exports
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run


class Net(nn.Module):
    """Channels first throughout.

    Args:
        channels, outputs: of x and y.
        classifies: whether y is (N, outputs).
    """

    def __init__(self, channels: int, outputs: int, classifies: bool = False) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.layer = MDLSTM(channels, 4, directions="all", channels_last=False)
        self.head = nn.Conv2d(16, outputs, 1)
        self.classifies = classifies

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.layer(x))
        return y.mean(dim=(2, 3)) if self.classifies else y


CLASSES = ("sky", "road", "car")
MODELS = {
    "segment": (Net(3, 3), {"kind": "segment", "classes": CLASSES, "mask_values": (0, 7, 255)}),
    "classify": (Net(3, 3, True), {"kind": "classify", "classes": CLASSES}),
    "grey": (Net(1, 1), {}),
    "colour": (Net(3, 3), {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four models for any size."""
    folder = tmp_path_factory.mktemp("models")
    for name, (net, fields) in MODELS.items():
        x = torch.zeros(1, net.layer.input_size, 5, 6)
        export_onnx(net, folder / f"{name}.onnx", x, form="scan", metadata=fields)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> np.ndarray:
    """A picture (5, 6, 3), which is also the file photo.png, and as grey the file grey.png."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.save(tmp_path / "photo.npy", np.moveaxis(pixels / np.float32(255), -1, 0))
    return pixels


def expected(name: str, x: np.ndarray) -> np.ndarray:
    """The output for one sample x (C, H, W)."""
    return float64_reference(MODELS[name][0])(x[None].astype(np.float32))[0]


def test_a_session_takes_x_with_and_without_axes(folder: Path) -> None:
    x = np.random.default_rng(0).random((2, 3, 5, 6), np.float32)
    session = Session(folder / "colour.onnx", "cpu")
    assert session.metadata.layout == "N C H W"
    y = session(x)
    assert y.shape == (2, 3, 5, 6)
    np.testing.assert_allclose(y[0], expected("colour", x[0]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(session(x[0]), y[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(session.run_many([x[0], x])[1], y, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"\(5, 6, 3\) has 5 channels.*\(C, H, W\).*moveaxis"):
        session(np.moveaxis(x[0], 0, -1))
    session.warm_up(grid=(3, 4))
    grey = Session(folder / "grey.onnx", "cpu")
    for shape, result in (((5, 6), (5, 6)), ((1, 5, 6), (1, 5, 6)), ((2, 1, 5, 6), (2, 1, 5, 6))):
        assert grey(np.zeros(shape)).shape == result


def test_infer_writes_masks_labels_numbers_and_pictures(
    folder: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    x = np.load(tmp_path / "photo.npy")
    done = mdlstm("infer", tmp_path / "photo.png", "-m", folder / "segment.onnx")
    assert done.code == 0, done.err
    mask = np.asarray(Image.open(tmp_path / "photo.out.png"))
    np.testing.assert_array_equal(mask, np.asarray([0, 7, 255])[expected("segment", x).argmax(0)])
    done = mdlstm("infer", tmp_path / "photo.png", "-m", folder / "classify.onnx")
    assert done.out.strip() == CLASSES[int(expected("classify", x).argmax())]
    done = mdlstm(
        "infer",
        tmp_path / "photo.png",
        "-o",
        tmp_path / "y.png",
        "-m",
        folder / "colour.onnx",
        "--device",
        "cpu",
    )
    assert done.code == 0, done.err
    y = np.moveaxis(expected("colour", x), 0, -1).clip(0, 1)
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "y.png")) / 255, y, rtol=0, atol=1e-2)
    done = mdlstm(
        "infer", tmp_path / "grey.png", "--format", "csv", "-m", folder / "grey.onnx", "--device", "cpu"
    )
    assert done.code == 0, done.err
    y = expected("grey", picture[None, ..., 0] / np.float32(255))
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / "grey.out.csv", delimiter=","), y[0], rtol=0, atol=1e-5
    )
    assert mdlstm("infer", tmp_path / "photo.png", "-m", folder / "colour.onnx").code == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "photo.out.npy"), expected("colour", x), rtol=0, atol=1e-5
    )


def test_verify_server_report_and_info(folder: Path, trained: Run, tmp_path: Path) -> None:
    assert verify_model(folder / "colour.onnx", MODELS["colour"][0], device="cpu", seeds=1).failed == []
    served = write_server_repo(folder / "colour.onnx", tmp_path / "served", "colour")
    config = (served.parent.parent / "config.pbtxt").read_text()
    assert config.count("dims: [ 3, -1, -1 ]") == 2
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    shutil.copy(trained.checkpoint, run.checkpoint)
    shutil.copy(folder / "colour.onnx", run.folder / "model-any.onnx")
    (measured,) = measure_exports(run, (4, 5))
    assert measured.problem == "" and measured.one > 0
    done = mdlstm("info", folder / "colour.onnx")
    assert done.code == 0 and "N C H W" in done.out
