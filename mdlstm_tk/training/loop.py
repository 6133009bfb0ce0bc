"""Training: `train` begins a run, `resume` goes on with one. Both end in the one loop below.

All that a step depends on follows from the configuration and its number: the samples, the learning rate,
the dropout masks. So a run that is killed and resumed ends with the same weights, on a CPU, as a whole one.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from mdlstm_tk._util.text import to_json
from mdlstm_tk.data.task import SPLITS, Batch, Split, Task
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.training.batches import training_batches
from mdlstm_tk.training.checkpoint import Checkpoint, State, contents, load_checkpoint, save, start_from
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import Group, join
from mdlstm_tk.training.evaluation import add_up, evaluate, measures_of, on_device, predict, predictor
from mdlstm_tk.training.memory import check_memory, keep_freed_memory
from mdlstm_tk.training.networks import build_network, count_parameters, with_windows
from mdlstm_tk.training.run import Run, new_run, open_run
from mdlstm_tk.training.tasks import make_task

log = logging.getLogger("mdlstm_tk.training")
AUXILIARY_WEIGHT = 0.3  # of further predictions of a network in the loss
SMALL_STEP = 20_000_000  # operations of a forward pass that one thread does faster than several
READ_EVERY = 20  # on a GPU, steps whose losses are read together: to read one waits for it
SEEN = "samples for %s that the weights have learned, or that chose them, so errors are too low: %d (%s)"
OnStep = Callable[[State, float, Mapping[str, float]], None]
OnEnd = Callable[[Run, Task, nn.Module], None]


def train(
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    task: Task | None = None,
    force: bool = False,
    on_step: OnStep | None = None,
    on_end: OnEnd | None = None,
) -> dict[str, Any]:
    """Train a new run into a folder, and return its result.

    The folder gets `config.toml`, a line of metrics per step, the last and the best checkpoint, and
    `result.json`. Under torchrun several processes share each batch, and only the main one writes.

    Args:
        config: see `configure`.
        folder: of the run; the first free one of runs/NAME, runs/NAME-2, … if None.
        task: one of your own; otherwise that of the configuration.
        force: replace a run that is in the folder.
        on_step: called with the state, the loss and, after a validation, its measures.
        on_end: called in the main process with the run, the task and the network with the best weights, as
            `mdlstm_tk.report.write_report`.

    Returns:
        The content of `result.json`: task, model, parameters; "ending" in words; step, of the best weights;
        seconds, and steps_per_second without validations; split, the test split if there is one, else the
        validation split, or None; "in_sample", true of validation data, which have chosen the weights;
        "seen", how many of its samples the weights have learned, or have chosen those of an earlier run;
        errors by name, and those of each of the outputs; crop, if parts of that size were measured.

    Raises:
        InputError, DeviceError, MissingExtraError: the settings describe nothing that can be trained here,
            or the folder is not empty.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step has ended and a checkpoint is written; its
            argument is the folder.
        MDLSTMError: training diverged, or another one works in the folder.
    """
    group = join(config.device)
    task = copy(task or make_task(config))  # whose spec becomes that of the run
    source = load_checkpoint(open_run(config.init).checkpoint) if config.init else None
    config = with_windows(config, task)
    check_memory(config, task, group)
    network = build_network(config, task.spec)
    if source:
        start_from(source, network, config, task.spec)
    network.to(group.device)
    if config.best_by:  # is refused before anything is written, if the task has no such measure
        if not (measures := evaluate(network, task, "validation", config.seed, group)):
            raise InputError("best_by (--best-by) needs validation data, such as validation=0.1")
        State().after(measures, config, ())
    if columns := getattr(network, "columns_per_step", None):
        task.spec = replace(task.spec, decoding={**task.spec.decoding, "columns_per_step": columns})
    run = Run(group.broadcast(new_run(config, task, folder, force).folder if group.is_main else Path()))
    learned, validated = ({*contents(task, split)} for split in SPLITS[:2])
    if source:
        learned.update(source.state.learned)
        validated.update(source.state.validated)
    state = State(data=task.digest, learned=sorted(learned), validated=sorted(validated))
    return _loop(Checkpoint(config, task.spec, state), task, network, run, group, on_step, on_end)


def resume(
    folder: str | Path,
    *,
    task: Task | None = None,
    on_step: OnStep | None = None,
    on_end: OnEnd | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint, with more `steps` or `minutes` if these are given.

    Files of the data may have moved and have other names. Arguments, result and errors are as of `train`.

    Args:
        folder: of the run.
        **changes: settings, see `mdlstm_tk.training.config.ON_RESUME`.

    Raises:
        InputError: a setting is changed that would make it another run, the data have other contents than
            when it began, or nothing is left to train.
    """
    run = open_run(folder)
    last = load_checkpoint(run.last)
    config = last.config.resumed(changes)
    group = join(config.device)
    task = copy(task or make_task(config, last.state.learned, last.spec))
    if task.digest != last.state.data:
        advice = f"begin a new run on them with init (--init {run.folder}), or give its own task=..."
        raise InputError(f"{run.folder} was trained on other samples than these; {advice}")
    task.spec = last.spec
    if last.state.is_done(config) and run.result.exists():
        state = last.state.describe(config)
        raise InputError(f"{run.folder} has {state}; give more steps, minutes or patience")
    check_memory(config, task, group)
    network = build_network(config, task.spec)
    return _loop(replace(last, config=config), task, network, run, group, on_step, on_end)


def _loop(
    start: Checkpoint,
    task: Task,
    network: nn.Module,
    run: Run,
    group: Group,
    on_step: OnStep | None,
    on_end: OnEnd | None,
) -> dict[str, Any]:
    config, state, higher = start.config, start.state, kind_named(task.spec.kind).higher
    for split in SPLITS[1:]:
        if seen := state.seen(task, split):
            names = ", ".join(task.names[split][k] for k in seen[:3]) if split in task.names else "…"
            log.warning(SEEN, split, len(seen), names)
    optimizer = _adam(network.to(group.device), config)
    average = start.restore(network, optimizer)  # of the weights, which is validated and exported
    shown = network if average is None else average
    parallel = DistributedDataParallel(network) if group.size > 1 else network
    unread: list[Tensor] = []  # of each step its loss, and how many processes are to stop
    rates: list[float] = []
    first: tuple[int, float] | None = None  # the step that compiled, and when it ended
    threads = _threads(start, task, network, group)
    with run.opened(start, group) as write, stop_signals() as stopped, threads:
        began, validating = time.perf_counter() - state.seconds, 0.0
        for batch in () if state.is_done(config) else training_batches(config, task, state.step, group):
            rates.append(learning_rate(config, state))
            group.seed((config.seed * 1_000_003 + state.step) * 1009 + group.rank)  # of dropout
            loss = _step(parallel, on_device(batch, group.device), task, config, optimizer, rates[-1])
            if average is not None:  # faster at first, to forget the initial weights
                weight = 1 - min(config.average, (1 + state.step) / (10 + state.step))
                lerp_(average, network, 1.0 if state.step == 0 else weight)
            unread.append(group.sum(torch.stack([loss / group.size, loss.new_tensor(len(stopped) > 0)])))
            seconds = time.perf_counter() - began
            seconds = group.broadcast(seconds) if config.minutes else seconds  # where it decides something
            state = replace(state, step=state.step + 1, seconds=seconds)
            now = time.perf_counter() - validating
            first = first or (state.step, now)
            validates = state.is_complete(config) or state.step % config.evaluate_every == 0
            if group.device.type == "cuda" and not validates and len(unread) < READ_EVERY:
                continue
            losses, stops = zip(*torch.stack(unread).tolist(), strict=True)
            _require_finite(losses, state, network if validates or any(stops) else None)
            measures: dict[str, float] = {}
            if validates:
                before = time.perf_counter()
                group.share_buffers(shown)
                measures = evaluate(shown, task, "validation", config.seed, group)
                validating += time.perf_counter() - before
                state = state.after(measures, config, higher)
            steps = range(state.step - len(losses) + 1, state.step + 1)
            records: list[dict[str, Any]] = [
                {"step": step, "loss": value, "lr": rate}
                for step, value, rate in zip(steps, losses, rates, strict=True)
            ]
            records[-1] |= {"validation": measures} if measures else {}
            write(records)
            if on_step is not None and group.is_main:
                for each in records:
                    on_step(replace(state, step=each["step"]), each["loss"], each.get("validation", {}))
            unread, rates = [], []
            checkpoint = Checkpoint(config, task.spec, state)
            if validates and state.best_step == state.step and group.is_main:
                save(run.best, checkpoint, shown)
            if (validates or any(stops)) and group.is_main:
                save(run.last, checkpoint, network, average, optimizer)
            if any(stops):
                raise KeyboardInterrupt(run.folder)
            if state.is_done(config):
                break
        pace = (state.step - first[0]) / (now - first[1]) if first and now > first[1] else None
        return _conclude(state, task, shown, run, group, pace, on_end)


def _adam(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, with weight decay on the recurrent weights of MDLSTM layers only."""
    layers = (module for module in network.modules() if isinstance(module, MDLSTM))
    decayed = {p for layer in layers for name, p in layer.named_parameters() if "weight_hh" in name}
    parameters = sorted(network.parameters(), key=lambda p: p in decayed)  # the order that checkpoints have
    number = len(parameters) - len(decayed)
    groups: list[dict[str, Any]] = [
        {"params": parameters[:number], "weight_decay": 0.0},
        {"params": parameters[number:], "weight_decay": config.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _step(
    network: nn.Module,
    batch: Batch,
    task: Task,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> Tensor:
    """One step of the optimizer; returns the loss before it, in float64 on the device."""
    if not network.training:  # as a validation leaves it
        network.train()
    for settings in optimizer.param_groups:
        settings["lr"] = rate
    kind = kind_named(task.spec.kind)
    predictions = predict(network, batch, config.precision)
    loss, *others = (kind.loss(prediction, batch, task.spec) for prediction in predictions)
    for other in others:
        loss = loss + AUXILIARY_WEIGHT * other
    optimizer.zero_grad()
    loss.backward()
    if config.clip:
        clip_grad_norm_(list(network.parameters()), config.clip)
    optimizer.step()
    return loss.detach().double()


def _require_finite(losses: tuple[float, ...], state: State, network: nn.Module | None) -> None:
    """Refuse losses, and weights that would be saved, that are not finite. The last checkpoint has none."""
    bad = [k for k, loss in enumerate(losses) if not math.isfinite(loss)]
    is_finite = network is None or all(p.isfinite().all() for p in network.parameters())
    if bad or not is_finite:
        step = state.step - len(losses) + 1 + bad[0] if bad else state.step
        advice = "try a smaller --lr, --clip 1, --warmup 100 or --cell stable"
        raise MDLSTMError(f"training diverged in step {step}: loss or weights are not finite; {advice}")


def learning_rate(config: TrainConfig, state: State) -> float:
    """The rate of the next step: a linear warm-up, then constant or half a cosine down to 0."""
    peak = min(config.lr * (state.step + 1) / max(config.warmup, 1), config.lr)
    if config.schedule == "constant":
        return peak
    done = max(state.step - config.warmup, 0) / max(config.steps - config.warmup, 1)
    if config.minutes:
        done = state.seconds / (60 * config.minutes)
    return peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2


@torch.no_grad()
def lerp_(average: nn.Module, network: nn.Module, weight: float) -> None:
    """Move the weights of an average towards those of a network, and take its buffers."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
    for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
        ours.copy_(theirs)


def _conclude(
    state: State,
    task: Task,
    network: nn.Module,
    run: Run,
    group: Group,
    pace: float | None,
    on_end: OnEnd | None,
) -> dict[str, Any]:
    """Choose how outputs become answers, measure the best weights, and write `result.json`."""
    group.gather(None)  # waits until the main process has written it
    best = load_checkpoint(run.checkpoint)
    network.load_state_dict(best.weights())
    kind = kind_named(task.spec.kind)
    calibrated = kind.calibrate(predictor(network), task, run.folder) if group.is_main else {}
    task.spec = replace(task.spec, decoding={**task.spec.decoding, **group.broadcast(calibrated)})
    split: Split = "test" if task.count("test") else "validation"
    sums = add_up(network, task, split, best.config.seed, group)
    if not group.is_main:
        return {}
    save(run.best, replace(best, spec=task.spec), network)
    result: dict[str, Any] = {
        "task": task.spec.name,
        "model": best.config.model,
        "parameters": count_parameters(network),
        "ending": state.describe(best.config),
        "step": best.state.step,
        "seconds": round(state.seconds, 1),
        "steps_per_second": pace and round(pace, 3),
        "split": split if sums else None,
        "in_sample": bool(sums) and split == "validation",
        "seen": len(state.seen(task, split)),
        "errors": measures_of(task, sums),
    }
    if best.config.crop:
        result["crop"] = best.config.crop
    if sums and not hasattr(task, "sums") and (outputs := kind.outputs(sums, task.spec)):
        result["outputs"] = outputs
    run.write(run.result, to_json(result, indent=2) + "\n")  # in which NaN is null
    if on_end:
        on_end(run, task, network)
    return result


@contextmanager
def _threads(start: Checkpoint, task: Task, network: nn.Module, group: Group) -> Iterator[None]:
    """One thread, if a step is so small that waking others takes longer than they save."""
    keep_freed_memory()
    seed, count, threads = start.config.seed, start.config.batch_size, torch.get_num_threads()
    positions = count // group.size * prod(task.largest_batch(seed, count))
    if 2 * count_parameters(network) * positions < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Defer the first Ctrl-C or SIGTERM to the end of the step; a second one takes effect immediately.
    Yields the list of signals received so far."""
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        if len(stopped) > 1:
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only that one may set handlers
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: one of C code, which Python could not set again; a shell lets background jobs ignore Ctrl-C
    before = {number: each for number, each in before.items() if each not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
