"""Small tiled exports, and what their networks return for an image."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_tiles
from mdlstm_tk.models import create

PALETTE = (0, 0, 0, 250, 0, 0, 0, 0, 250)
VALUES = (0, 7, 9)

_folder = TemporaryDirectory(prefix="mdlstm-tiled-")  # is removed when the tests end


class TiledModel(NamedTuple):
    """A tiled export and its network."""

    path: Path
    network: nn.Module

    def whole(self, x: Any) -> Any:
        """y for x (*grid, C), from the network itself."""
        with torch.no_grad():
            return self.network(torch.from_numpy(np.ascontiguousarray(x[None])))[0].numpy()


@cache
def segmenter() -> TiledModel:
    """Three colours to three classes, in windows of 2×2 and two directions."""
    network = create("md", 3, 3, kind="segment", hidden=4, windows=[(2, 2)], directions=[(1, 1), (-1, 1)])
    return _exported(
        network, kind="segment", classes=("a", "b", "c"), mask_values=VALUES, mask_palette=PALETTE
    )


@cache
def classifier() -> TiledModel:
    """Grey to three classes, on two levels."""
    how = {"windows": [(2, 2), (2, 1)], "directions": [(1, 1), (-1, -1)]}
    network = create("md", 1, 3, kind="classify", hidden=4, **how)
    return _exported(network, kind="classify", classes=("cat", "dog", "bird"))


@cache
def recogniser() -> TiledModel:
    """Grey to the blank and two characters, in steps of four columns."""
    network = create("md", 1, 3, kind="transcribe", hidden=4, windows=[(2, 4)], directions=1)
    return _exported(network, kind="transcribe", classes=("a", "b"))


@cache
def downward(cell: str = "graves") -> TiledModel:
    """Two layers in windows of 2×1, whose directions all go downwards."""
    return _exported(MDLSTM(1, 3, directions=[(1, 1), (1, -1)], num_layers=2, window=(2, 1), cell=cell))


@cache
def single() -> TiledModel:
    """Grey to one number at each position, in one direction."""
    return _exported(create("md", 1, 1, hidden=2, directions=1))


def _exported(network: nn.Module, **metadata: Any) -> TiledModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    path = Path(mkdtemp(dir=_folder.name)) / "model.tiles"
    export_tiles(network.eval(), path, metadata=metadata)
    return TiledModel(path, network.eval())
