"""Tasks: where training data comes from and how predictions are scored. PyTorch is loaded to score alone.

spec            the types: Batch, TaskSpec, Split
task            the interface Task, DatasetTask for a fixed set of samples, and batches
sampling        seeded random numbers, shuffling, stratified splits
augmentation    random crops and distortion of training images
user_data       a task from a user's own files, which consists of:
  splits          which samples are trained on, validated with and tested on
  folders         listing of folders of images, and of images with masks and targets
  tables          listing of images and a CSV table
  arrays          listing of .npz files
  images          decoding of one image
  masks           decoding of one mask, and the classes of all masks
  samples         the first pass over all samples, and reading each when it is needed
  targets         the targets of all samples, and how they are encoded
builtin         the tasks that come with the package
"""

from mdlstm_tk.data.builtin.diagonal import DiagonalBatch, DiagonalTask
from mdlstm_tk.data.builtin.digits import Digits
from mdlstm_tk.data.builtin.gaussian_field import GaussianField
from mdlstm_tk.data.builtin.textures import Textures
from mdlstm_tk.data.spec import SPLITS, UNLABELLED, Batch, Floats, Split, TaskSpec
from mdlstm_tk.data.task import DatasetTask, Task, batches

__all__ = [
    "SPLITS",
    "UNLABELLED",
    "Batch",
    "DatasetTask",
    "DiagonalBatch",
    "DiagonalTask",
    "Digits",
    "Floats",
    "GaussianField",
    "Split",
    "Task",
    "TaskSpec",
    "Textures",
    "batches",
]
