"""Train in several processes of this machine: start them, end them, and choose their number."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import torch
from torch.distributed import TCPStore
from torch.multiprocessing.spawn import spawn

from mdlstm_tk._util.text import counted
from mdlstm_tk._util.user_code import import_file, imported_files
from mdlstm_tk.errors import Argument, InputError, MDLSTMError
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import pick_device
from mdlstm_tk.training.job import new_job
from mdlstm_tk.training.loop import deferred_interrupt, measure_rate
from mdlstm_tk.training.progress import format_rate

T = TypeVar("T")
HOST = "127.0.0.1"
GRACE_SECONDS = 30  # in which the other processes end after one has failed
POLL_SECONDS = 0.1  # between two looks for an interrupt
MEASURED_STEPS = 10


class ProcessChoice(NamedTuple):
    """A number of processes.

    Attributes:
        processes: the number, for `in_processes`.
        reason: why it was chosen, in one line.
    """

    processes: int
    reason: str


def in_processes(processes: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in several processes of this machine that train together.

        def run() -> dict:
            return train(new_job(configure({"task": "digits"})))

        if __name__ == "__main__":  # each process imports this file
            result = in_processes(2, run)

    `new_job`, `resume_job` and `train` share each batch among them. Each process has its share of the
    cores as torch's threads, or OMP_NUM_THREADS if that is set. Ctrl-C and SIGTERM end them together.

    Args:
        processes: their number; 1 calls the function in this process.
        function: it and all that follows must be picklable.
        *arguments: its arguments.

    Returns:
        What the function returns in the main process.

    Raises:
        InputError: `processes` is below 1 or above the number of cores, or torchrun has started this
            process.
        MDLSTMError: a process was killed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; `train` has written a checkpoint before.
        Exception: what the function raises in one of them.
    """
    if not isinstance(processes, int) or processes < 1:
        raise InputError("processes must be a whole number of at least 1, got ", repr(processes))
    if processes == 1:
        return function(*arguments)
    _require_no_torchrun()
    if processes > cores():
        raise InputError(f"processes must be at most the number of cores, which is {cores()}, got {processes}")
    return _call(processes, function, arguments)


def choose_processes(config: TrainConfig) -> ProcessChoice:
    """Choose between one process and one for each core by the rate of some steps of each.

    The steps are those of a new training of the same configuration in a temporary folder, without the first
    one, which compiles. Where the cores cannot share a batch evenly, fewer processes are measured.

    Args:
        config: see `configure`.

    Raises:
        InputError, DeviceError, MissingExtraError: see `new_job`; or torchrun has started this process.
    """
    _require_no_torchrun()
    most = max(n for n in range(1, cores() + 1) if config.batch_size % n == 0)
    for is_so, reason in (
        (cores() == 1, "there is one core"),
        (most == 1, f"no other number up to {cores()} shares batches of {config.batch_size}"),
        (config.minutes > 0, "minutes follow the clock of one"),
        (pick_device(config.device).type != "cpu", "steps are measured on processors only"),
    ):
        if is_so:
            return ProcessChoice(1, f"one process, as {reason}")
    return faster({n: _call(n, _rate, (config,)) for n in (1, most)})


def faster(rates: Mapping[int, float]) -> ProcessChoice:
    """The number of processes with the highest rate; the first of equal ones.

    Args:
        rates: steps a second by number of processes.
    """
    best = max(rates, key=lambda processes: rates[processes])
    texts = [f"{format_rate(rate)} steps/s with {processes}" for processes, rate in rates.items()]
    return ProcessChoice(best, f"{counted(best, 'process', 'processes')}, as measured: {', '.join(texts)}")


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _require_no_torchrun() -> None:
    if "RANK" in os.environ:
        leave_out = Argument("processes"), " or start it without torchrun"
        raise InputError("torchrun has started several processes already; leave out ", *leave_out)


def _rate(config: TrainConfig) -> float:
    """Steps a second of a training in this process, or of those that share it."""
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the training itself gives them
        return measure_rate(new_job(replace(config, steps=1 + MEASURED_STEPS), Path(folder, "run")))


def _call(count: int, function: Callable[..., T], arguments: Sequence[Any]) -> T:
    """Call a function in new processes; also a single one is new."""
    threads = 0 if count == 1 or "OMP_NUM_THREADS" in os.environ else max(1, cores() // count)
    with TemporaryDirectory() as folder, deferred_interrupt() as interrupts:
        store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # they meet there
        call = count, store.port, threads, Path(folder), imported_files(), function, arguments
        _mask_interrupt("block")  # until the processes have left the group that Ctrl-C reaches
        try:
            processes = spawn(_process, call, count, join=False).processes
        finally:
            _mask_interrupt("unblock")
        try:
            failed = _wait(processes, interrupts)
        finally:
            for process in processes:
                process.kill()
                process.join()
        if failed and interrupts:
            raise KeyboardInterrupt
        # A process whose partner has failed fails, too, but with an error of torch.
        errors = [_error(Path(folder, str(rank)), rank, processes[rank].exitcode) for rank in failed]
        for error in sorted(errors, key=lambda error: not isinstance(error, MDLSTMError)):
            raise error
        return pickle.loads(Path(folder, "0").read_bytes())  # type: ignore[no-any-return]


def _mask_interrupt(how: str) -> None:
    if sys.platform != "win32":
        block, unblock = signal.SIG_BLOCK, signal.SIG_UNBLOCK
        signal.pthread_sigmask(block if how == "block" else unblock, {signal.SIGINT})


def _wait(processes: Sequence[BaseProcess], interrupts: Sequence[int]) -> list[int]:
    """Wait until all processes have ended, or some time after one has failed; pass on an interrupt.

    Returns:
        The ranks of those that have failed, in order.
    """
    running, failed, deadline, is_passed_on = dict(enumerate(processes)), list[int](), math.inf, False
    while running and time.monotonic() < deadline:
        wait([process.sentinel for process in running.values()], POLL_SECONDS)
        if interrupts and not is_passed_on:
            is_passed_on = True
            for process in running.values():
                process.terminate()  # training goes on to the end of the step, anything else ends
        for rank in [rank for rank, process in running.items() if not process.is_alive()]:
            if running.pop(rank).exitcode:
                failed.append(rank)
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return failed


def _error(file: Path, rank: int, code: int | None) -> BaseException:
    """The error that a process has left in a file, or a new one if it could not."""
    if file.exists():
        return pickle.loads(file.read_bytes())  # type: ignore[no-any-return]
    end = f"killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
    fewer = Argument("processes"), " or a smaller ", Argument("batch_size")
    return MDLSTMError(f"process {rank} was {end}; if memory is short, try fewer ", *fewer)


def _process(
    rank: int,
    count: int,
    port: int,
    threads: int,
    folder: Path,
    imported: Sequence[Path],
    function: Callable[..., object],
    arguments: Sequence[Any],
) -> None:
    """Call a function in a process that torch has started, and leave its result or error in a file."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place |= {"MASTER_ADDR": HOST, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in place.items()})
    failed = False
    try:
        if sys.platform != "win32":
            os.setpgrp()  # Ctrl-C is for the process that waits, which passes it on
        _mask_interrupt("unblock")
        if threads:
            torch.set_num_threads(threads)
        for path in imported:
            import_file(path)
        outcome: object = function(*arguments)
    except BaseException as error:
        error.add_note(traceback.format_exc())
        outcome, failed = error, True
    (folder / str(rank)).write_bytes(_pickled(outcome))
    sys.exit(failed)


def _pickled(outcome: object) -> bytes:
    try:
        content = pickle.dumps(outcome)
        if isinstance(outcome, BaseException):
            pickle.loads(content)
        return content
    except Exception:  # an error of somebody else may have arguments that pickle does not know
        return pickle.dumps(RuntimeError(traceback.format_exc()))
