"""What the comparison with float64 accepts and refuses: any dtype in forward, outputs of any scale."""

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
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from mdlstm_tk import MDLSTM, tiling
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export import export_onnx, float64_reference, lower
from mdlstm_tk.export import onnx as walk
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session


class AnyDtype(nn.Module):
    """Asks for dtypes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = MDLSTM(1, 3), nn.Linear(3, 2)
        self.recurrent = nn.GRU(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body: Tensor = self.body(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = self.head(body).float()
        return {
            "eye": body @ torch.eye(3),
            "zeros": self.recurrent(body.mean(1), torch.zeros(1, x.shape[0], 2))[0],
            "softmax": self.head(body.softmax(-1, dtype=torch.float32)),
            "autocast": inside,
            "half": body.half().float() / 255,
            "tiles": tiling.checkpointed(self.body, x, tile=2),
        }


def test_tensors_of_any_dtype_in_forward_are_compared_in_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = AnyDtype(), torch.rand(2, 4, 5, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # off in the export, and on after it
        report = export_onnx(net, tmp_path / "m.onnx", x)
        assert net.head(net.body(x)).dtype == torch.bfloat16
    y, exact = Session(report.path, "cpu")(x.numpy()), float64_reference(net)(x.numpy())
    for name, truth in exact.items():
        np.testing.assert_allclose(y[name], truth, rtol=0, atol=1e-5, err_msg=name)


def test_weights_that_are_computed_are_exported(tmp_path: Path) -> None:
    net = Function()
    parametrizations.weight_norm(net.layer, "weight_hh_l0")
    with torch.no_grad():  # so that the weight is no part of a graph
        prune.l1_unstructured(net.layer, "weight_ih_l0", 0.5)
        net.layer.weight_ih_l0_orig += 1  # since then, the weight is out of date until the next forward
    report, x = export_onnx(net, tmp_path / "m.onnx", grid=(3, 4)), torch.rand(2, 3, 4, 1)
    y = Session(report.path, "cpu")(x.numpy())
    np.testing.assert_allclose(y, net(x).detach(), rtol=0, atol=1e-6)


def test_float16_is_verified_with_a_tolerance_of_5e_3(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create("md", 1, 1)
    report = export_onnx(net, tmp_path / "m.onnx", grid=(8, 8), dtype="float16")
    metadata, session = report.metadata, Session(report.path, "cpu")
    assert (metadata.dtype, metadata.parity["atol"]) == ("float16", 5e-3)
    assert 1e-5 < metadata.parity["max_abs"] < 5e-3
    assert session(np.eye(8)).dtype == np.float32
    weights = {tensor.data_type for tensor in onnx.load(report.path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT not in weights


def regression() -> nn.Module:
    """A network with targets in the thousands, as training makes it."""
    torch.manual_seed(0)
    network = create("md", 1, 1, linear=True, hidden=8)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Normalized(network, (0.5,), (0.3,), (0.0,), (20000.0,))


WRONG: dict[str, Callable[[], nn.Module]] = {
    "regression": regression,
    "small": lambda: create("md", 1, 1),
    "tiny": lambda: Function(after=lambda y: 1e-9 * y),
    "integers": lambda: Function(after=lambda y: (1e3 * y).round().int()),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_graph_is_refused_at_every_scale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tanh of wavefront 3 is 0.1 % too small."""

    def wrong(model: onnx.ModelProto, form: Any) -> onnx.ModelProto:
        return with_scaled_tanh(lower(model, form), "/wavefront_3/", 0.999)

    monkeypatch.setattr(walk, "lower", wrong)
    with pytest.raises(ParityError, match="computes something else") as raised:
        export_onnx(WRONG[name](), tmp_path / "m.onnx", grid=(5, 5))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_larger_tolerance_is_used_and_recorded(tmp_path: Path) -> None:
    net, path = Function(after=lambda y: (y + 1e4) - 1e4), tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(ParityError, match="atol="):
        export_onnx(net, path, grid=(5, 5))
    assert path.read_text() == "old"
    report = export_onnx(net, path, grid=(5, 5), atol=0.1)
    assert Session(report.path, "cpu").metadata.parity["atol"] == 0.1 and report.max_abs > 1e-5


SMALL: dict[str, Any] = {
    "sigmoid": lambda y: (y - 14).sigmoid(),
    "silu": lambda y: functional.silu(y - 14, inplace=True),
    "log1p": lambda y: (1e-6 * y.abs()).log1p(),
    "erfc": lambda y: (y + 4).erfc(),
    "tanh_": lambda y: 1 - (y + 7).tanh(),
    "glu": lambda y: functional.glu(torch.cat([y, y - 14], -1)),
    "elu": lambda y: functional.elu(1e-6 * y),
    "selu": lambda y: functional.selu(1e-6 * y),
    "celu": lambda y: functional.celu(1e-6 * y),
    "expm1": lambda y: (1e-6 * y).expm1(),
    "gelu": lambda y: functional.gelu(y - 5),
    "mish": lambda y: functional.mish(y - 14),
    "softplus": lambda y: functional.softplus(y - 14),
    "softmax": lambda y: torch.cat([y - 14, 0 * y], -1).softmax(-1),
    "zero": lambda y: y * 0,
    "tiny numbers": lambda y: (y * 1e-9 + 1e-8) / 1e-8,  # which torch's exporter takes for 0
}


def test_small_values_of_activations_and_closed_gates_are_exported(tmp_path: Path) -> None:
    """ONNX Runtime's activations err by 1e-7, also where their values are smaller than that."""
    net = Function(after=lambda y: {name: activation(y) for name, activation in SMALL.items()})
    assert export_onnx(net, tmp_path / "m.onnx", grid=(5, 5)).max_abs < 1e-5
    closed = MDLSTM(1, 2)
    with torch.no_grad():
        for parameter in closed.parameters():
            parameter.sub_(6)
    export_onnx(closed, tmp_path / "n.onnx", grid=(5, 5), example_range=(0, 1))
