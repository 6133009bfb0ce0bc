"""`export_onnx`: every network in every form agrees with float64, and an error leaves no file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.networks import (
    Conditioned,
    ConvStem,
    FoldedHeight,
    Function,
    Tokens,
    TwoGrids,
    branching,
    sparse,
    spectrogram,
    warped,
)
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import (
    export_onnx,
    float64_reference,
    lower,
    translation_table,
    verify_model,
)
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session


class Surrounded(nn.Module):
    """An MDLSTM layer with options between two linear layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(2, 3), MDLSTM(3, 4, **options)
        self.after = nn.Linear(self.layer.output_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x).tanh()))


class Logarithm(nn.Module):
    """Takes positive x and z alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(1, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.layer(x.log()) + z.log()[:, None, None]


def pooled() -> nn.Module:
    """Pooling of windows after a stride."""
    layer = MDLSTM(2, 2, window=2, channels_last=False)
    return nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def weight_norm() -> nn.Module:
    """Weights that a parametrization computes, which become constants."""
    net = create("md", 2, 1)
    nn.utils.parametrizations.weight_norm(net.body, "weight_hh_l0")
    return net


class Recurrent(nn.Module):
    """A layer of torch along the columns after an MDLSTM layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.after = MDLSTM(1, 2), nn.GRU(2, 3, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(x).mean(1))[0]


class NamedAsOperators(nn.Module):
    """An output and an input with the names that torch gives to other values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = MDLSTM(1, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor, tanh: Tensor) -> dict[str, Tensor]:
        return {"mean": self.head(self.layer(x).mean((1, 2)).tanh()) + tanh}


class Inputs(Function):
    """Returns its inputs beside the output of the layer."""

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.layer(x), x, z


X, Z = torch.randn(2, 3, 4, 2), torch.randn(2, 2)
T, IMAGE, RGB = torch.zeros(1, 4, 5, 1), torch.rand(1, 1, 8, 12), torch.rand(1, 3, 8, 12)
PAIR = (torch.rand(1, 4, 5, 1), torch.rand(1, 4, 5, 3))
POSITIVE, K = torch.rand(2, 3, 4, 1) + 1, torch.tensor([3, 1])
SCAN = {"form": "scan"}
DRAWN = {
    "grid": (3, 4),
    "example_range": lambda shape, generator: torch.rand(shape, generator=generator) + 1,
}
DEGENERATE = ((1, 7), (7, 1), (1, 1), (2, 1), (5,))
CASES: dict[
    str, tuple[Callable[[], nn.Module], Any, dict[str, Any], list[tuple[int, ...]], tuple[str, ...]]
] = {
    # network, example_inputs, options, shapes of x to run on, needs_trust
    "peephole, norm": (lambda: Surrounded(peephole=True, layer_norm=True), X, {}, [(3, 4, 2)], ()),
    "window": (lambda: Surrounded(bias=False, window=(2, 3)), X, {}, [(3, 4, 2)], ()),
    "window, scan": (lambda: Surrounded(window=(2, 3)), X, SCAN, [(5, 7, 2), (1, 9, 2)], ()),
    "stacked": (lambda: Surrounded(num_layers=2, directions="all", merge="sum"), X, {}, [(3, 4, 2)], ()),
    "stable, scan": (lambda: Surrounded(cell="stable"), None, {**SCAN, "channels": 2}, [(4, 6, 2)], ()),
    "stem": (ConvStem, RGB, {}, [(3, 8, 12)], ()),
    "folded height": (FoldedHeight, IMAGE, {"grid": (8, None)}, [(1, 8, 20), (1, 8, 3)], ()),
    "inputs": (Inputs, (T, torch.randn(1, 3)), SCAN, [], ()),
    "pooled": (pooled, torch.rand(1, 1, 16, 16), SCAN, [(1, 9, 21)], ()),
    "weight norm": (weight_norm, X, {}, [(3, 4, 2)], ()),
    **{
        str(g): (lambda g=g: MDLSTM(2, 3, ndim=len(g), directions="all"), None, {"grid": g}, [(*g, 2)], ())
        for g in DEGENERATE
    },
    "spectrogram": (spectrogram, torch.rand(1, 6, 9), SCAN, [(4, 5)], ()),
    "tokens": (lambda: Tokens(0), torch.randint(7, (1, 4, 5)), SCAN, [(3, 6)], ()),
    "tokens, last axis": (lambda: Tokens(-1), T, {"example_range": (0, 6)}, [(4, 5, 1)], ()),
    "warped": (warped, torch.rand(1, 1, 4, 5), {}, [(1, 4, 5)], ("GridSample",)),
    "warped, scan": (lambda: nn.Sequential(warped()), None, SCAN, [(1, 6, 3)], ("GridSample",)),
    "branching": (branching, torch.randn(1, 4, 5, 1), {}, [(4, 5, 1)], ("If",)),
    "padded": (lambda: MDLSTM(1, 2), None, {"grid": (4, 5), "padded": True}, [(4, 5, 1)], ()),
    "further": (Conditioned, (X, Z, K), {}, [], ()),
    "two grids": (TwoGrids, PAIR, {**SCAN, "grid_inputs": ["z"]}, [], ()),
    "positive": (Logarithm, (POSITIVE, torch.rand(2, 2) + 1), {}, [], ()),
    "drawn": (lambda: Function(torch.log), None, DRAWN, [], ()),
    "tiles": (lambda: MDLSTM(1, 2), None, {"form": "tiles"}, [], ()),
    "names of operators": (NamedAsOperators, (T, torch.randn(1, 3)), {}, [], ()),
    "sparse": (sparse, torch.randn(2, 4, 5, 1), {}, [(4, 5, 1)], ("NonZero",)),
}


@pytest.mark.parametrize("name", CASES)
def test_networks_are_exported_and_agree_with_float64(name: str, tmp_path: Path) -> None:
    make, examples, options, shapes, needs_trust = CASES[name]
    torch.manual_seed(0)
    net = make()
    weights = copy.deepcopy(net.state_dict())
    path = tmp_path / ("m.tiles" if name == "tiles" else "m.onnx")
    report = export_onnx(net, path, examples, **options)
    torch.testing.assert_close(net.state_dict(), weights, rtol=0, atol=0)
    assert net.training and report.needs_trust == needs_trust and report.max_abs < 2e-5
    if needs_trust:
        with pytest.raises(InputError, match=needs_trust[0]):
            Session(path, "cpu")
    for shape in shapes:
        session, reference = Session(path, "cpu", trusted=bool(needs_trust)), float64_reference(net)
        assert session.metadata == report.metadata
        x = np.random.default_rng(0).random((2, *shape), np.float32)
        x = np.floor(6 * x) if name.startswith("tokens") else x
        x = x.astype(np.int64) if report.metadata.integer else x
        y, exact = (r if isinstance(r, dict) else {"y": r} for r in (session(x), reference(x)))
        assert y.keys() == exact.keys()
        for key in exact:
            np.testing.assert_allclose(y[key], exact[key], rtol=0, atol=1e-5)


def test_metadata_tell_what_a_file_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    metadata = export_onnx(FoldedHeight(), tmp_path / "m.onnx", IMAGE, grid=(8, None)).metadata
    assert (metadata.grid, metadata.form, metadata.layout) == ((8, None), "scan", "N C H W")
    session = Session(tmp_path / "m.onnx", "cpu")
    with pytest.raises(InputError, match=r"10x12 .*8x\*"):
        session(np.zeros((10, 12)))
    many = session.run_many([np.zeros((8, 4)), np.zeros((8, 6))])
    assert [y.shape for y in many] == [(2, 5), (3, 5)]
    tokens = torch.randint(7, (3, 4, 5))
    export_onnx(Tokens(0), tmp_path / "t.onnx", tokens)
    session = Session(tmp_path / "t.onnx", "cpu")
    metadata = session.metadata
    assert (metadata.integer, metadata.channel_axis, metadata.example_range) == (True, False, (0, 6))
    with pytest.raises(InputError, match="whole numbers"):
        session(tokens.numpy() + 0.5)
    verify_model(tmp_path / "t.onnx", device="cpu", seeds=1).raise_if_failed()


def test_further_inputs_by_position_and_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, k = Conditioned(), torch.tensor([3, 1], dtype=torch.int32)
    session = Session(export_onnx(net, tmp_path / "m.onnx", (X, Z, k)).path, "cpu")
    assert session.metadata.inputs == ("x", "z", "k")
    y = session(X.numpy(), z=Z.numpy(), k=k.numpy())
    np.testing.assert_allclose(y, net(X, Z, k).detach(), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="takes z, k, got z"):
        session(X.numpy(), z=Z.numpy())
    with pytest.raises(InputError, match="k holds numbers that are no int64"):
        session(X.numpy(), z=Z.numpy(), k=Z.numpy())
    with pytest.raises(MDLSTMError, match="z"):
        session(X.numpy(), z=Z.numpy()[..., :1], k=k.numpy())
    for value in (-1, 100):  # ONNX counts -1 from the end, torch does not
        with pytest.raises(MDLSTMError, match="out of data bounds"):
            session(X.numpy(), z=Z.numpy(), k=np.full(2, value))


class MixedLayouts(TwoGrids):
    """x has its channels last, z first."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return super().forward(x, z.movedim(1, -1))


def test_two_grids_take_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, (x, z) = MixedLayouts(), PAIR
    examples = x, z.movedim(-1, 1)
    report = export_onnx(net, tmp_path / "m.onnx", examples, form="scan", grid_inputs=["z"])
    session, rng = Session(report.path, "cpu"), np.random.default_rng(0)
    x, z = (rng.random((2, *e.shape[1:]), np.float32).repeat(3, axis=e.shape.index(5)) for e in examples)
    np.testing.assert_allclose(session(x, z=z), float64_reference(net)(x, z=z), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="grid_inputs="):
        export_onnx(TwoGrids(), tmp_path / "n.onnx", PAIR, form="scan")


def test_free_axes_of_the_output_stay_free(tmp_path: Path) -> None:
    report = export_onnx(Recurrent(), tmp_path / "m.onnx", form="scan")
    (y,) = onnx.load(report.path).graph.output
    batch, steps, features = y.type.tensor_type.shape.dim
    assert batch.dim_param and steps.dim_param and features.dim_value == 6


@pytest.mark.filterwarnings("ignore::FutureWarning")  # raised inside torch
def test_a_model_exported_with_torch_itself_can_be_lowered() -> None:
    net, x = Surrounded().eval(), torch.randn(2, 4, 3, 2)
    options: Any = {"custom_translation_table": translation_table(), "verbose": False, "opset_version": 18}
    program = torch.onnx.export(net, (x,), dynamo=True, **options)
    for form in ("unrolled", "scan"):
        model = lower(program.model_proto, form)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, net(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_the_reference_takes_arrays_of_any_byte_order_and_read_only_ones() -> None:
    reference, x = float64_reference(MDLSTM(1, 2)), np.random.default_rng(0).random((2, 3, 4, 1))
    swapped, frozen = x.astype(">f8"), np.broadcast_to(x, x.shape)
    np.testing.assert_array_equal(reference(swapped), reference(x))
    np.testing.assert_array_equal(reference(frozen), reference(x))
