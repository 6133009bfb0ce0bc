"""The kind `grid`: numbers at every position."""

from __future__ import annotations

from mdlstm_tk.kinds.kind import Kind


class Grid(Kind):
    name = "grid"
    training_module = "mdlstm_tk.kinds.grid_training"
    target_folder = "targets"


KIND = Grid()
