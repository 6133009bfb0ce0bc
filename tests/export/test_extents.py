"""Exports compute extents as Python does in `forward`, or the network is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.networks import Function
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session


class Skip(nn.Module):
    """Takes x (N, 1, H, W), extents from 32 on. It joins a map to one of half its extents, and asks these
    whether it has to be cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.layer = nn.MaxPool2d(2), MDLSTM(1, 2, channels_last=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.pool(self.pool(x))
        b = self.pool(a)
        h, w = 2 * b.shape[2], 2 * b.shape[3]
        if a.shape[2] > h or a.shape[3] > w:
            a = a[:, :, :h, :w]
        return self.layer(self.pool(self.pool(b))).mean((2, 3)) + a.mean((2, 3))


@pytest.mark.slow
def test_a_crop_that_no_verified_grid_needs_is_not_lost_in_silence(tmp_path: Path) -> None:
    """All grids that such a network is verified on have extents for which torch's condition is true."""
    path = tmp_path / "m.onnx"
    with pytest.raises(MDLSTMError):
        export_onnx(Skip().eval(), path, form="scan", channels=1, channels_last=False)
    assert not path.exists()


def test_extents_are_divided_as_in_python(tmp_path: Path) -> None:
    net = Function(after=lambda y: y.index_select(1, torch.arange(-(-y.shape[1] // 2))))
    path = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1).path
    assert Session(path, "cpu")(np.zeros((1, 9, 4, 1), np.float32)).shape == (1, 5, 4, 2)


@pytest.mark.parametrize(
    ("rounded", "is_exact"),
    [
        (lambda n: math.floor(n * 0.7), False),
        (lambda n: math.ceil(n / 1.3), False),
        (lambda n: math.ceil((n - 0.1) / 2), False),
        (lambda n: math.floor(n * 0.75), True),
        (lambda n: math.ceil(n / 3), True),
    ],
    ids=["floor", "ceil", "sum", "three quarters", "third"],
)
def test_extents_that_are_rounded_are_those_of_python(
    rounded: Callable[[Any], int], is_exact: bool, tmp_path: Path
) -> None:
    """⌊90 · 0.7⌋ is 62, and in float32 63."""
    net = Function(after=lambda y: y[:, : rounded(y.shape[1])])
    if not is_exact:
        with pytest.raises(MDLSTMError, match=r"rounds what it computes from an extent .* with integers"):
            export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1)
        return
    path = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1).path
    session = Session(path, "cpu")
    for extent in range(3, 60):
        assert session(np.zeros((1, extent, 3, 1), np.float32)).shape[1] == rounded(extent)


RESIZED: dict[str, tuple[dict[str, Any], bool | None]] = {  # options; whether Resize is used; None: refused
    "a size": ({"size": (7, 5)}, False),
    "one extent for both": ({"size": 14}, False),
    "exact": ({"size": (7, 5), "mode": "nearest-exact"}, False),
    "twice": ({"scale_factor": 2}, True),
    "half": ({"scale_factor": 0.5, "mode": "nearest-exact"}, False),
    "by a ratio": ({"scale_factor": 1.5, "recompute_scale_factor": True}, False),
    "linear to a size": ({"size": (7, 5), "mode": "bilinear"}, True),
    "linear, three times": ({"scale_factor": 3.0, "mode": "bilinear"}, True),
    "a third": ({"scale_factor": (1 / 3, 2)}, True),
    "an exact third": ({"scale_factor": (1 / 3, 2), "mode": "nearest-exact"}, False),
    "seven tenths": ({"scale_factor": 0.7}, None),
    "linear by 2.3": ({"scale_factor": 2.3, "mode": "bilinear"}, None),
}


@pytest.mark.parametrize("case", RESIZED)
def test_images_are_resized_as_by_torch_on_every_grid(case: str, tmp_path: Path) -> None:
    options, uses_resize = RESIZED[case]
    net = Function(after=lambda y: nn.functional.interpolate(y.movedim(-1, 1), **options).movedim(1, -1))
    if uses_resize is None:
        with pytest.raises(MDLSTMError, match=r"other extents in a file, .* give it size="):
            export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1)
        return
    path = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1).path
    assert uses_resize == any(node.op_type == "Resize" for node in onnx.load(path).graph.node)
    session = Session(path, "cpu")
    for extents in ((98, 8), (36, 75), (73, 65), (49, 98), (26, 102), (90, 30), (16, 50)):
        x = torch.rand(1, *extents, 1)
        with torch.no_grad():
            y = net(x).numpy()
        np.testing.assert_allclose(session(x.numpy()), y, rtol=0, atol=1e-5)


def test_fixed_grids_are_resized_by_resize_where_it_is_right(tmp_path: Path) -> None:
    net = Function(after=lambda y: nn.functional.interpolate(y.movedim(-1, 1), size=(7, 5)).movedim(1, -1))
    for grid, is_right in (((14, 15), True), ((64, 65), False)):
        path = export_onnx(net, tmp_path / "m.onnx", grid=grid, channels=1).path
        assert is_right == any(node.op_type == "Resize" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_fixed_grids_are_resized_by_any_factor(mode: str, tmp_path: Path) -> None:
    def resized(y: Tensor) -> Tensor:
        return nn.functional.interpolate(y.movedim(-1, 1), scale_factor=0.7, mode=mode).movedim(1, -1)

    for grid in ((10, 20), (90, 7)):
        export_onnx(Function(after=resized), tmp_path / "m.onnx", grid=grid, channels=1)


def test_a_grid_that_is_asked_for_free_is_not_fixed_without_a_word(tmp_path: Path) -> None:
    head = nn.Linear(24, 3)  # of both extents
    network = Function(after=lambda y: head.to(y.dtype)(y.flatten(1)))
    for options in ({"grid": (None, None)}, {"form": "scan"}):
        with pytest.raises(InputError, match="takes the grid 3x4 only"):
            export_onnx(network, tmp_path / "m.onnx", torch.zeros(2, 3, 4, 1), **options)
    assert export_onnx(network, tmp_path / "m.onnx", torch.zeros(2, 3, 4, 1), grid=(3, 4)).max_abs < 1e-5
