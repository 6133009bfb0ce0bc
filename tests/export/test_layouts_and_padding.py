"""Channels-first files; and padded samples, which give the same numbers as the samples alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from helpers.command import succeed
from helpers.networks import Function
from PIL import Image
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session

Z = torch.randn(2, 2)


def network(channels: int) -> nn.Module:
    torch.manual_seed(channels)
    layer = MDLSTM(channels, 4, directions="all", channels_last=False)
    return nn.Sequential(layer, nn.Conv2d(16, channels, 1))


def test_channels_first_in_sessions_and_in_infer(tmp_path: Path) -> None:
    colour = {"kind": "segment", "classes": ("a", "b", "c"), "mask_values": (0, 7, 255)}
    nets, path = {channels: network(channels) for channels in (1, 3)}, tmp_path / "segment.onnx"
    export_onnx(nets[3], path, torch.zeros(1, 3, 5, 6), form="scan", metadata=colour)
    session, x = Session(path, "cpu"), np.random.default_rng(0).random((2, 3, 5, 6), np.float32)
    y, exact = session(x), float64_reference(nets[3])(x)
    assert session.metadata.layout == "N C H W"
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(session(x[0]), y[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(session.run_many([x[0], x])[1], y, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="C = 3"):
        session(np.moveaxis(x[0], 0, -1))
    grey = Session(export_onnx(nets[1], tmp_path / "g.onnx", torch.zeros(1, 1, 5, 6)).path, "cpu")
    for shape in ((5, 6), (1, 5, 6), (2, 1, 5, 6)):
        assert grey(np.zeros(shape)).shape == shape
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    succeed("infer", tmp_path / "photo.png", "-m", path, "--device", "cpu", "-o", tmp_path / "mask.png")
    classes = float64_reference(nets[3])(np.moveaxis(pixels[None] / np.float32(255), -1, 1))[0].argmax(0)
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.png"), np.asarray([0, 7, 255])[classes])


class ChannelsLast(nn.Module):
    """Channels first, with an output (N, *grid, 3); `extents` are those that forward fixes, if any."""

    def __init__(self, *extents: int) -> None:
        super().__init__()
        self.layer, self.extents = MDLSTM(2, 3, channels_last=False), extents

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).movedim(1, -1)
        return y.reshape(-1, *self.extents, 3) if self.extents else y


@pytest.mark.parametrize(("extents", "form"), [((), "scan"), ((5, 6), "unrolled")])
def test_an_output_may_be_channels_last(extents: tuple[int, ...], form: Any, tmp_path: Path) -> None:
    metadata = export_onnx(ChannelsLast(*extents), tmp_path / "m.onnx", grid=(5, 6), form=form).metadata
    assert (metadata.outputs, metadata.window, metadata.layout) == (3, None, "N C H W")


def test_an_output_of_extents_alone_has_one_feature(tmp_path: Path) -> None:
    net = Function(after=lambda y: y.argmax(-1))  # (N, H, W)
    assert export_onnx(net, tmp_path / "m.onnx", form="scan").metadata.outputs == 1


class Padded(nn.Module):
    """Outputs with different windows, `sizes`, and another input."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.shift = MDLSTM(1, 2), MDLSTM(1, 3, window=2), nn.Linear(2, 2)

    def forward(self, x: Tensor, z: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine(x, sizes) + self.shift(z)[:, None, None], self.coarse(x, sizes)


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_padded_samples_give_the_same_numbers_as_the_samples_alone(form: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, names = Padded(), ["fine", "coarse"]
    options: Any = {"padded": True, "output_names": names, "grid": (5, 6), "form": form}
    report = export_onnx(net, tmp_path / "m.onnx", (None, Z), **options)
    reference, rng = float64_reference(net, names), np.random.default_rng(0)
    session = Session(report.path, "cpu")
    assert session.metadata.inputs == ("x", "sizes", "z")
    assert session.metadata.windows == {"fine": (1, 1), "coarse": (2, 2)}
    for grid in [(5, 6), (1, 1), (1, 6), (5, 1), (3, 4)]:
        x, z = rng.random((2, *grid, 1), np.float32), Z.numpy()
        exact, y = reference(x, z=z), session(x, z=z)
        assert all(np.abs(y[name] - exact[name]).max() < 1e-6 for name in names)
    x, sizes = rng.random((2, 5, 6, 1), np.float32), np.asarray([[5, 6], [2, 3]])
    y = session(x, sizes=sizes, z=Z.numpy())["fine"]
    exact = reference(x[1:, :2, :3], z=Z[1:].numpy())["fine"]
    np.testing.assert_allclose(y[1:, :2, :3], exact, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="sizes"):
        session(x, sizes=np.asarray([5, 6]), z=Z.numpy())


class Stem(nn.Module):
    """A convolution before a layer, which alone knows `sizes`."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(1, 3, 3, padding=1), MDLSTM(3, 2, channels_last=channels_last)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        is_last = self.layer.channels_last
        x = self.stem(x.movedim(-1, 1) if is_last else x)
        y: Tensor = self.layer(x.movedim(1, -1) if is_last else x, sizes)
        return y


@pytest.mark.parametrize(("form", "channels_last"), [("unrolled", True), ("scan", False)])
def test_what_padding_holds_changes_no_number_in_any_runtime(
    form: Any, channels_last: bool, tmp_path: Path
) -> None:
    net, x = Stem(channels_last), torch.zeros(1, *((5, 6, 1) if channels_last else (1, 5, 6)))
    report = export_onnx(net, tmp_path / "m.onnx", x, form=form, padded=True)
    session = ort.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    sizes, outputs, axis = np.array([[5, 6], [3, 4]]), [], -1 if channels_last else 1
    values = np.random.default_rng(0).random((2, 5, 6), np.float32)
    for padding in (0, 1, np.nan):
        padded = values.copy()
        padded[1, 3:] = padded[1, :, 4:] = padding
        (y,) = session.run(None, {"x": np.expand_dims(padded, axis), "sizes": sizes})
        outputs.append(np.moveaxis(y, axis, -1))
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    alone = float64_reference(net)(np.expand_dims(values[1:, :3, :4], axis))
    np.testing.assert_allclose(outputs[0][1:, :3, :4], np.moveaxis(alone, axis, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "kind"), [("md", "grid"), ("md", "classify"), ("horizontal", "grid"), ("snake", "grid")]
)
def test_shipped_networks_take_padded_samples(model: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create(model, 1, 2, kind=kind)
    export_onnx(net, tmp_path / "m.onnx", form="scan", padded=True, channels=1)
    session, reference = Session(tmp_path / "m.onnx", "cpu"), float64_reference(net)
    rng = np.random.default_rng(0)
    samples = [rng.random(grid, np.float32) for grid in [(5, 6), (1, 1), (1, 9), (5, 1)]]
    for sample, y in zip(samples, session.run_many(samples), strict=True):
        np.testing.assert_allclose(y, reference(sample[None, ..., None])[0], rtol=0, atol=1e-6)
