"""Training a network on a task, into a run folder that it can be resumed and exported from."""

from mdlstm_tk.training.build import build, build_network, default_config, make_task
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.loop import train
from mdlstm_tk.training.run_folder import Run, latest_run, open_run
from mdlstm_tk.training.trainer import Progress, evaluate, predict

__all__ = [
    "Checkpoint",
    "Progress",
    "Run",
    "TrainConfig",
    "build",
    "build_network",
    "default_config",
    "evaluate",
    "latest_run",
    "load_checkpoint",
    "make_task",
    "open_run",
    "predict",
    "save_checkpoint",
    "train",
]
