"""Run the groups of a plan as Ray tasks, each of which waits for what it needs.

A task gets the faces of its predecessors as objects of Ray, and reads and writes all else in files, which
all machines must see under the same paths. Every sweep keeps its sums in a file of its own, so that a task
may run again at any time, which Ray does when a worker or a machine is lost. The groups are those of a run
in one process, and so are the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.runtime.tiles.local import Report
from mdlstm_tk.runtime.tiles.outputs import FileOutput, GridFormat
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Tile
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.runtime.tiles.sources import FileSource
from mdlstm_tk.runtime.tiles.work import (
    Face,
    FaceKey,
    Output,
    Work,
    make_plan,
    make_store,
    tile_of_output,
)

TASKS_PER_WORKER = 50  # that wait or run, so that the driver never holds all of a large image


@dataclass(frozen=True)
class TaskSpec:
    """What a worker needs to run any group of one file.

    Attributes:
        model, source, scratch: absolute paths, the same on all machines.
        level: of a TIFF with a pyramid.
        tile, batch_size: of the plan.
        format: of the result; None if it has no grid.
        wants_probabilities: as for `FileOutput`.
        device, timeout, isolated: as for `TiledSession`.
    """

    model: str
    source: str
    scratch: str
    level: int
    tile: tuple[int, ...]
    batch_size: int
    format: GridFormat | None
    wants_probabilities: bool
    device: str
    timeout: float | None
    isolated: bool


class _NoOutput:
    """Stands for y where workers write none of it: the driver does, from what they have averaged."""

    def write(self, region: object, block: object) -> None:
        raise MDLSTMError("a network that averages over the grid has no y before the end")


def open_work(spec: TaskSpec, stack: ExitStack, output: Output | None = None) -> tuple[Work, Plan]:
    """Open the model and the files of a run; `stack` closes them.

    Args:
        spec: names them.
        output: where y goes; None: to the file of the spec.
    """
    session = stack.enter_context(
        TiledSession(spec.model, spec.device, timeout=spec.timeout, isolated=spec.isolated)
    )
    source = FileSource(Path(spec.source), session.metadata, spec.level)
    stack.callback(source.close)
    archive, scratch = session.archive, Path(spec.scratch)
    plan = make_plan(archive, source.grid, spec.tile, spec.batch_size)
    if output is None and spec.format is not None:
        file = FileOutput(
            scratch,
            spec.format,
            session.output_shape(source.grid),
            session.metadata,
            tile_of_output(archive, plan),
            wants_probabilities=spec.wants_probabilities,
            squeeze=not source.has_channel_axis,
        )
        stack.callback(file.close)
        output = file
    store = make_store(archive, plan, scratch, keep=True)
    stack.callback(store.close)
    return Work(archive, session.graphs, session.head, plan, store, source, output or _NoOutput()), plan


@lru_cache(maxsize=1)
def _work_of(spec: TaskSpec) -> Work:
    """The work of this process, which stays open for the tasks that follow."""
    return open_work(spec, ExitStack())[0]


Result = tuple[dict[FaceKey, Face], MDLSTMError | None]


def _run_group(spec: TaskSpec, group: Group, *needed: Any) -> Result:
    """Run one group as a task.

    Args:
        spec: of the run.
        group: of its plan.
        needed: the faces of groups with predecessors, and the errors of all groups that come first.

    Returns:
        The faces that are left, and the error that stopped this group or one before it.
    """
    faces: dict[FaceKey, Face] = {}
    for item in needed:
        if isinstance(item, MDLSTMError):
            return {}, item
        faces |= item or {}
    try:
        return _work_of(spec).run(group, faces), None
    except MDLSTMError as error:
        return {}, error


def run_with_ray(ray: Any, spec: TaskSpec, workers: int, report: Report | None, output: Output) -> None:
    """Run a file as tasks.

    Args:
        ray: the module, connected to a cluster.
        spec: of the run.
        workers: number of processes.
        report: is called with the numbers of tiles that are done and of all.
        output: y; its file exists, and workers write to it themselves.

    Raises:
        MDLSTMError: a group fails.
    """
    with ExitStack() as stack:
        work, plan = open_work(spec, stack, output)
        _run_tasks(ray, spec, plan, workers, report)
        work.finish()


def _run_tasks(ray: Any, spec: TaskSpec, plan: Plan, workers: int, report: Report | None) -> None:
    """Run all groups of a plan; raises the first error."""
    gpus = 1 if spec.device.startswith("cuda") else 0
    task = ray.remote(num_returns=2, num_cpus=1, num_gpus=gpus)(_run_group)
    shared = ray.put(spec)
    faces_of: dict[tuple[int, Tile], Any] = {}
    error_of: dict[tuple[int, Tile], Any] = {}
    waiting: dict[Any, int] = {}  # the error of a task, and its number of tiles
    done = 0

    def take(most: int) -> None:
        """Wait until at most so many tasks are left."""
        nonlocal done
        while len(waiting) > most:
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
            needed = _needed(plan, group, faces_of, error_of)
            faces, error = task.remote(shared, group, *needed)
            for tile in group.tiles:
                faces_now[group.sweep, tile] = faces
                error_of[group.sweep, tile] = error
            waiting[error] = len(group.tiles)
        faces_of = faces_now  # those of the step before have been taken
        take(TASKS_PER_WORKER * workers)
    take(0)


def _needed(
    plan: Plan, group: Group, faces_of: dict[tuple[int, Tile], Any], error_of: dict[tuple[int, Tile], Any]
) -> Sequence[Any]:
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
