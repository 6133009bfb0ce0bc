"""Tasks: where training data come from. Nothing here imports torch.

task       what a task is: `TaskSpec`, `Batch`, `Task`, and `Dataset` for a fixed set of samples
order      seeded random numbers, and the order in which samples are drawn
augment    distortion of training images
files      the samples in a user's files: folders, tables, arrays
masks      masks of segmentation
scan       the first pass over all samples, and reading each again
splits     which samples are trained on, validated with and tested on
user_data  a task from a user's own files
builtin    the tasks that come with the package
"""

from mdlstm_tk.data.task import SPLITS, UNLABELLED, Batch, Dataset, Split, Task, TaskSpec

__all__ = ["SPLITS", "UNLABELLED", "Batch", "Dataset", "Split", "Task", "TaskSpec"]
