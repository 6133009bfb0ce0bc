"""Grids larger than memory, swept tile by tile with the result of the whole.

>>> from mdlstm_tk import tiling
>>> y = tiling.checkpointed(layer, x, tile=(256, 256))
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.tiling.checkpoint import checkpointed as checkpointed
    from mdlstm_tk.tiling.stages import Stage as Stage
    from mdlstm_tk.tiling.stages import TileStages as TileStages

__all__, __getattr__, __dir__ = lazy_names(
    __name__, {"checkpoint": ("checkpointed",), "stages": ("Stage", "TileStages")}, extra="train"
)
