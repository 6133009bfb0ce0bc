"""Run a tiled export on files: what `infer_paths` does where the model is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.batching import Result, write_results
from mdlstm_tk.runtime.io.arrays import STDIO
from mdlstm_tk.runtime.jobs import LABELS_ONLY, Job, ResultOptions
from mdlstm_tk.runtime.tiles.local import Report, State
from mdlstm_tk.runtime.tiles.outputs import GRID_FORMATS, FileOutput
from mdlstm_tk.runtime.tiles.plan import Plan, tile_extents
from mdlstm_tk.runtime.tiles.session import TILE, ArrayOutput, TiledSession
from mdlstm_tk.runtime.tiles.sources import FileSource
from mdlstm_tk.runtime.tiles.work import Output, tile_of_output

if os.name == "posix":
    import fcntl

SCRATCH_SUFFIX = ".mdlstm-scratch"


@dataclass(frozen=True)
class TileOptions:
    """How a tiled export is run on files.

    Attributes:
        tile: extents of a tile along each axis.
        level: of a TIFF with a pyramid, which of its levels is read.
        resume: go on with what was interrupted, and keep what an interruption leaves.
        report: is called with the numbers of tiles that are done and of all.
        workers: number of processes of Ray that run the tiles; None: they run in this process.
    """

    tile: int = TILE
    level: int = 0
    resume: bool = False
    report: Report | None = None
    workers: int | None = None


def infer_tiled(
    session: TiledSession,
    jobs: Sequence[Job],
    tiles: TileOptions,
    batch_size: int | None = None,
    options: ResultOptions = LABELS_ONLY,
    *,
    force: bool = False,
) -> Iterator[Result]:
    """Run a tiled export on files and write the results, one file after the other.

    Args:
        session: the model.
        jobs: the files to read and where to write their results.
        tiles: how they are run.
        batch_size: most tiles in one batch, as for `TiledSession`.
        options: which probabilities to write.
        force: start over where an interrupted run left something.

    Yields:
        The outcome of each job. A file that cannot be used gives an outcome with an error.

    Raises:
        MDLSTMError: the next file would fail, too: a result cannot be written, or the model fails.
    """
    with ExitStack() as stack:
        ray: Any = None
        if tiles.workers is not None and jobs:
            from mdlstm_tk.runtime.ray_engine import ray_cluster  # imported late: most calls need none

            ray = stack.enter_context(ray_cluster(tiles.workers))
        for job in jobs:
            try:
                yield _infer_file(session, job, tiles, batch_size, options, force, ray)
            except InputError as error:
                yield Result(job, str(error))


def _infer_file(
    session: TiledSession,
    job: Job,
    tiles: TileOptions,
    batch_size: int | None,
    options: ResultOptions,
    force: bool,
    ray: Any,
) -> Result:
    metadata = session.metadata
    if job.source == STDIO:
        raise InputError("a tiled model reads files by region, not - (stdin); or use --stream for rows")
    has_grid = not session.archive.pool
    grid_format = next((known for known in GRID_FORMATS if has_grid and known == job.format), None)
    if has_grid and grid_format is None:
        raise InputError(
            f"a tiled model writes {', '.join(GRID_FORMATS)}, got {job.format}; give another --format or -o"
        )
    with ExitStack() as stack:
        source = FileSource(Path(job.source), metadata, tiles.level)
        stack.callback(source.close)
        plan = session.plan(source.grid, tiles.tile, batch_size)
        shape = session.output_shape(source.grid)
        scratch = stack.enter_context(_scratch(_scratch_path(job), tiles.resume, force))
        state = State(scratch, _fingerprint(session, source, plan, job, options))
        state.begin()
        run: Callable[[Output], None] = partial(
            session.run,
            source,
            tile=tiles.tile,
            batch_size=batch_size,
            scratch=scratch,
            state=state,
            resume=tiles.resume,
            report=tiles.report,
        )
        if ray is not None:
            from mdlstm_tk.runtime.tiles.distributed import TaskSpec, run_with_ray

            spec = TaskSpec(
                model=os.path.abspath(session.label),
                source=os.path.abspath(job.source),
                scratch=os.path.abspath(scratch),
                level=tiles.level,
                tile=tile_extents(tiles.tile, metadata.ndim),
                batch_size=plan.batch_size,
                format=grid_format,
                wants_probabilities=options.probabilities,
                device=session.device,
                timeout=session.timeout,
                isolated=session.isolated,
            )
            run = partial(run_with_ray, ray, spec, tiles.workers or 1, tiles.report)
        if grid_format is None:
            y = np.empty(shape, np.float32)
            run(ArrayOutput(y))
            return Result(job, None, write_results(job, {None: y}, metadata, options))
        output = FileOutput(
            scratch,
            grid_format,
            shape,
            metadata,
            tile_of_output(session.archive, plan),
            wants_probabilities=options.probabilities,
            squeeze=not source.has_channel_axis,
        )
        stack.callback(output.close)
        run(output)
        output.finish(Path(job.target))
    return Result(job, None)


def _scratch_path(job: Job) -> Path:
    """Where a job keeps what lies between the sweeps: beside its result."""
    target = Path(os.path.basename(job.source) if job.target == STDIO else job.target)
    return target.parent / f".{target.name}{SCRATCH_SUFFIX}"


@contextmanager
def _scratch(folder: Path, resume: bool, force: bool) -> Iterator[Path]:
    """The scratch folder of a run; it is removed at the end, unless an interrupted run can go on.

    Raises:
        InputError: an interrupted run has left one, and it is not said what to do with it.
        MDLSTMError: the folder cannot be created, or another process works in it.
    """
    import shutil  # imported late: it imports modules that most calls do not need

    try:
        if folder.exists() and not resume:
            _lock(folder)()
            if not force:
                raise InputError(
                    f"a run that was interrupted has left {folder}; go on with --resume, or start over "
                    "with --force"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unlock = _lock(folder)
    except OSError as error:
        raise MDLSTMError(f"cannot write {folder}: {error.strerror or error}") from None
    is_done = False
    try:
        yield folder
        is_done = True
    finally:
        if is_done or not resume:
            shutil.rmtree(folder, ignore_errors=True)
        unlock()


def _lock(folder: Path) -> Callable[[], None]:
    """Lock a folder against other processes, and return what unlocks it.

    Raises:
        MDLSTMError: another process works in it.
    """
    if os.name != "posix":
        return lambda: None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise MDLSTMError(f"another process works in {folder}; wait for it, or choose another -o") from None
    except OSError:  # a file system without locks
        pass
    return partial(os.close, descriptor)


def _fingerprint(
    session: TiledSession, source: FileSource, plan: Plan, job: Job, options: ResultOptions
) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "model": session.archive.digest,
        "source": source.fingerprint(),
        "tile": plan.tiling.tile_extents[0],
        "batch size": plan.batch_size,
        "format": job.format,
        "probabilities": options.probabilities,
        "device": session.device,
    }
