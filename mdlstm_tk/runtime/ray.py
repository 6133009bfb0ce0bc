"""Distribute inference with Ray, for more files or larger grids than one machine can process.

Ray runs on the cluster at $RAY_ADDRESS, whose machines must all see the files under the same paths; without
it, on this machine. Files are shared out in windows, and each worker loads the model once. The tiles of one
file are tasks, each of which waits for the faces and the files of those before it. Both give the bytes of a
run in one process: which arrays or tiles share a batch depends on the jobs and the plan alone.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mdlstm_tk.errors import MDLSTMError, require
from mdlstm_tk.runtime.answers import LABELS_ONLY, ResultOptions
from mdlstm_tk.runtime.batching import WINDOW, LocalReader, Outcome, infer_files
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.files import FileRun
from mdlstm_tk.runtime.tiles.local import Report
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Tile
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.runtime.tiles.work import Face, FaceKey, Work

TASKS_PER_WORKER = 50  # that wait or run, so that the driver never holds all of a large image
MAX_RESTARTS = 2  # of a worker that is lost


class FilesWorker:
    """A Ray actor that loads the model once and then runs windows of jobs."""

    def __init__(
        self, folder: str, model: str, options: dict[str, Any], arguments: tuple[Any, ...]
    ) -> None:
        os.chdir(folder)
        self._session, self._arguments = Session(model, **options), arguments

    def run(self, jobs: Sequence[Job]) -> tuple[list[Outcome], MDLSTMError | None]:
        """The outcomes of jobs, and the error that stopped them."""
        outcomes: list[Outcome] = []
        try:
            for outcome in infer_files(self._session, jobs, *self._arguments):
                outcomes.append(outcome)
        except MDLSTMError as error:
            return outcomes, error
        return outcomes, None


def infer_with_ray(
    model: Path,
    jobs: Sequence[Job],
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    *,
    result_options: ResultOptions = LABELS_ONLY,
    device: str = "cpu",
    threads: int = 1,
    timeout: float | None = None,
    isolated: bool = False,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Do what `infer_files` does, with the jobs distributed over Ray workers.

    The results equal those of `infer_files` byte for byte.

    Args:
        model: path of the model, which each worker loads.
        jobs: the files to read and where to write their results.
        batch_size, max_bytes, result_options: as in `infer_files`.
        device: "cpu" or "cuda", for each worker.
        threads: CPU threads of each worker. 0 means 1, as workers share the cores.
        timeout: maximum duration of one run in seconds.
        isolated: run the model in a child process of each worker; see `Session`.
        workers: number of processes. None: one per CPU, divided by `threads`.

    Yields:
        The outcomes, in the order of the jobs' windows.

    Raises:
        MDLSTMError: as in `infer_files`, or Ray fails.
        MissingExtraError: Ray is not installed.
    """
    threads = max(threads, 1)
    windows = [jobs[i : i + WINDOW] for i in range(0, len(jobs), WINDOW)]
    workers = min(workers or max(1, (os.cpu_count() or 1) // threads), len(windows))
    options = {"device": device, "threads": threads, "timeout": timeout, "isolated": isolated}
    options["max_bytes"] = max_bytes
    arguments = (batch_size, LocalReader(max_bytes), result_options)
    with ray_cluster(workers * threads) as ray:
        pool: Any = require("ray.util", "ray").ActorPool
        worker = ray.remote(
            num_cpus=threads,
            num_gpus=_gpus(device),
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )(FilesWorker)
        actors = [worker.remote(os.getcwd(), str(model), options, arguments) for _ in range(workers)]
        for outcomes, error in pool(actors).map(lambda actor, window: actor.run.remote(window), windows):
            yield from outcomes
            if error is not None:
                raise error


class TilesTask(NamedTuple):
    """What a worker needs to run any group of one file; it can be a key.

    Attributes:
        model: absolute path.
        device: as for `TiledSession`.
        options: its other arguments.
        run: the file.
    """

    model: str
    device: str
    options: tuple[tuple[str, Any], ...]
    run: FileRun


def run_tiles_with_ray(
    ray: Any, session: TiledSession, run: FileRun, work: Work, workers: int, report: Report | None
) -> None:
    """Run all groups of a file as tasks.

    A task gets the faces of its predecessors as objects of Ray, and reads and writes all else in files. It
    may run again at any time, which Ray does when a worker or a machine is lost, as blocks are kept.

    Args:
        ray: the module, connected to a cluster.
        session: the model.
        run: the file.
        work: of the run, in this process; its output exists, and workers write to it themselves.
        workers: number of processes.
        report: is called with the numbers of tiles that are done and of all.

    Raises:
        MDLSTMError: a group fails.
    """
    plan, device = work.plan, session.device
    spec = TilesTask(os.path.abspath(session.label), device, tuple(session.options.items()), run)
    task = ray.remote(num_returns=2, num_cpus=1, num_gpus=_gpus(device))(_run_group)
    shared = ray.put(spec)
    faces_of: dict[tuple[int, Tile], Any] = {}
    error_of: dict[tuple[int, Tile], Any] = {}
    waiting: dict[Any, int] = {}  # the error of a task, and its number of tiles
    done = 0

    def wait(limit: int) -> None:
        """Wait until at most so many tasks are left."""
        nonlocal done
        while len(waiting) > limit:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for ref in ready:
                done += waiting.pop(ref)
                error = ray.get(ref)
                if error is not None:
                    raise error
            if report is not None:
                report(done, plan.tile_count)

    for step in range(plan.step_count):
        faces_now: dict[tuple[int, Tile], Any] = {}
        for group in plan.groups(step):
            refs = _refs_before(plan, group, faces_of, error_of)
            faces, error = task.remote(shared, group, *refs)
            for tile in group.tiles:
                faces_now[group.sweep, tile] = faces
                error_of[group.sweep, tile] = error
            waiting[error] = len(group.tiles)
        faces_of = faces_now  # those of the step before have been taken
        wait(TASKS_PER_WORKER * workers)
    wait(0)
    work.finish()


def _refs_before(
    plan: Plan, group: Group, faces_of: dict[tuple[int, Tile], Any], error_of: dict[tuple[int, Tile], Any]
) -> list[Any]:
    """The faces and errors of all groups that come before one: predecessors, and the sweep before."""
    refs = []
    for tile in group.tiles:
        for axis in range(len(tile)):
            before = plan.predecessor(group.sweep, tile, axis)
            if before is not None:
                refs += [faces_of[group.sweep, before], error_of[group.sweep, before]]
        if group.sweep > 0:
            refs.append(error_of[group.sweep - 1, tile])
    return list(dict.fromkeys(refs))


def _run_group(
    spec: TilesTask, group: Group, *before: Any
) -> tuple[dict[FaceKey, Face], MDLSTMError | None]:
    """Run one group as a task.

    Args:
        spec: of the run.
        group: of its plan.
        before: the faces of groups with predecessors, and the errors of all groups that come first.

    Returns:
        The faces that are left, and the error that stopped this group or one before it.
    """
    faces: dict[FaceKey, Face] = {}
    for item in before:
        if isinstance(item, MDLSTMError):
            return {}, item
        faces |= item or {}
    try:
        return _work_of(spec).run(group, faces), None
    except MDLSTMError as error:
        return {}, error


@lru_cache(maxsize=1)
def _work_of(spec: TilesTask) -> Work:
    """The work of this process, which stays open for the tasks that follow."""
    session = TiledSession(spec.model, spec.device, **dict(spec.options))
    return spec.run.open(session, ExitStack())


def _gpus(device: str) -> int:
    return 1 if device.startswith("cuda") else 0


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
