"""Verification of exports: errors are measured at the scale of the outputs; wrong graphs are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.damage import with_scaled_tanh
from helpers.networks import Function
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export import export_onnx, lower
from mdlstm_tk.export import onnx as walk
from mdlstm_tk.export.verify import compare
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session


def regression() -> nn.Module:
    """A network with targets in the thousands, as training makes it."""
    torch.manual_seed(0)
    network = create("md", 1, 1, linear=True, directions="all", hidden=8)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Normalized(network, (0.5,), (0.3,), (0.0,), (20000.0,))


@pytest.fixture
def slightly_wrong_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every export wrong: a tanh of wavefront 3 is 0.1 % too small."""

    def wrong(model: onnx.ModelProto, form: Any, **options: bool) -> onnx.ModelProto:
        return with_scaled_tanh(lower(model, form, **options), "/wavefront_3/", 0.999)

    monkeypatch.setattr(walk, "lower", wrong)


@pytest.mark.usefixtures("slightly_wrong_graphs")
@pytest.mark.parametrize(
    "make",
    [regression, lambda: create("md", 1, 1), lambda: Function(after=lambda y: 1e-9 * y)],
    ids=["large", "small", "tiny"],
)
def test_a_wrong_graph_is_refused_at_every_scale(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="computes something else") as raised:
        export_onnx(make(), tmp_path / "m.onnx", grid=(5, 5))
    assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("slightly_wrong_graphs")
def test_integers_of_a_wrong_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="computes something else"):
        export_onnx(Function(after=lambda y: (1e6 * y).round().int()), tmp_path / "m.onnx", grid=(5, 5))


def test_a_larger_tolerance_is_used_and_recorded(tmp_path: Path) -> None:
    net = Function(after=lambda y: (y + 1e4) - 1e4)
    report = export_onnx(net, tmp_path / "m.onnx", grid=(5, 5), atol=0.1)
    assert Session(report.path, "cpu").metadata.parity["atol"] == 0.1 and report.max_abs > 1e-5


ACTIVATIONS: dict[str, Any] = {
    "sigmoid": lambda y: (y - 14).sigmoid(),
    "silu": lambda y: nn.functional.silu(y - 14, inplace=True),
    "log1p": lambda y: (1e-6 * y.abs()).log1p(),
    "erfc": lambda y: (y + 4).erfc(),
    "tanh": lambda y: 1 - (y + 7).tanh(),
    "glu": lambda y: nn.functional.glu(torch.cat([y, y - 14], -1)),
    "elu": lambda y: nn.functional.elu(1e-6 * y),
    "selu": lambda y: nn.functional.selu(1e-6 * y),
    "celu": lambda y: nn.functional.celu(1e-6 * y),
    "expm1": lambda y: (1e-6 * y).expm1(),
    "gelu": lambda y: nn.functional.gelu(y - 5),
    "mish": lambda y: nn.functional.mish(y - 14),
    "softplus": lambda y: nn.functional.softplus(y - 14),
    "softmax": lambda y: torch.cat([y - 14, 0 * y], -1).softmax(-1),
    "zero": lambda y: y * 0,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_with_small_values_are_exported(name: str, tmp_path: Path) -> None:
    """Those of ONNX Runtime err by 1e-7, also where they are smaller than that."""
    export_onnx(Function(after=ACTIVATIONS[name]), tmp_path / "m.onnx", grid=(5, 5))


class Closed(nn.Module):
    """Layers whose gates are closed, so that their outputs are tiny."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.sub_(6)

    def forward(self, x: Tensor) -> Tensor:
        is_lstm = isinstance(self.layer, nn.LSTM)
        return self.layer(x.flatten(0, 1))[0].unflatten(0, x.shape[:2]) if is_lstm else self.layer(x)


@pytest.mark.parametrize("make", [lambda: MDLSTM(1, 2), lambda: nn.LSTM(1, 2, batch_first=True)])
def test_layers_with_closed_gates_are_exported(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    options: dict[str, Any] = {"grid": (5, 5), "channels": 1, "example_range": (0, 1)}
    export_onnx(Closed(make()), tmp_path / "m.onnx", **options)


def test_equal_numbers_are_within_a_tolerance_of_zero() -> None:
    y = np.array([[0.0, 1.0]])
    assert compare(y, y, atol=0).passed and not compare(y + 1e-9, y, atol=0).passed
