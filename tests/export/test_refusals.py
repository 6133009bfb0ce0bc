"""What cannot be exported is refused in one line, and no file appears; and what the comparison with float64
accepts: any dtype in forward, outputs of any scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.damage import with_scaled_tanh
from helpers.networks import Conditioned, ConvStem, FoldedHeight, Function, UNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from mdlstm_tk import MDLSTM, tiling
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import export_onnx, float64_reference, lower
from mdlstm_tk.export import onnx as walk
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session


class Sized(Function):
    """A layer with the sizes of padded samples."""

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:  # type: ignore[override]
        return self.after(self.layer(x, sizes))  # type: ignore[no-any-return]


class TwoGrids(Function):
    """Two images of one size."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(x) + self.layer(z)  # type: ignore[no-any-return]


def after(function: Callable[[Tensor], Any]) -> nn.Module:
    return Function(after=function)


X, G, SCAN = torch.rand(1, 4, 6, 1), {"grid": (3, 4)}, {"form": "scan"}
PADDED = {"example_inputs": torch.rand(2, 5, 5, 1), "padded": True, **SCAN}
PAIR = {"example_inputs": (X, X), **SCAN}
BY_DTYPE: Callable[[Tensor], Tensor] = lambda y: 2 * y if y.dtype == torch.float64 else y  # noqa: E731
CLASSES = {**G, "metadata": {"kind": "classify"}}
REFUSED: dict[str, tuple[type[MDLSTMError], Callable[[], nn.Module], dict[str, Any]]] = {
    "a kind without classes": (InputError, lambda: after(lambda y: y.mean((1, 2))), CLASSES),
    "a kind of other outputs": (InputError, Function, CLASSES),
    "complex numbers": (InputError, lambda: after(torch.fft.fft), G),
    "no batch": (InputError, lambda: after(lambda y: y[0]), G),
    "one sample alone": (InputError, lambda: after(lambda y: y[:1]), G),
    "NaN": (InputError, lambda: Function(torch.log), G),
    "a mean of the batch": (InputError, lambda: after(lambda y: 1e-8 * (y - y.mean(0))), G),
    "those before": (InputError, lambda: after(lambda y: y.cumsum(0)), G),
    "random": (InputError, lambda: Function(lambda x: x + torch.rand_like(x)), G),
    "padding, flattened": (InputError, lambda: Sized(after=lambda y: y.flatten(1, 2)), PADDED),
    "padding, read": (ParityError, lambda: Sized(after=lambda y: y - y.mean((1, 2), True)), PADDED),
    "a grid beside x": (InputError, TwoGrids, PAIR),
    "another grid": (InputError, TwoGrids, {"example_inputs": (X, X[:, 1:]), "grid_inputs": ["z"], **SCAN}),
    "no channels": (InputError, ConvStem, {"grid": (8, 8)}),
    "a missing input": (InputError, Conditioned, G),
    "no grid": (InputError, Function, {}),
    "no multiple": (InputError, UNet, {"grid": (5, 8), "channels": 1, "multiple_of": 2}),
    "strides": (InputError, UNet, {"example_inputs": torch.zeros(1, 1, 4, 6), **SCAN}),
    "a fixed height": (InputError, FoldedHeight, {**SCAN, "channels_last": False}),
    "a grid of tiles": (InputError, lambda: MDLSTM(1, 2), {**G, "form": "tiles"}),
    "an operator": (MDLSTMError, lambda: Function(torch.special.bessel_j0), G),
    "a decision by a dtype": (ParityError, lambda: after(BY_DTYPE), G),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    kind, make, options = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(kind) as raised:
        export_onnx(make(), tmp_path / ("m.tiles" if "tiles" in name else "m.onnx"), **options)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(InputError, match="exists"):
        export_onnx(Function(), tmp_path / "m.onnx", **G, replace=False)
    for path in (tmp_path, tmp_path / "mistyped/m.onnx", tmp_path / "m.tiles"):
        with pytest.raises(InputError):
            export_onnx(Function(), path, **G)
    assert (tmp_path / "m.onnx").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


class AnyDtype(nn.Module):
    """Asks for dtypes of its own; for narrow ones if it is told to."""

    narrow = False

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = MDLSTM(1, 3), nn.Linear(3, 2)
        self.recurrent = nn.GRU(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body: Tensor = self.body(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.narrow):
            inside = self.head(body).float()
        return {
            "eye": body @ torch.eye(3),
            "zeros": self.recurrent(body.mean(1), torch.zeros(1, x.shape[0], 2))[0],
            "softmax": self.head(body.softmax(-1, dtype=torch.float32)),
            "head": inside,
            "body": body.half().float() if self.narrow else body,
            "tiles": tiling.checkpointed(self.body, x, tile=2),
        }


def test_tensors_of_any_dtype_in_forward_are_compared_in_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = AnyDtype(), torch.rand(2, 4, 5, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # off in the export, and on after it
        report = export_onnx(net, tmp_path / "m.onnx", x)
        assert net.head(net.body(x)).dtype == torch.bfloat16
        exact = float64_reference(net)(x.numpy())
    y = Session(report.path, "cpu")(x.numpy())
    for name, truth in exact.items():
        np.testing.assert_allclose(y[name], truth, rtol=0, atol=1e-5, err_msg=name)
    net.narrow = True
    for name, truth in float64_reference(net)(x.numpy()).items():
        np.testing.assert_array_equal(truth, exact[name], err_msg=name)
    with pytest.raises(MDLSTMError):
        export_onnx(net, tmp_path / "narrow.onnx", x)


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


WRONG: dict[str, Callable[[], nn.Module]] = {
    "large": lambda: Function(after=lambda y: 1e4 * y),
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
    "glu": lambda y: functional.glu(torch.cat([y, y - 14], -1)),
    "elu": lambda y: functional.elu(1e-6 * y),
    "expm1": lambda y: (1e-6 * y).expm1(),
    "gelu": lambda y: functional.gelu(y - 5),  # of an erf
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
