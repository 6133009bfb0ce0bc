"""Scans on large grids: which one an export is verified on, and whose states overflow or round there."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import Function
from torch import Tensor

from mdlstm_tk import MDLSTM, Gate, register_cell
from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.arguments import read_spec
from mdlstm_tk.export.verification import export_verifier


def attention(y: Tensor) -> Tensor:
    """Attention of each position to all others."""
    flat = y.flatten(1, 2)
    return (torch.softmax(flat @ flat.mT, dim=-1) @ flat).view(y.shape)


@pytest.mark.usefixtures("fresh_registries")
def test_a_scan_whose_states_overflow_on_large_grids_says_so(tmp_path: Path) -> None:
    """c triples on each wavefront: on 15×21, the largest of the small grids, it is far from overflowing."""

    @register_cell("tripling", gates=[Gate("i"), Gate("z", "tanh")])
    def equations(gates: Any, states: Any) -> Any:
        i, z = gates
        c = i + 1.5 * sum(states["c"])
        return z * (c / (c + 1)), {"c": c}

    layer, path = MDLSTM(1, 2, cell="tripling"), tmp_path / "m.onnx"
    with pytest.warns(UserWarning, match=r"on \d+x\d+, random .* NaN or infinity, .* outgrow float32"):
        assert export_onnx(layer, path, form="scan").max_abs < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export_onnx(layer, path, grid=(15, 21)).max_abs < 1e-5


@pytest.mark.parametrize("like", ["torch", "the runtime"])
def test_a_scan_may_round_on_large_grids(like: str, tmp_path: Path) -> None:
    """As torch does, or as sigmoids of the runtime, which err to the same side: errors add up that cancel
    out in torch."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 8, cell="slstm") if like == "torch" else MDLSTM(2, 4)
    with torch.no_grad():
        if like == "torch":
            for parameter in layer.parameters():
                parameter *= 4  # n, which grows with the grid, becomes some thousands
        else:
            layer.weight_ih_l0.uniform_(-1.2, 1.2).mul_(3.5)  # as of a network that standardises x
            layer.bias_l0[:, 4:12] = -2
            layer.bias_l0 -= 0.5 * layer.weight_ih_l0.sum(-1)
    assert export_onnx(layer, tmp_path / "m.onnx", form="scan").max_abs < 1e-3


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (MDLSTM(1, 2), {"any_size": True}, "256x256"),
        (MDLSTM(1, 2), {"grid": (48, None), "any_size": True}, "48x256"),
        (MDLSTM(1, 2, ndim=3), {"any_size": True}, "32x32x32"),
        (MDLSTM(1, 2), {"any_size": True, "multiple_of": 24}, "240x240"),
        (Function(after=attention), {"any_size": True}, "64x64"),
        (Function(after=lambda y: y + torch.zeros(64)[: y.shape[2], None]), {"any_size": True}, "64x64"),
        (MDLSTM(1, 2), {"grid": (8, 8)}, None),
    ],
    ids=["free", "height fixed", "3-D", "multiples", "attention", "table", "fixed"],
)
def test_the_large_grid_of_a_verification(
    network: Any, options: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as the network takes it, and bounded: attention needs tensors of the square of the grid."""
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    spec = read_spec(network, channels=1, channels_last=True, **options)
    large = [*export_verifier._large_cases(spec, spec.interface.reference("float64"), (), True)]
    assert [case.group for case, _ in large] == ([] if expected is None else [expected])
