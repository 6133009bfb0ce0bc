"""Tasks: where training data comes from. NumPy only."""

from mdlstm_tk.tasks.diagonal import Batch, DiagonalTask

__all__ = ["Batch", "DiagonalTask"]
