"""Tasks: where training data comes from, and how predictions are judged. NumPy only."""

from mdlstm_tk.tasks.base import KINDS, UNLABELLED, Batch, Facts, Kind, SampleTask, Stream, Task, batches
from mdlstm_tk.tasks.diagonal import DiagonalBatch, DiagonalTask
from mdlstm_tk.tasks.digits import Digits, DigitStrings
from mdlstm_tk.tasks.fields import GaussianField
from mdlstm_tk.tasks.textures import Textures

__all__ = [
    "KINDS",
    "UNLABELLED",
    "Batch",
    "DiagonalBatch",
    "DiagonalTask",
    "DigitStrings",
    "Digits",
    "Facts",
    "GaussianField",
    "Kind",
    "SampleTask",
    "Stream",
    "Task",
    "Textures",
    "batches",
]
