"""`export_onnx(padded=True)`: a padded sample gives the same numbers as the sample alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session

Z = torch.randn(2, 2)


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
    options: Any = {"padded": True, "extra_inputs": {"z": Z}, "output_names": names}
    options["verify_inputs"] = {"smaller": np.ones((2, 3, 6, 1))}
    report = export_onnx(net, tmp_path / "m.onnx", grid=(5, 6), form=form, **options)
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


@pytest.mark.parametrize("form", ["unrolled", "scan"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_what_padding_holds_changes_no_number_in_any_runtime(
    form: Any, channels_last: bool, tmp_path: Path
) -> None:
    net, x = Stem(channels_last), torch.zeros(1, *((5, 6, 1) if channels_last else (1, 5, 6)))
    report = export_onnx(net, tmp_path / "m.onnx", x, form=form, padded=True)
    session = ort.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    sizes, outputs = np.array([[5, 6], [3, 4]]), []
    values = np.random.default_rng(0).random((2, 5, 6), np.float32)
    for padding in (0, 1, np.nan):
        padded = values.copy()
        padded[1, 3:] = padded[1, :, 4:] = padding
        feeds = {"x": padded[..., None] if channels_last else padded[:, None], "sizes": sizes}
        outputs.append(session.run(None, feeds)[0])
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    sample = values[1:, :3, :4, None] if channels_last else values[1:, None, :3, :4]
    alone = float64_reference(net)(sample)
    valid = (
        (slice(1, 2), slice(3), slice(4))
        if channels_last
        else (slice(1, 2), slice(None), slice(3), slice(4))
    )
    np.testing.assert_allclose(outputs[0][valid], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["md", "horizontal", "snake"])
def test_shipped_networks_take_padded_samples(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create(model, 1, 2)
    export_onnx(net, tmp_path / "m.onnx", form="scan", padded=True, channels=1)
    session, reference = Session(tmp_path / "m.onnx", "cpu"), float64_reference(net)
    samples = [
        np.random.default_rng(0).random(grid, np.float32) for grid in [(5, 6), (1, 1), (1, 9), (5, 1)]
    ]
    for sample, y in zip(samples, session.run_many(samples), strict=True):
        np.testing.assert_allclose(y, reference(sample[None, ..., None])[0], rtol=0, atol=1e-6)
