"""Exports compute extents as Python does in `forward`, or the network is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


def test_a_grid_that_is_asked_for_free_is_not_fixed_without_a_word(tmp_path: Path) -> None:
    head = nn.Linear(24, 3)  # of both extents
    network = Function(after=lambda y: head.to(y.dtype)(y.flatten(1)))
    for options in ({"grid": (None, None)}, {"form": "scan"}):
        with pytest.raises(InputError, match="takes the grid 3x4 only"):
            export_onnx(network, tmp_path / "m.onnx", torch.zeros(2, 3, 4, 1), **options)
    assert export_onnx(network, tmp_path / "m.onnx", torch.zeros(2, 3, 4, 1), grid=(3, 4)).max_abs < 1e-5
