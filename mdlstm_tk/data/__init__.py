"""Tasks: where training data comes from, and how predictions are judged. NumPy only."""

from mdlstm_tk.data.base import KINDS, UNLABELLED, Batch, Kind, SampleTask, Split, Task, TaskSpec, batches
from mdlstm_tk.data.diagonal import DiagonalBatch, DiagonalTask
from mdlstm_tk.data.digits import Digits, DigitStrings
from mdlstm_tk.data.gaussian_field import GaussianField
from mdlstm_tk.data.textures import Textures

__all__ = [
    "KINDS",
    "UNLABELLED",
    "Batch",
    "DiagonalBatch",
    "DiagonalTask",
    "DigitStrings",
    "Digits",
    "GaussianField",
    "Kind",
    "SampleTask",
    "Split",
    "Task",
    "TaskSpec",
    "Textures",
    "batches",
]
