"""Channels-first files; and padded samples, which give the same numbers as the samples alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


def test_channels_first_in_sessions_and_in_infer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = {"kind": "segment", "classes": ("a", "b", "c"), "mask_values": (0, 7, 255)}
    net = nn.Sequential(MDLSTM(3, 4, channels_last=False), nn.Conv2d(4, 3, 1))
    path = tmp_path / "segment.onnx"
    export_onnx(net, path, torch.zeros(1, 3, 5, 6), form="scan", metadata=colour)
    session, x = Session(path, "cpu"), np.random.default_rng(0).random((2, 3, 5, 6), np.float32)
    y, exact = session(x), float64_reference(net)(x)
    assert session.metadata.layout == "N C H W"
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(session(x[0]), y[0], rtol=0, atol=1e-6)
    with pytest.raises(InputError):
        session(np.moveaxis(x[0], 0, -1))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    succeed("infer", tmp_path / "photo.png", "-m", path, "--device", "cpu", "-o", tmp_path / "mask.png")
    classes = float64_reference(net)(np.moveaxis(pixels[None] / np.float32(255), -1, 1))[0].argmax(0)
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.png"), np.asarray([0, 7, 255])[classes])


def channels_first(after: Callable[[Tensor], Tensor]) -> nn.Module:
    return Function(after=after, channels_last=False)


OUTPUTS: dict[str, tuple[nn.Module, str, int]] = {  # form and features
    "features last": (channels_first(lambda y: y.movedim(1, -1)), "scan", 2),
    "for one grid": (channels_first(lambda y: y.movedim(1, -1).reshape(-1, 5, 6, 2)), "unrolled", 2),
    "extents alone": (Function(after=lambda y: y.argmax(-1)), "scan", 1),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_may_have_its_features_last_or_none(name: str, tmp_path: Path) -> None:
    net, form, features = OUTPUTS[name]
    metadata = export_onnx(net, tmp_path / "m.onnx", grid=(5, 6), form=form).metadata  # type: ignore[arg-type]
    assert (metadata.outputs, metadata.window) == (features, None)


class Padded(nn.Module):
    """A convolution, which does not know `sizes`; layers with different windows; and another input."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        options: Any = {"channels_last": channels_last}
        self.stem, self.shift = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(2, 1)
        self.fine, self.coarse = MDLSTM(3, 2, **options), MDLSTM(3, 3, window=2, **options)

    def forward(self, x: Tensor, z: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        is_last = self.fine.channels_last
        x = self.stem(x.movedim(-1, 1) if is_last else x)
        x = x.movedim(1, -1) if is_last else x
        fine: Tensor = self.fine(x, sizes)
        return {"fine": fine + self.shift(z)[..., None, None], "coarse": self.coarse(x, sizes)}


@pytest.mark.parametrize(("form", "channels_last"), [("unrolled", True), ("scan", False)])
def test_padded_samples_give_the_same_numbers_as_the_samples_alone(
    form: Any, channels_last: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, axis, z = Padded(channels_last), -1 if channels_last else 1, torch.randn(2, 2)
    example = torch.zeros(2, *((5, 6, 1) if channels_last else (1, 5, 6)))
    report = export_onnx(net, tmp_path / "m.onnx", (example, z), form=form, padded=True)
    session, reference = Session(report.path, "cpu"), float64_reference(net)
    assert session.metadata.inputs == ("x", "sizes", "z")
    assert session.metadata.windows == {"fine": (1, 1), "coarse": (2, 2)}
    values = np.random.default_rng(0).random((2, 5, 6), np.float32)
    for height, width in [(5, 6), (1, 1), (1, 6), (5, 1), (3, 4)]:
        x = np.expand_dims(values[:, :height, :width], axis)
        exact, y = reference(x, z=z.numpy()), session(x, z=z.numpy())
        assert all(np.abs(y[name] - exact[name]).max() < 1e-5 for name in exact)
    sizes, outputs = np.array([[5, 6], [3, 4]]), []
    for padding in (0, 1, np.nan):  # in any runtime, so that ONNX Runtime is called without a session
        padded = values.copy()
        padded[1, 3:] = padded[1, :, 4:] = padding
        feeds = {"x": np.expand_dims(padded, axis), "sizes": sizes, "z": z.numpy()}
        outputs.append(session.graph.session.run(["fine"], feeds)[0])
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    alone, whole = (np.moveaxis(each, axis, -1)[-1] for each in (exact["fine"], outputs[0]))
    np.testing.assert_allclose(whole[:3, :4], alone, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="sizes"):
        session(x, sizes=np.asarray([5, 6]), z=z.numpy())


@pytest.mark.parametrize(("model", "kind"), [("md", "classify"), ("horizontal", "grid")])
def test_shipped_networks_take_padded_samples(model: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create(model, 1, 2, kind=kind, hidden=4)
    export_onnx(net, tmp_path / "m.onnx", form="scan", padded=True, channels=1)
    session, reference = Session(tmp_path / "m.onnx", "cpu"), float64_reference(net)
    rng = np.random.default_rng(0)
    samples = [rng.random(grid, np.float32) for grid in [(5, 6), (1, 1), (1, 9), (5, 1)]]
    for sample, y in zip(samples, session.run_many(samples), strict=True):
        np.testing.assert_allclose(y, reference(sample[None, ..., None])[0], rtol=0, atol=1e-6)
