"""Grids in tiles: how a network is divided so that a grid of any size is swept part by part."""

from mdlstm_tk.errors import imports_of

with imports_of("train"):
    from mdlstm_tk.tiling.stages import Stage, TileStages

__all__ = ["Stage", "TileStages"]
