"""The training loop of the random-diagonal task."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mdlstm_tk.errors import DeviceError, InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models import create
from mdlstm_tk.runtime.files import replacing
from mdlstm_tk.tasks import Batch, DiagonalTask
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.run import Run

EVALUATE_EVERY = 50
VALIDATION_SAMPLES = 64
WINDOW = 20  # steps that a running mean of the loss spans
LARGER = 4  # a network for any size is validated on this many times the training size, too
LARGER_SAMPLES = 64


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
        step: optimiser steps done.
        loss: mean squared error over all cells of the step's batch, before the step.
        relevant: squared error at the target's second one alone, mean over the batch.
    """

    step: int
    loss: float
    relevant: float


def build(config: TrainConfig) -> tuple[nn.Module, DiagonalTask]:
    """The untrained network of a config, the same each time, and its task.

    Raises:
        InputError: no such network or option, or a size that the task cannot have.
    """
    task = DiagonalTask(config.grid)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = create(config.model, task.channels, task.outputs, **config.network_options())
        start_at = getattr(network, "start_at", None)
        if callable(start_at):
            start_at(task.mean_target)
    return network, task


def losses(prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean squared error over all cells, and the relevant loss: that at the target's second one."""
    error = (prediction - torch.from_numpy(batch.y).to(prediction.device)).square()
    rows = torch.arange(len(batch.x))
    row, column = torch.from_numpy(batch.second).unbind(1)
    return error.mean(), error.detach()[rows, row, column].mean()


@torch.no_grad()
def evaluate(network: nn.Module, size: tuple[int, ...], seed: int, count: int) -> float:
    """The relevant loss on `count` validation matrices of `size`."""
    batch = DiagonalTask(size).batch(seed, 0, count, "validation")
    device = next(network.parameters()).device
    return float(losses(network(torch.from_numpy(batch.x).to(device)), batch)[1])


def train(
    config: TrainConfig,
    run: Run,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train into a run folder: metrics for each step, last checkpoint, best checkpoint.

    The best checkpoint has the lowest score: the relevant loss on validation matrices of the training
    size, or, for a network that is meant for any size, on those and on matrices LARGER times as
    large, whichever is worse.

    Args:
        config: what to train.
        run: where to; `config.toml` is written there.
        resume: go on from its last checkpoint to `config.steps`.
        report: called after each step.

    Returns:
        Where training ended. On KeyboardInterrupt the last checkpoint is written before it is raised.

    Raises:
        InputError: the config asks for what does not exist, or there is nothing left to resume.
        DeviceError: the device is not there.
        MDLSTMError: the folder cannot be written.
    """
    device = pick_device(config.device)
    network, task = build(config)
    network.to(device)
    optimizer = _adam(network, config)
    torch.manual_seed(config.seed)
    step, score, records = 0, math.inf, []
    if resume:
        checkpoint = load_checkpoint(run.last)
        step, score = checkpoint.step, checkpoint.score
        if step >= config.steps:
            raise InputError(f"{run.folder} has done {step} steps already; ask for more with --steps")
        _restore(checkpoint, network, optimizer)
        records = run.read_metrics()[:step]
    with replacing(run.config) as temporary:
        temporary.write_text(config.to_toml(), encoding="utf-8")
    run.write_metrics(records)

    sizes: list[tuple[tuple[int, ...], int]] = [(task.size, VALIDATION_SAMPLES)]
    if getattr(network, "any_size", False):
        sizes.append((tuple(LARGER * extent for extent in task.size), LARGER_SAMPLES))
    progress = Progress(step, math.nan, math.nan)
    with run.metrics.open("a", encoding="utf-8") as metrics, _deferred_interrupt() as interrupted:
        try:
            while progress.step < config.steps and not interrupted:
                batch = task.batch(config.seed, progress.step, config.batch_size)
                loss, relevant = _step(network, optimizer, batch, device)
                progress = Progress(progress.step + 1, loss, relevant)
                _record(metrics, progress)
                report(progress)
                if progress.step % EVALUATE_EVERY == 0 or progress.step == config.steps:
                    worst = max(evaluate(network, size, config.seed, count) for size, count in sizes)
                    metrics.flush()
                    if worst < score or not run.best.exists():
                        score = worst
                        save_checkpoint(run.best, config, progress.step, score, network, optimizer)
        finally:
            if progress.step > step:
                save_checkpoint(run.last, config, progress.step, score, network, optimizer)
                if not run.best.exists():
                    save_checkpoint(run.best, config, progress.step, score, network, optimizer)
    if interrupted:
        raise KeyboardInterrupt
    return progress


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Let Ctrl-C wait for the end of a step, which would otherwise be left half done.

    Yields a list that is no longer empty once it was pressed. Pressed again, it acts at once.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    outer = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, outer)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, outer)


def pick_device(device: str) -> torch.device:
    """The torch device that "auto", "cpu", "cuda" or "cuda:N" stands for.

    Raises:
        InputError: another name.
        DeviceError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device '{device}' is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return torch.device(device)


def _adam(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam; weight decay on the recurrent weights of MDLSTM layers alone."""
    layers = (module for module in network.modules() if isinstance(module, MDLSTM))
    decayed = {p for layer in layers for name, p in layer.named_parameters() if "weight_hh" in name}
    recurrent = [p for p in network.parameters() if p in decayed]
    others = [p for p in network.parameters() if p not in decayed]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    if recurrent:
        groups.append({"params": recurrent, "weight_decay": config.weight_decay})
    return torch.optim.AdamW(groups, lr=config.lr)


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, device: torch.device
) -> tuple[float, float]:
    loss, relevant = losses(network(torch.from_numpy(batch.x).to(device)), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach()), float(relevant)


def _restore(checkpoint: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    checkpoint.load_model(network)
    checkpoint.load_optimizer(optimizer)


def _record(file: IO[str], progress: Progress) -> None:
    record: dict[str, Any] = {
        "step": progress.step,
        "loss": progress.loss,
        "relevant": progress.relevant,
    }
    file.write(json.dumps(record) + "\n")


def running_mean(values: list[float]) -> npt.NDArray[np.float64]:
    """The mean of the last WINDOW values at each step, or of as many as there are yet."""
    total = np.cumsum(np.asarray(values, dtype=np.float64))
    total[WINDOW:] -= total[:-WINDOW].copy()
    return total / np.minimum(np.arange(1, len(values) + 1), WINDOW)
