"""Grids larger than memory, swept tile by tile with the result of the whole.

>>> from mdlstm_tk import tiling
>>> y = tiling.checkpointed(layer, x, tile=(256, 256))
"""

from mdlstm_tk.tiling.checkpoint import checkpointed
from mdlstm_tk.tiling.stages import Stage, TileStages

__all__ = ["Stage", "TileStages", "checkpointed"]
