"""Tasks: where training data comes from and how predictions are scored. No PyTorch.

spec            the types: Batch, TaskSpec, Kind, Split
task            the interface Task, and DatasetTask for a fixed set of samples
metrics         error metrics of each kind of task
sampling        seeded random numbers, shuffling, stratified splits
collate         samples → batch
augmentation    distortion of training images
user_data       a task from a user's own files, read by:
  folders         folders of images, masks and transcripts
  arrays          .npz files
  images          decoding of one image or mask
builtin         the tasks that come with the package
"""

from mdlstm_tk.errors import imports_of

with imports_of("train"):
    from mdlstm_tk.data.builtin.diagonal import DiagonalBatch, DiagonalTask
    from mdlstm_tk.data.builtin.digits import Digits, DigitStrings
    from mdlstm_tk.data.builtin.gaussian_field import GaussianField
    from mdlstm_tk.data.builtin.textures import Textures
    from mdlstm_tk.data.spec import KINDS, SPLITS, UNLABELLED, Batch, Floats, Kind, Split, TaskSpec
    from mdlstm_tk.data.task import DatasetTask, Task, batches

__all__ = [
    "KINDS",
    "SPLITS",
    "UNLABELLED",
    "Batch",
    "DatasetTask",
    "DiagonalBatch",
    "DiagonalTask",
    "DigitStrings",
    "Digits",
    "Floats",
    "GaussianField",
    "Kind",
    "Split",
    "Task",
    "TaskSpec",
    "Textures",
    "batches",
]
