"""Exports of networks whose forward makes tensors of a dtype, turns autocast on, or counts positions, and
of pruned ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import Function
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from mdlstm_tk import MDLSTM, tiling
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.export.capture import capture
from mdlstm_tk.export.network import Network, without_autocast
from mdlstm_tk.runtime import Session

X, TOKENS = torch.rand(2, 4, 5, 1), torch.randint(9, (2, 4, 5))


class Net(nn.Module):
    """A function of layers and x."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict({"body": MDLSTM(1, 3), **layers})

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers, x)


def in_autocast(n: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return n["head"](n["body"](x)).float()


def coordinates(n: Any, x: Tensor) -> Tensor:
    rows = torch.linspace(-1, 1, x.shape[1], dtype=x.dtype, device=x.device)
    return n["body"](x + rows[:, None, None] + torch.linspace(0, 2, steps=x.shape[2])[:, None])


GRU = {"g": nn.GRU(3, 2, batch_first=True)}
HEAD = {"head": nn.Linear(3, 2)}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "eye": (lambda: Net(lambda n, x: n["body"](x) @ torch.eye(3)), X),
    "zeros": (
        lambda: Net(lambda n, x: n["g"](n["body"](x).mean(1), torch.zeros(1, x.shape[0], 2))[0], **GRU),
        X,
    ),
    "bytes": (lambda: Net(lambda n, x: n["body"](x.float() / 255)), X),
    "one hot": (
        lambda: Net(lambda n, x: n["body"](functional.one_hot(x, 9).float()), body=MDLSTM(9, 3)),
        TOKENS,
    ),
    "softmax": (
        lambda: Net(lambda n, x: n["head"](n["body"](x).softmax(-1, dtype=torch.float32)), **HEAD),
        X,
    ),
    "half": (lambda: Net(lambda n, x: n["body"](x.half()).float(), body=MDLSTM(1, 3).half()), X),
    "autocast": (lambda: Net(in_autocast, **HEAD), X),
    "checkpointed": (lambda: Net(lambda n, x: tiling.checkpointed(n["body"], x, tile=2)), X),
    "linspace": (lambda: Net(coordinates), X),
    "flattened": (lambda: Net(lambda n, x: n["g"](n["body"](x).flatten(1, 2))[0], **GRU), X),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_of_any_dtype_in_forward_are_compared_in_float64(name: str, tmp_path: Path) -> None:
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    report = export_onnx(net, tmp_path / "m.onnx", x, form="scan")
    session, reference = Session(report.path, "cpu"), float64_reference(net)
    for grid in ((2, 2), (9, 3)):
        other = torch.randint(9, (3, *grid)) if report.metadata.integer else torch.rand(3, *grid, 1)
        np.testing.assert_allclose(session(other.numpy()), reference(other.numpy()), rtol=0, atol=1e-5)
        with without_autocast(), torch.no_grad():
            own = net(other).numpy()
        np.testing.assert_allclose(
            session(other.numpy()), own, rtol=0, atol=5e-3 if name == "half" else 1e-5
        )


def test_autocast_around_an_export_is_off_in_it_and_on_after_it(tmp_path: Path) -> None:
    net = Net(lambda n, x: n["head"](n["body"](x)), **HEAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert export_onnx(net, tmp_path / "m.onnx", X).max_abs < 1e-5
        assert net(X).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "num_layers": 2},
        *(pytest.param(o, marks=pytest.mark.slow) for o in ({}, {"bias": False, "batch_first": True})),
    ],
    ids=["two layers", "plain", "no bias"],
)
def test_recurrent_layers_of_torch_take_any_number_of_steps(
    kind: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    is_first = options.get("batch_first", False)
    rnn = kind(2, 3, **options)

    def function(n: Any, x: Tensor) -> Tensor:
        y, state = n["rnn"](x if is_first else x.transpose(0, 1))
        h = state[0] if isinstance(state, tuple) else state
        return (y if is_first else y.transpose(0, 1)) + h.mean((0, 2))[:, None, None]

    net = Net(function, rnn=rnn).eval()
    model = capture(Network(net), {"x": torch.rand(2, 40, 2)}, {"x": [1]}).model
    (path := tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes())
    for steps in (1, 7):
        x = torch.rand(3, steps, 2)
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], net(x).detach(), atol=1e-6)


def test_a_sample_of_tokens_has_the_shape_that_it_has_in_a_batch(tmp_path: Path) -> None:
    net = Function(lambda x: x[..., None] / 2**25)
    session = Session(export_onnx(net, tmp_path / "m.onnx", TOKENS).path, "cpu")
    head = nn.Sequential(net, nn.Linear(2, 1))
    session = Session(export_onnx(head, tmp_path / "n.onnx", TOKENS, form="scan").path, "cpu")
    tokens = TOKENS.numpy()
    assert session(tokens).shape[1:] == session(tokens[0]).shape == (4, 5, 1)
    with pytest.raises(InputError, match="whole numbers"):
        session(tokens + 2**24 + 1)


def test_weights_that_are_pruned_without_gradients_are_exported(tmp_path: Path) -> None:
    net = Function()
    with torch.no_grad():
        prune.l1_unstructured(net.layer, "weight_ih_l0", 0.5)
        net.layer.weight_ih_l0_orig += 1  # since then, the weight is out of date until the next forward
    report = export_onnx(net, tmp_path / "m.onnx", grid=(3, 4))
    x = torch.rand(2, 3, 4, 1)
    y = Session(report.path, "cpu")(x.numpy())
    np.testing.assert_allclose(y, net(x).detach(), rtol=0, atol=1e-6)
