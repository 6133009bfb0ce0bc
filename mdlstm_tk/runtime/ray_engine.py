"""`infer_files` over Ray Data, for more files than one machine can take."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import MDLSTMError, require
from mdlstm_tk.runtime.batching import WINDOW, Outcome, infer_files
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.session import Session


class Worker:
    """One process of many: loads the model once, then takes windows of jobs."""

    def __init__(
        self,
        folder: str,
        model: str,
        options: dict[str, Any],
        batch_size: int | None,
        max_bytes: int,
        probabilities: bool,
    ) -> None:
        os.chdir(folder)
        self.session = Session(model, max_bytes=max_bytes, **options)
        self.infer_options = (batch_size, max_bytes, probabilities)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        # Pickled, because Arrow, which carries rows, takes no file name that is not UTF-8.
        outcomes: list[Outcome] = []
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
    max_bytes: int = MAX_BYTES,
    *,
    probabilities: bool = False,
    device: str = "cpu",
    threads: int = 1,
    timeout: float | None = None,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """What `infer_files` does, with the jobs shared out among Ray workers.

    Results are those of `infer_files` to the byte, as the same arrays share a batch. Ray runs on the
    cluster that $RAY_ADDRESS names, whose nodes must all see the files under the same names, else on
    this machine. It reports to nobody and starts no dashboard.

    Args:
        model: that each worker loads.
        jobs: what to read, and where to write.
        batch_size, max_bytes, probabilities: as in `infer_files`.
        device: of each worker, "cpu" or "cuda".
        threads: of each worker; 0 is taken for 1, as workers share the cores.
        timeout: seconds that a run may take.
        workers: processes; as many as there are CPUs for, if not given.

    Returns:
        The outcomes, in the order of the jobs' windows.

    Raises:
        MDLSTMError: as in `infer_files`, or Ray failed.
        MissingExtraError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"  # Ray's own words about its workings are in its log files
    ray: Any = require("ray", "ray")
    data: Any = require("ray.data", "ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    threads = max(threads, 1)
    options = {"device": device, "threads": threads, "timeout": timeout}
    windows = [pickle.dumps(list(jobs[i : i + WINDOW])) for i in range(0, len(jobs), WINDOW)]
    cluster = os.environ.get("RAY_ADDRESS")
    if cluster:
        _check_reachable(cluster)
    workers = workers or max(1, (os.cpu_count() or 1) // threads)
    size = {} if cluster else {"num_cpus": workers * threads}
    try:
        with _silent():
            ray.init(
                address=cluster or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **size,
            )
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        rows = data.from_items([{"jobs": window} for window in windows], override_num_blocks=len(windows))
        done = rows.map(
            Worker,
            fn_constructor_args=(os.getcwd(), str(model), options, batch_size, max_bytes, probabilities),
            compute=data.ActorPoolStrategy(size=min(workers, len(windows))),
            num_cpus=threads,
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        for row in done.iter_rows():
            outcomes, failure = pickle.loads(row["outcomes"])
            yield from outcomes
            if failure is not None:
                raise failure
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise MDLSTMError(f"Ray failed: {reason}") from None
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Make sure that somebody listens at host:port; Ray itself would try for many minutes.

    Raises:
        MDLSTMError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise MDLSTMError(f"there is no Ray cluster at $RAY_ADDRESS {address}: {error}") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on the process's stderr, where Ray's C++ part says which log level it was given."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
