"""Small training runs that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mdlstm_tk.training import Run, TrainConfig, default_config, load_checkpoint, new_job, resume_job, train
from mdlstm_tk.training.progress import Progress

SMALL = TrainConfig(size="5x6", steps=12, batch_size=4, hidden=4, layers=2)

DIGITS = TrainConfig(
    task="digits",
    hidden=4,
    steps=14,
    batch_size=6,
    layers=2,
    dropout=0.2,
    schedule="cosine",
    warmup=3,
    clip=1.0,
    average=0.9,
    augment=1.0,
    validation=0.2,
    evaluate_every=3,
)


QUICK = {"steps": 6, "hidden": 3, "batch_size": 4, "evaluate_every": 3, "validation": 0.25}


def quick(data: Path, kind: str, **settings: Any) -> TrainConfig:
    """The configuration of a few steps on the user's data."""
    return default_config(kind, str(data)).updated({**QUICK, **settings}, "test")


def run_in(folder: Path, config: TrainConfig, task: Any = None, **options: Any) -> Run:
    """Train into a folder."""
    train(new_job(config, folder, True, task), **options)
    return Run(folder)


def resume(run: Run, **changes: Any) -> Run:
    """Go on with a run, with changed settings."""
    train(resume_job(run.folder, changes))
    return run


def fail_at(step: int) -> Callable[[Progress], None]:
    """An `on_step` that raises KeyboardInterrupt after a step."""

    def fail(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return fail


def last_tensors(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of the last checkpoint."""
    return load_checkpoint(run.last).tensors
