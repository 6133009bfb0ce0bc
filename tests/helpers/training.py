"""Small training runs that several test files share."""

from __future__ import annotations

from pathlib import Path

import torch

from mdlstm_tk.training import Run, TrainConfig, load_checkpoint, train

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


def run_in(folder: Path, config: TrainConfig, **options: bool) -> Run:
    """Train into a folder."""
    folder.mkdir(exist_ok=True)
    train(config, Run(folder), **options)
    return Run(folder)


def last_tensors(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of the last checkpoint."""
    return load_checkpoint(run.last).tensors
