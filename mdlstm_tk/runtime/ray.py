"""Distribute inference with Ray, for more files or larger grids than one machine can process.

Ray runs on the cluster at $RAY_ADDRESS, whose machines must all see the files under the same paths; without
it, on this machine. Each worker loads the model once, and then runs chunks of files, or groups of tiles.
Both give the bytes of a run in one process: which arrays or tiles share a batch depends on the jobs and the
plan alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mdlstm_tk._util.user_code import import_file, imported_files
from mdlstm_tk.errors import Argument, MDLSTMError, require
from mdlstm_tk.runtime.batching import CHUNK, Result, infer_files
from mdlstm_tk.runtime.io.npy import byte_limit
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.jobs import LABELS_ONLY, Job, ResultOptions
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.files import FileRun
from mdlstm_tk.runtime.tiles.local import RunGroups
from mdlstm_tk.runtime.tiles.plan import Group
from mdlstm_tk.runtime.tiles.session import TiledSession

MAX_RESTARTS = 2  # of a worker that is lost


class FilesWorker:
    """A Ray actor that loads the model once and then runs chunks of jobs. It imports the files of the user
    that this process has imported, as the model may be of a kind that they register."""

    def __init__(
        self,
        folder: str,
        imported: Sequence[Path],
        model: Path,
        session_kwargs: dict[str, Any],
        infer_args: tuple[Any, ...],
    ) -> None:
        os.chdir(folder)
        for path in imported:
            import_file(path)
        self._session, self._infer_args = Session(model, **session_kwargs), infer_args

    def run(self, jobs: Sequence[Job]) -> tuple[list[Result], MDLSTMError | None, list[str]]:
        """Run `jobs`; return their results, the error that ended them, and what was warned of."""
        results: list[Result] = []
        with _warnings() as warned:
            try:
                for result in infer_files(self._session, jobs, *self._infer_args):
                    results.append(result)
            except MDLSTMError as error:
                return results, error, warned
        return results, None, warned


class TilesWorker:
    """A Ray actor that loads the tiled model once, from a pickled session, and then runs groups of tiles.
    It imports the files of the user, as `FilesWorker` does."""

    def __init__(self, folder: str, imported: Sequence[Path], session: bytes) -> None:
        os.chdir(folder)
        for path in imported:
            import_file(path)
        self._session: TiledSession = pickle.loads(session)  # its metadata are those of a kind
        self._stack = ExitStack()
        self._file: FileRun | None = None

    def run(self, file: FileRun, group: Group) -> tuple[MDLSTMError | None, list[str]]:
        """Run a group of tiles of a file; return the error, if any, and what was warned of. Warnings of the
        source are left out, as the process that waits has opened it, too."""
        try:
            if file != self._file:
                self._file = None  # until the next one is open
                self._stack.close()
                self._work = file.work(self._session, *file.plan(self._session, self._stack))
                self._file = file
            with _warnings() as warned:
                self._work.run(group)
        except MDLSTMError as error:
            return error, []
        return None, warned


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the texts of warnings, which nobody would see in the output of a worker; they are complete at
    the end of the `with` statement."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield texts
        finally:
            texts += [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


def infer_with_ray(
    model: Path,
    jobs: Sequence[Job],
    batch_size: int | None = None,
    options: ResultOptions = LABELS_ONLY,
    *,
    device: str = "cpu",
    threads: int = 1,
    workers: int | None = None,
    max_bytes: int | None = None,
    **arguments: Any,
) -> Iterator[Result]:
    """Distribute `infer_files` over Ray workers. Results are the same byte for byte, but stops in a row are
    counted anew for each `CHUNK` of files. An MDLSTMError says that `infer_files` or Ray failed.

    Args:
        model: a path that all workers see; `jobs`, `batch_size` and `options` are as for `infer_files`.
        device, threads: of each worker; 0 threads mean 1, as workers share the cores.
        workers: how many; None: one per CPU, divided by `threads`. On CUDA at most one per GPU.
        max_bytes, **arguments: further arguments of `Session`.
    """
    threads = max(threads, 1)
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    workers = min(workers or max(1, (os.cpu_count() or 1) // threads), len(chunks))
    arguments |= {"device": device, "threads": threads, "max_bytes": max_bytes}
    infer_args = (partial(read_input, max_bytes=byte_limit(max_bytes)), batch_size, options)
    with ray_cluster(workers * threads) as ray:
        actor_args = os.getcwd(), imported_files(), model, arguments, infer_args
        pool = _pool(ray, FilesWorker, actor_args, workers, device, threads)
        for results, error, warned in pool.map(lambda actor, chunk: actor.run.remote(chunk), chunks):
            for text in warned:
                warnings.warn(text, stacklevel=2)
            yield from results
            if error is not None:
                raise error


@contextmanager
def tile_workers(session: TiledSession, workers: int) -> Iterator[Callable[[FileRun], RunGroups]]:
    """Start Ray workers; yields a function from a file to the function that runs its groups of tiles.

    The groups of a step run at the same time; what they leave for one another lies in files. A group may
    run again, which Ray does when a worker is lost.
    """
    with ray_cluster(workers) as ray:
        actor_args = os.getcwd(), imported_files(), pickle.dumps(session)
        pool = _pool(ray, TilesWorker, actor_args, workers, session.device)

        def run_groups(file: FileRun, groups: Sequence[Group]) -> None:
            for error, warned in list(pool.map(lambda actor, group: actor.run.remote(file, group), groups)):
                for text in warned:
                    warnings.warn(text, stacklevel=2)
                if error is not None:
                    raise error

        yield lambda file: partial(run_groups, file)


def _pool(
    ray: Any, worker: type, actor_args: tuple[Any, ...], count: int, device: str, threads: int = 1
) -> Any:
    """Start `count` actors, but no more than there are GPUs on CUDA. Ray starts them again when they are
    lost."""
    restarts = {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RESTARTS}
    gpus = 1 if device.startswith("cuda") else 0
    if gpus:  # an actor without a GPU would wait for ever
        count = min(count, int(ray.cluster_resources().get("GPU", 0)))
        if count == 0:
            raise MDLSTMError("the Ray cluster has no GPU; give ", Argument("device", "cpu"))
    actor = ray.remote(num_cpus=threads, num_gpus=gpus, **restarts)(worker)
    return require("ray.util", "ray").ActorPool([actor.remote(*actor_args) for _ in range(count)])


@contextmanager
def ray_cluster(cpus: int) -> Iterator[Any]:
    """Connect to the cluster at $RAY_ADDRESS, or start one with `cpus` CPUs on this machine; yields `ray`.

    Usage statistics and the dashboard are turned off. Sets RAY_* variables and leaves them set.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"  # its messages are in its log files
    ray: Any = require("ray", "ray")
    cluster = os.environ.get("RAY_ADDRESS")
    if cluster:
        _check_reachable(cluster)
    resources = {} if cluster else {"num_cpus": cpus}
    failures: tuple[type[Exception], ...] = (ray.exceptions.RayError, ConnectionError, RuntimeError)
    try:
        with _suppressed_stderr():
            ray.init(
                address=cluster or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **resources,
            )
        failures = (ray.exceptions.RayError,)  # in the body of `with`, other errors are not Ray's
        yield ray
    except failures as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise MDLSTMError(f"Ray failed: {reason}") from None
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that something listens at host:port; Ray itself would retry for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the latter for a host such as a..b
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
