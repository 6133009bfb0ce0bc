"""Train networks on tasks into run folders, from which they can be resumed and exported.

    job = new_job(configure({"task": "diagonal", "steps": 200}))
    result = train(job)

The names below are loaded when they are first used: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.training.checkpoint import Checkpoint as Checkpoint
    from mdlstm_tk.training.checkpoint import load_checkpoint as load_checkpoint
    from mdlstm_tk.training.checkpoint import save_checkpoint as save_checkpoint
    from mdlstm_tk.training.comparison import Comparison as Comparison
    from mdlstm_tk.training.comparison import ComparisonPlan as ComparisonPlan
    from mdlstm_tk.training.comparison import compare_models as compare_models
    from mdlstm_tk.training.comparison import configure_comparison as configure_comparison
    from mdlstm_tk.training.comparison import plan_comparison as plan_comparison
    from mdlstm_tk.training.config import TrainConfig as TrainConfig
    from mdlstm_tk.training.config import list_settings as list_settings
    from mdlstm_tk.training.evaluation import evaluate as evaluate
    from mdlstm_tk.training.evaluation import predict as predict
    from mdlstm_tk.training.job import TrainingJob as TrainingJob
    from mdlstm_tk.training.job import new_job as new_job
    from mdlstm_tk.training.job import resume_job as resume_job
    from mdlstm_tk.training.loop import train as train
    from mdlstm_tk.training.networks import build as build
    from mdlstm_tk.training.networks import build_network as build_network
    from mdlstm_tk.training.processes import in_processes as in_processes
    from mdlstm_tk.training.progress import Progress as Progress
    from mdlstm_tk.training.progress import RecentMetrics as RecentMetrics
    from mdlstm_tk.training.run_folder import Run as Run
    from mdlstm_tk.training.run_folder import latest_run as latest_run
    from mdlstm_tk.training.run_folder import new_run as new_run
    from mdlstm_tk.training.run_folder import open_run as open_run
    from mdlstm_tk.training.run_info import describe_run as describe_run
    from mdlstm_tk.training.settings import configure as configure
    from mdlstm_tk.training.settings import configure_resumed as configure_resumed
    from mdlstm_tk.training.tasks import default_config as default_config
    from mdlstm_tk.training.tasks import load_task as load_task
    from mdlstm_tk.training.tasks import make_task as make_task
    from mdlstm_tk.training.tasks import register_task as register_task

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
        "comparison": (
            *("Comparison", "ComparisonPlan"),
            *("compare_models", "configure_comparison", "plan_comparison"),
        ),
        "config": ("TrainConfig", "list_settings"),
        "evaluation": ("evaluate", "predict"),
        "job": ("TrainingJob", "new_job", "resume_job"),
        "loop": ("train",),
        "networks": ("build", "build_network"),
        "processes": ("in_processes",),
        "progress": ("Progress", "RecentMetrics"),
        "run_folder": ("Run", "latest_run", "new_run", "open_run"),
        "run_info": ("describe_run",),
        "settings": ("configure", "configure_resumed"),
        "tasks": ("default_config", "load_task", "make_task", "register_task"),
    },
    extra="train",
)
