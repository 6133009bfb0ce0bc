"""Training a network on a task, into a run folder that it can be resumed and exported from."""

from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.loop import Progress, build, train
from mdlstm_tk.training.run import Run, latest_run, open_run

__all__ = [
    "Checkpoint",
    "Progress",
    "Run",
    "TrainConfig",
    "build",
    "latest_run",
    "load_checkpoint",
    "open_run",
    "save_checkpoint",
    "train",
]
