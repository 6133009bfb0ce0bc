"""`TileStages`: what a network says about itself so that it can be run tile by tile.

A network can be tiled if it consists of recurrent layers, and of maps that compute each position from that
position alone. It says which ones by a method `tile_stages`:

    class Edges(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MDLSTM(1, 16, directions="all", window=2)
            self.head = torch.nn.Linear(64, 3)

        def forward(self, x):                      # (N, H, W, 1) → (N, ⌈H/2⌉, ⌈W/2⌉, 3), in (0, 1)
            return self.head(self.layer(x)).sigmoid()

        def tile_stages(self):
            return TileStages([Stage(self.layer, after=self.head)], head=torch.nn.Sigmoid())

`mdlstm_tk.export.export_tiles` compares the network in tiles with the network's own forward before it
writes a file, so a description that does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM


@dataclass(frozen=True)
class Stage:
    """A recurrent layer and the maps around it. Its output is stored before the next stage begins.

    Attributes:
        layer: the layer, with any number of directions, stacked layers and windows.
        before: maps each position (…, C) of x, or of the output of the stage before, to the features
            (…, layer.input_size) that the layer takes; None if it takes them as they are.
        after: a linear map of the layer's output at each position. Each direction adds its part of it, so
            that the sums are stored instead of the features of all directions. None: there is none.
    """

    layer: MDLSTM
    before: nn.Module | None = None
    after: nn.Linear | None = None


@dataclass(frozen=True)
class TileStages:
    """A network as stages that run one after another.

    Attributes:
        stages: at least one. All layers have the same number of grid axes.
        pool: the grid axes that the output of the last stage is averaged over: (0, 1) for one result of a
            picture, (0,) for one of each column. Empty: none.
        head: maps each position of the (averaged) output of the last stage to the result; None: that is the
            result.
        upsample: an extent for each axis; the features of the head's output are then those of a window of
            positions, in row-major order, which are spread over these positions. Empty: they are not.
    """

    stages: Sequence[Stage]
    pool: Sequence[int] = ()
    head: nn.Module | None = None
    upsample: Sequence[int] = ()


def stages_of(module: nn.Module) -> TileStages:
    """The stages that a network says it consists of.

    Raises:
        InputError: it has no method `tile_stages`, or that raises the error.
    """
    if isinstance(module, MDLSTM):
        return TileStages([Stage(module)])
    describe: Callable[[], TileStages] | None = getattr(module, "tile_stages", None)
    if describe is None:
        raise InputError(
            f"{type(module).__name__} cannot run in tiles, since it has no method tile_stages() that says "
            "how; docs/exporting.md shows how to write one"
        )
    return describe()
