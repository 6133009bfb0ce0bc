"""Grids larger than memory, swept tile by tile with the result of the whole."""

from mdlstm_tk.errors import require

require("torch", "train")

from mdlstm_tk.tiling.checkpointed import checkpointed  # noqa: E402  (it imports torch)

__all__ = ["checkpointed"]
