"""Train in several processes of this machine: start them, and end them."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from mdlstm_tk._util.user_code import import_file, imported_files
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.training.loop import deferred_interrupt

T = TypeVar("T")
HOST = "127.0.0.1"
GRACE_SECONDS = 30  # in which the other processes end after one has failed
POLL_SECONDS = 0.1  # between two looks for an interrupt


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
        function: a function that pickle knows, as its arguments and its result.
        *arguments: its arguments.

    Returns:
        What the function returns in the main process.

    Raises:
        InputError: `processes` is below 1 or above the number of cores, or torchrun has started this
            process.
        MDLSTMError, OSError, MemoryError, RuntimeError: the function raises it; or a process was killed.
        torch.multiprocessing.ProcessRaisedException: the function raises another error.
        KeyboardInterrupt: Ctrl-C or SIGTERM; `train` has written a checkpoint before.
    """
    if not isinstance(processes, int) or not 1 <= processes <= cores():
        raise InputError(f"processes must be from 1 to the number of cores, {cores()}, got {processes!r}")
    if processes == 1:
        return function(*arguments)
    return _call(processes, function, arguments)


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _call(count: int, function: Callable[..., T], arguments: Sequence[Any]) -> T:
    """Call a function in new processes."""
    if "RANK" in os.environ:
        raise InputError(
            "torchrun has started processes already; leave out --processes, or start it without torchrun"
        )
    threads = 0 if "OMP_NUM_THREADS" in os.environ else max(1, cores() // count)
    with TemporaryDirectory() as folder, deferred_interrupt() as interrupts:
        store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # where they meet
        files = [Path(folder, str(rank)) for rank in range(count)]
        call = files, store.port, threads, imported_files(), function, arguments
        _mask_interrupt(True)  # until the processes have left the group that Ctrl-C reaches
        try:
            started = spawn(_process, call, count, join=False)
        finally:
            _mask_interrupt(False)
        is_passed_on = False
        try:
            while not started.join(POLL_SECONDS, GRACE_SECONDS):
                if interrupts and not is_passed_on:
                    is_passed_on = True
                    for process in started.processes:
                        process.terminate()  # training goes on to the end of the step, anything else ends
        except (ProcessExitedException, ProcessRaisedException) as failure:
            if interrupts:
                raise KeyboardInterrupt from None
            raise _error(files, failure) from None
        finally:
            for process in started.processes:  # which are left after a second interrupt
                process.kill()
        if not files[0].exists():
            raise KeyboardInterrupt
        return pickle.loads(files[0].read_bytes())  # type: ignore[no-any-return]


def _mask_interrupt(is_blocked: bool) -> None:
    """Let SIGINT wait, also in processes that are started from now on, or no longer."""
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # which lets signals through when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK if is_blocked else signal.SIG_UNBLOCK, {signal.SIGINT})


def _error(files: Sequence[Path], failure: ProcessExitedException | ProcessRaisedException) -> Exception:
    """The error that a process has left in its file, or another one if there is none."""
    first = files[failure.error_index]
    for file in files:
        # a process whose partner has failed fails, too, but with an error of torch
        if file.exists() and isinstance(error := pickle.loads(file.read_bytes()), MDLSTMError):
            return error
    if first.exists():
        return pickle.loads(first.read_bytes())  # type: ignore[no-any-return]
    if isinstance(failure, ProcessRaisedException):
        return failure
    return MDLSTMError(
        f"{failure.msg}; if memory is short, try fewer --processes or a smaller --batch-size"
    )


def _process(
    rank: int,
    files: Sequence[Path],
    port: int,
    threads: int,
    imported: Sequence[Path],
    function: Callable[..., object],
    arguments: Sequence[Any],
) -> None:
    """Call a function in a process that torch has started, and leave its result or error in a file."""
    if sys.platform != "win32":
        os.setpgrp()  # Ctrl-C is for the process that waits, which passes it on
    _mask_interrupt(False)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(files), "LOCAL_WORLD_SIZE": len(files)}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    if threads:
        torch.set_num_threads(threads)
    try:
        for path in imported:
            import_file(path)
        outcome = function(*arguments)
    except (MDLSTMError, OSError, MemoryError, RuntimeError) as error:
        error.add_note(traceback.format_exc())  # which is not pickled
        outcome = error
    files[rank].write_bytes(pickle.dumps(outcome))
    sys.exit(isinstance(outcome, Exception))
