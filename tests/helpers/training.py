"""Small training runs that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mdlstm_tk.training import Run, TrainConfig, configure, train

SMALL = TrainConfig(size="5x6", steps=12, batch_size=4, hidden=4, layers=2)
QUICK = {"steps": 6, "hidden": 3, "batch_size": 4, "evaluate_every": 3, "validation": 0.25}


def quick(data: Path, kind: str, **settings: Any) -> TrainConfig:
    """The configuration of a few steps on the user's data."""
    return configure(task=kind, data=str(data), **{**QUICK, **settings})


def run_in(folder: Path, config: TrainConfig, **options: Any) -> Run:
    """Train into a folder."""
    train(config, folder, force=True, **options)
    return Run(folder)
