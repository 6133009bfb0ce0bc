"""Channels-first models, x (N, C, H, W), in sessions and in `mdlstm infer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.networks import Function
from PIL import Image
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.runtime import Session


def network(channels: int) -> nn.Module:
    torch.manual_seed(channels)
    layer = MDLSTM(channels, 4, directions="all", channels_last=False)
    return nn.Sequential(layer, nn.Conv2d(16, channels, 1))


def export(channels: int, path: Path, **metadata: object) -> Path:
    """Write the model of a network for any size."""
    x = torch.zeros(1, channels, 5, 6)
    return export_onnx(network(channels), path, x, form="scan", metadata=metadata).path


def expected(x: np.ndarray) -> np.ndarray:
    """The output for one sample x (C, H, W)."""
    return float64_reference(network(len(x)))(x[None].astype(np.float32))[0]


class NeedsSizes(nn.Module):
    """A convolution, unless x is channels-last, and a layer."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.stem = nn.Identity() if channels_last else nn.Conv2d(3, 3, 1)
        self.layer = MDLSTM(3, 2, channels_last=channels_last)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        y: Tensor = self.layer(self.stem(x), sizes)
        return y


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_reference_that_needs_sizes_gets_the_whole_grid(channels_last: bool) -> None:
    net, x = NeedsSizes(channels_last), torch.randn(2, *((6, 7, 3) if channels_last else (3, 6, 7)))
    with torch.no_grad():
        expected = net(x, torch.tensor([[6, 7]] * 2)).numpy()
    np.testing.assert_allclose(float64_reference(net)(x.numpy()), expected, rtol=0, atol=1e-5)


def test_a_session_takes_x_with_and_without_axes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 3, 5, 6), np.float32)
    session = Session(export(3, tmp_path / "colour.onnx"), "cpu")
    assert session.metadata.layout == "N C H W"
    y = session(x)
    assert y.shape == (2, 3, 5, 6)
    np.testing.assert_allclose(y[0], expected(x[0]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(session(x[0]), y[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(session.run_many([x[0], x])[1], y, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="C = 3"):
        session(np.moveaxis(x[0], 0, -1))
    grey = Session(export(1, tmp_path / "grey.onnx"), "cpu")
    for shape in ((5, 6), (1, 5, 6), (2, 1, 5, 6)):
        assert grey(np.zeros(shape)).shape == shape


class ChannelsLast(nn.Module):
    """Channels first, with an output (N, *grid, 3); `extents` are those that forward fixes, if any."""

    def __init__(self, *extents: int) -> None:
        super().__init__()
        self.layer, self.extents = MDLSTM(2, 3, channels_last=False), extents

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).movedim(1, -1)
        return y.reshape(-1, *self.extents, 3) if self.extents else y


@pytest.mark.parametrize(("extents", "form"), [((), "unrolled"), ((), "scan"), ((5, 6), "unrolled")])
def test_an_output_may_be_channels_last(extents: tuple[int, ...], form: Any, tmp_path: Path) -> None:
    metadata = export_onnx(ChannelsLast(*extents), tmp_path / "m.onnx", grid=(5, 6), form=form).metadata
    assert (metadata.outputs, metadata.window, metadata.layout) == (3, None, "N C H W")


def test_an_output_of_extents_alone_has_one_feature(tmp_path: Path) -> None:
    net = Function(after=lambda y: y.argmax(-1))  # (N, H, W)
    assert export_onnx(net, tmp_path / "m.onnx", form="scan").metadata.outputs == 1


def test_infer_writes_masks_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(pixels[..., 0]).save("grey.png")
    x = np.moveaxis(pixels / np.float32(255), -1, 0)
    export(3, tmp_path / "segment.onnx", kind="segment", classes=("a", "b", "c"), mask_values=(0, 7, 255))
    export(3, tmp_path / "colour.onnx")
    export(1, tmp_path / "grey.onnx")
    for arguments in (
        ("photo.png", "-m", "segment.onnx"),
        ("photo.png", "-m", "colour.onnx"),
        ("grey.png", "-m", "grey.onnx", "--format", "csv"),
    ):
        done = mdlstm("infer", *arguments, "--device", "cpu")
        assert done.code == 0, done.err
    y = expected(x)
    np.testing.assert_array_equal(Image.open("photo.out.png"), np.asarray([0, 7, 255])[y.argmax(0)])
    np.testing.assert_allclose(np.load("photo.out.npy"), y, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        np.loadtxt("grey.out.csv", delimiter=","), expected(x[:1])[0], rtol=0, atol=1e-5
    )
