"""Train networks on tasks into run folders, from which they can be resumed and exported.

    result = train(configure(task="digits", steps=500), "runs/a")

config       the settings, `TrainConfig` and `configure`
tasks        tasks by name
networks     the network of a configuration
loop         `train` and `resume`, and the one loop
evaluation   running and measuring a network
checkpoint   the files that hold a run's weights and state
run          the folder of a run
comparison   several networks on one task
distributed, memory   several processes; the memory that training takes

The names below are loaded when they are first used: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.training.checkpoint import Checkpoint as Checkpoint
    from mdlstm_tk.training.checkpoint import load_checkpoint as load_checkpoint
    from mdlstm_tk.training.comparison import compare as compare
    from mdlstm_tk.training.config import TrainConfig as TrainConfig
    from mdlstm_tk.training.config import configure as configure
    from mdlstm_tk.training.evaluation import evaluate as evaluate
    from mdlstm_tk.training.loop import resume as resume
    from mdlstm_tk.training.loop import train as train
    from mdlstm_tk.training.networks import build_network as build_network
    from mdlstm_tk.training.run import Run as Run
    from mdlstm_tk.training.run import latest_run as latest_run
    from mdlstm_tk.training.run import open_run as open_run
    from mdlstm_tk.training.tasks import make_task as make_task
    from mdlstm_tk.training.tasks import register_task as register_task

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checkpoint": ("Checkpoint", "load_checkpoint"),
        "comparison": ("compare",),
        "config": ("TrainConfig", "configure"),
        "evaluation": ("evaluate",),
        "loop": ("resume", "train"),
        "networks": ("build_network",),
        "run": ("Run", "latest_run", "open_run"),
        "tasks": ("make_task", "register_task"),
    },
    extra="train",
)
