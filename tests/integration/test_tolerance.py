"""The tolerance of an export is in units of its outputs, and a failure names what is to blame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.damage import with_scaled_tanh
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export import api, export_onnx, float64_reference, verify_model
from mdlstm_tk.export.lowering.lower import lower
from mdlstm_tk.export.verification.parity import compare, feature_scale
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session


def regression() -> nn.Module:
    """A network with targets in the thousands, as training makes it."""
    torch.manual_seed(0)
    network = create("md", 1, 1, linear=True, directions="all", hidden=8)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Normalized(network, (0.5,), (0.3,), (0.0,), (20000.0,))


def test_a_regression_on_large_targets_exports(tmp_path: Path) -> None:
    net, grid = regression(), (8, 8)
    report = export_onnx(net, tmp_path / "m.onnx", grid=grid)
    x = np.random.default_rng(3).standard_normal((40, *grid, 1)).astype(np.float32)
    y, exact = Session(report.path, "cpu")(x), float64_reference(net)(x)
    assert not compare(y, exact).passed  # without the scale
    assert compare(y, exact, scale=feature_scale([exact])).passed
    assert verify_model(report.path, net, device="cpu", seeds=1).failed == []


def test_each_feature_has_its_own_scale() -> None:
    small, large = np.full((2, 3, 4), 0.5), np.full((2, 3, 4), 5000.0)
    expected = np.stack([small, large], axis=-1)
    scale = feature_scale([expected])
    assert scale.shape == (1, 1, 1, 2) and scale.ravel().tolist() == [1, 5000]
    shifted = expected.copy()
    shifted[..., 1] += 0.01
    assert compare(shifted, expected, scale=scale).passed
    shifted[..., 0] += 0.01
    assert not compare(shifted, expected, scale=scale).passed
    channels_first = np.moveaxis(expected, -1, 1)
    assert feature_scale([channels_first], 1).ravel().tolist() == [1, 5000]
    assert feature_scale([np.zeros((2, 3)), np.full((2, 5), 7.0)]).ravel().tolist() == [7]
    assert feature_scale([np.asarray([3.0, -4.0])]).ravel().tolist() == [4]


@pytest.fixture
def slightly_wrong_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every export wrong: a tanh of wavefront 3 is 0.1 % too small."""

    def wrong(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
        return with_scaled_tanh(lower(model, form), "/wavefront_3/", 0.999)

    monkeypatch.setattr(api, "lower", wrong)


@pytest.mark.usefixtures("slightly_wrong_graphs")
def test_a_wrong_graph_is_refused_at_large_scales(tmp_path: Path) -> None:
    with pytest.raises(ParityError) as raised:
        export_onnx(regression(), tmp_path / "m.onnx", grid=(5, 5))
    assert "graph" in str(raised.value) and "stable" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


class Imprecise(nn.Module):
    """float32 cannot hold what this network computes.

    Args:
        cell: of its layer.
    """

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.layer = MDLSTM(1, 2, cell=cell)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + 1e5) - 1e5


@pytest.mark.parametrize("cell", ["graves", "stable"])
def test_a_network_beyond_float32_is_named_as_such(cell: str, tmp_path: Path) -> None:
    with pytest.raises(ParityError) as raised:
        export_onnx(Imprecise(cell), tmp_path / "m.onnx", grid=(3, 3))
    message = str(raised.value)
    assert "PyTorch in float32" in message and "--atol" in message
    assert ("stable" in message) == (cell == "graves")
