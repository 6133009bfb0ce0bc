"""Distribute `infer_files` with Ray Data, for more files than one machine can process."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import MDLSTMError, require
from mdlstm_tk.runtime.batching import WINDOW, Result, infer_files
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.jobs import LABELS_ONLY, Job, ResultOptions
from mdlstm_tk.runtime.session import Session


class Worker:
    """A Ray actor that loads the model once and then runs windows of jobs."""

    def __init__(
        self,
        folder: str,
        model: str,
        arguments: dict[str, Any],
        batch_size: int | None,
        options: ResultOptions,
    ) -> None:
        os.chdir(folder)
        self.session = Session(model, **arguments)
        read = partial(read_input, max_bytes=arguments["max_bytes"] or MAX_BYTES)
        self.infer_options = (read, batch_size, options)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        # Ray carries rows in Arrow, which takes no file name that is not UTF-8, so jobs are pickled.
        outcomes: list[Result] = []
        failure: MDLSTMError | None = None
        try:
            for outcome in infer_files(self.session, pickle.loads(row["jobs"]), *self.infer_options):
                outcomes.append(outcome)
        except MDLSTMError as error:
            failure = error
        return {"outcomes": pickle.dumps((outcomes, failure))}


def infer_with_ray(
    model: Path,
    jobs: Sequence[Job],
    batch_size: int | None = None,
    options: ResultOptions = LABELS_ONLY,
    *,
    max_bytes: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    timeout: float | None = None,
    isolated: bool = False,
    trusted: bool = False,
    workers: int | None = None,
) -> Iterator[Result]:
    """Do what `infer_files` does, with the jobs distributed over Ray workers.

    The results equal those of `infer_files` byte for byte, as the same arrays share a batch. Ray runs on
    the cluster at $RAY_ADDRESS, whose nodes must all see the files under the same paths; without
    it, on this machine. Usage statistics and the dashboard are turned off.

    Args:
        model: path of the model, which each worker loads.
        jobs: the files to read and where to write their results.
        batch_size, options: as in `infer_files`.
        max_bytes: maximum size in bytes of a file; None: 1 GiB.
        device: "cpu" or "cuda", for each worker.
        threads: CPU threads of each worker. 0 means 1, as workers share the cores.
        timeout: maximum duration of one run in seconds.
        isolated, trusted: as for `Session`.
        workers: number of processes. None: one per CPU, divided by `threads`.

    Yields:
        The outcomes, in the order of the jobs' windows.

    Raises:
        MDLSTMError: as in `infer_files`, or Ray fails.
        MissingExtraError: Ray is not installed.
    """
    threads = max(threads, 1)
    workers = workers or max(1, (os.cpu_count() or 1) // threads)
    arguments: dict[str, Any] = {"device": device, "threads": threads, "timeout": timeout}
    arguments |= {"max_bytes": max_bytes, "isolated": isolated, "trusted": trusted}
    windows = [pickle.dumps(list(jobs[i : i + WINDOW])) for i in range(0, len(jobs), WINDOW)]
    with ray_cluster(workers * threads):
        data: Any = require("ray.data", "ray")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        rows = data.from_items([{"jobs": window} for window in windows], override_num_blocks=len(windows))
        processed = rows.map(
            Worker,
            fn_constructor_args=(os.getcwd(), str(model), arguments, batch_size, options),
            compute=data.ActorPoolStrategy(size=min(workers, len(windows))),
            num_cpus=threads,
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        for row in processed.iter_rows():
            outcomes, failure = pickle.loads(row["outcomes"])
            yield from outcomes
            if failure is not None:
                raise failure


@contextmanager
def ray_cluster(cpus: int) -> Iterator[Any]:
    """Connect to the cluster at $RAY_ADDRESS, or start one on this machine; yields the module `ray`.

    Usage statistics and the dashboard are turned off.

    Args:
        cpus: that a cluster on this machine has for tasks.

    Raises:
        MDLSTMError: Ray fails.
        MissingExtraError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"  # its messages are in its log files
    ray: Any = require("ray", "ray")
    cluster = os.environ.get("RAY_ADDRESS")
    if cluster:
        _check_reachable(cluster)
    resources = {} if cluster else {"num_cpus": cpus}
    try:
        with _suppressed_stderr():
            ray.init(
                address=cluster or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **resources,
            )
        yield ray
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise MDLSTMError(f"Ray failed: {reason}") from None
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that something listens at host:port; Ray itself would retry for many minutes.

    Raises:
        MDLSTMError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise MDLSTMError(f"no Ray cluster answers at $RAY_ADDRESS {address}: {error}") from None


@contextmanager
def _suppressed_stderr() -> Iterator[None]:
    """Redirect the process's stderr to nowhere: Ray's C++ part prints its log level there."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
