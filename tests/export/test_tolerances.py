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
from torch.nn.utils import prune

from mdlstm_tk import MDLSTM, tiling
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export import export_onnx, float64_reference, lower
from mdlstm_tk.export import onnx as walk
from mdlstm_tk.export.network import without_autocast
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session

X, TOKENS = torch.rand(2, 4, 5, 1), torch.randint(9, (2, 4, 5))


class Net(nn.Module):
    """A function of layers and x."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict({"body": MDLSTM(1, 3), **layers})

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers, x)


def any_dtype(n: Any, x: Tensor) -> dict[str, Tensor]:
    body: Tensor = n["body"](x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = n["head"](body).float()
    return {
        "eye": body @ torch.eye(3),
        "zeros": n["g"](body.mean(1), torch.zeros(1, x.shape[0], 2))[0],
        "flattened": n["g"](body.flatten(1, 2))[0],
        "softmax": n["head"](body.softmax(-1, dtype=torch.float32)),
        "autocast": inside,
        "bytes": body.half().float() / 255,
        "tiles": tiling.checkpointed(n["body"], x, tile=2),
    }


def test_tensors_of_any_dtype_in_forward_are_compared_in_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = {"g": nn.GRU(3, 2, batch_first=True), "head": nn.Linear(3, 2)}
    one_hot = Net(lambda n, x: n["body"](functional.one_hot(x, 9).float()), body=MDLSTM(9, 3))
    for net, example in ((Net(any_dtype, **layers).eval(), X), (one_hot, TOKENS)):
        form: Any = "unrolled" if net is not one_hot else "scan"
        report = export_onnx(net, tmp_path / "m.onnx", example, form=form)
        session, reference = Session(report.path, "cpu"), float64_reference(net)
        x = np.random.default_rng(0).permuted(example.numpy(), axis=1)
        with without_autocast(), torch.no_grad():
            own = net(torch.from_numpy(x))
        for name, y in named(session(x)).items():
            np.testing.assert_allclose(y, named(reference(x))[name], rtol=0, atol=1e-5)
            rounded = 1e-5 if name != "bytes" else 5e-3
            np.testing.assert_allclose(y, named(own)[name].numpy(), rtol=0, atol=rounded)


def named(result: Any) -> dict[str, Any]:
    return result if isinstance(result, dict) else {"y": result}


def test_autocast_around_an_export_is_off_in_it_and_on_after_it(tmp_path: Path) -> None:
    net = Net(lambda n, x: n["head"](n["body"](x)), head=nn.Linear(3, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert export_onnx(net, tmp_path / "m.onnx", X).max_abs < 1e-5
        assert net(X).dtype == torch.bfloat16


def test_weights_that_are_pruned_without_gradients_are_exported(tmp_path: Path) -> None:
    net = Function()
    with torch.no_grad():
        prune.l1_unstructured(net.layer, "weight_ih_l0", 0.5)
        net.layer.weight_ih_l0_orig += 1  # since then, the weight is out of date until the next forward
    report = export_onnx(net, tmp_path / "m.onnx", grid=(3, 4))
    x = torch.rand(2, 3, 4, 1)
    y = Session(report.path, "cpu")(x.numpy())
    np.testing.assert_allclose(y, net(x).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_float16_is_verified_with_a_tolerance_of_5e_3(form: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(8, 8), form=form, dtype="float16")
    metadata, session = report.metadata, Session(report.path, "cpu")
    assert (metadata.dtype, metadata.parity["atol"]) == ("float16", 5e-3)
    assert 1e-5 < metadata.parity["max_abs"] < 5e-3
    assert session(np.eye(8)).dtype == np.float32
    weights = {tensor.data_type for tensor in onnx.load(report.path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT not in weights


def regression() -> nn.Module:
    """A network with targets in the thousands, as training makes it."""
    torch.manual_seed(0)
    network = create("md", 1, 1, linear=True, directions="all", hidden=8)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Normalized(network, (0.5,), (0.3,), (0.0,), (20000.0,))


@pytest.mark.parametrize(
    "make",
    [
        regression,
        lambda: Function(after=lambda y: 1e4 * y),
        lambda: create("md", 1, 1),
        lambda: Function(after=lambda y: 1e-9 * y),
        lambda: Function(after=lambda y: (1e3 * y).round().int()),
    ],
    ids=["regression", "large", "small", "tiny", "integers"],
)
def test_a_wrong_graph_is_refused_at_every_scale(
    make: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tanh of wavefront 3 is 0.1 % too small."""

    def wrong(model: onnx.ModelProto, form: Any) -> onnx.ModelProto:
        return with_scaled_tanh(lower(model, form), "/wavefront_3/", 0.999)

    net = make()
    assert export_onnx(net, tmp_path / "right.onnx", grid=(5, 5)).max_abs >= 0
    monkeypatch.setattr(walk, "lower", wrong)
    with pytest.raises(ParityError, match="computes something else") as raised:
        export_onnx(net, tmp_path / "m.onnx", grid=(5, 5))
    assert "\n" not in str(raised.value) and [path.name for path in tmp_path.iterdir()] == ["right.onnx"]


def test_a_larger_tolerance_is_used_and_recorded(tmp_path: Path) -> None:
    net = Function(after=lambda y: (y + 1e4) - 1e4)
    with pytest.raises(ParityError, match="atol="):
        export_onnx(net, tmp_path / "m.onnx", grid=(5, 5))
    report = export_onnx(net, tmp_path / "m.onnx", grid=(5, 5), atol=0.1)
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
