"""Train networks on tasks into run folders, from which they can be resumed and exported.

The names below are loaded when they are first used: importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import imports_of

if TYPE_CHECKING:
    from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from mdlstm_tk.training.comparison import (
        Comparison,
        ComparisonPlan,
        compare_models,
        configure_comparison,
        plan_comparison,
    )
    from mdlstm_tk.training.config import TrainConfig, list_settings
    from mdlstm_tk.training.drawing import draw_images, sample_run
    from mdlstm_tk.training.evaluation import evaluate, evaluate_run, predict
    from mdlstm_tk.training.job import TrainingJob, new_job, resume_job, run_job
    from mdlstm_tk.training.loop import train
    from mdlstm_tk.training.networks import build, build_network
    from mdlstm_tk.training.progress import Progress, RecentMetrics, describe_progress
    from mdlstm_tk.training.run_folder import Run, latest_run, new_run, open_run
    from mdlstm_tk.training.run_info import describe_run
    from mdlstm_tk.training.settings import configure, configure_resumed, parse_settings
    from mdlstm_tk.training.tasks import default_config, load_task, make_task

_MODULES = {
    "Checkpoint": "checkpoint",
    "Comparison": "comparison",
    "ComparisonPlan": "comparison",
    "Progress": "progress",
    "RecentMetrics": "progress",
    "Run": "run_folder",
    "TrainConfig": "config",
    "TrainingJob": "job",
    "build": "networks",
    "build_network": "networks",
    "compare_models": "comparison",
    "configure": "settings",
    "configure_comparison": "comparison",
    "configure_resumed": "settings",
    "default_config": "tasks",
    "describe_progress": "progress",
    "describe_run": "run_info",
    "draw_images": "drawing",
    "evaluate": "evaluation",
    "evaluate_run": "evaluation",
    "latest_run": "run_folder",
    "list_settings": "config",
    "load_checkpoint": "checkpoint",
    "load_task": "tasks",
    "make_task": "tasks",
    "new_job": "job",
    "new_run": "run_folder",
    "open_run": "run_folder",
    "parse_settings": "settings",
    "plan_comparison": "comparison",
    "predict": "evaluation",
    "resume_job": "job",
    "run_job": "job",
    "sample_run": "drawing",
    "save_checkpoint": "checkpoint",
    "train": "loop",
}

__all__ = [
    "Checkpoint",
    "Comparison",
    "ComparisonPlan",
    "Progress",
    "RecentMetrics",
    "Run",
    "TrainConfig",
    "TrainingJob",
    "build",
    "build_network",
    "compare_models",
    "configure",
    "configure_comparison",
    "configure_resumed",
    "default_config",
    "describe_progress",
    "describe_run",
    "draw_images",
    "evaluate",
    "evaluate_run",
    "latest_run",
    "list_settings",
    "load_checkpoint",
    "load_task",
    "make_task",
    "new_job",
    "new_run",
    "open_run",
    "parse_settings",
    "plan_comparison",
    "predict",
    "resume_job",
    "run_job",
    "sample_run",
    "save_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        with imports_of("train"):
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
