"""Run a tiled export on files; `infer_paths` calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mdlstm_tk.errors import Argument, InputError, Message, StoppedError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.batching import MAX_STOPS, Result, Widths, write_results
from mdlstm_tk.runtime.combinations import REGIONS
from mdlstm_tk.runtime.io.files import ExistsError, locked
from mdlstm_tk.runtime.io.npy import STDIO
from mdlstm_tk.runtime.jobs import LABELS_ONLY, Job, ResultOptions
from mdlstm_tk.runtime.tiles.local import STATE, Report, RunGroups, State, on_threads, run_steps
from mdlstm_tk.runtime.tiles.outputs import FileOutput
from mdlstm_tk.runtime.tiles.plan import Plan
from mdlstm_tk.runtime.tiles.session import TILE, TiledSession
from mdlstm_tk.runtime.tiles.sources import GridSource, fingerprint, open_source
from mdlstm_tk.runtime.tiles.store import BlockFolder
from mdlstm_tk.runtime.tiles.work import Output, Work

SCRATCH_SUFFIX = ".mdlstm-scratch"


@dataclass(frozen=True)
class FileRun:
    """The run of a file, from which every process that runs groups of its tiles opens its `Work`. Paths
    are the same for all processes."""

    job: Job
    tile: int
    level: int
    batch_size: int | None
    folder: Path

    @property
    def scratch(self) -> Path:
        """The folder of what is not finished, beside the file that the result becomes or replaces; of
        answers in `folder`."""
        job = self.job
        answers = self.folder / os.path.basename(job.source)
        target = os.path.realpath(answers if job.target == STDIO else job.target)
        return Path(target).with_name(f".{os.path.basename(target)}{SCRATCH_SUFFIX}")

    def plan(self, session: TiledSession, stack: ExitStack) -> tuple[GridSource, Plan]:
        """Open the source, which `stack` closes, and plan its tiles."""
        source = open_source(Path(self.job.source), session.metadata, self.level, stack)
        return source, session.plan(source.grid, self.tile, self.batch_size)

    def work(self, session: TiledSession, source: GridSource, plan: Plan) -> Work:
        """Create the output, or open the one of an interrupted run. y is an array if it has no grid."""
        archive = session.archive
        shape = archive.output_shape(source.grid)
        output: Output
        if archive.pool or self.job.format not in REGIONS:
            output = np.empty(shape, np.float32)
        else:
            tile = zip(plan.tile_extents[-1], archive.upsample, shape, strict=False)
            output = FileOutput(
                self.scratch,
                self.job.format,
                shape,
                session.metadata,
                tuple(min(size * up, extent) for size, up, extent in tile),
                self.job.content,
                squeeze=not source.has_channel_axis,
                label=self.job.source,
            )
        return Work(archive, session.graphs, plan, BlockFolder(self.scratch), source, output)


TileWorkers = Callable[[FileRun], RunGroups]
"""For a file, the function that runs its groups in processes of Ray."""


def infer_tiled(
    session: TiledSession,
    jobs: Sequence[Job],
    batch_size: int | None = None,
    options: ResultOptions = LABELS_ONLY,
    *,
    tile: int | None = None,
    level: int = 0,
    resume: bool = False,
    force: bool = False,
    report: Report | None = None,
    workers: int | None = None,
    folder: Path = Path(),
) -> Iterator[Result]:
    """Run a tiled export on files and write the results, one file after the other.

    Arguments are those of `infer_files` and `infer_paths`; without `workers`, tiles run in this process.
    `folder` is that of the table of answers, or the current one; it holds what is not finished of them. A
    file that cannot be used, or for which the model is stopped, gives a result with an error.

    Raises:
        MDLSTMError: the next file would fail, too: a result cannot be written, or the model fails, or was
            stopped for several files in a row.
    """
    with ExitStack() as stack:
        pool: TileWorkers | None = None
        if workers is not None and jobs:
            from mdlstm_tk.runtime.ray import tile_workers  # imported late: most calls need none

            pool = stack.enter_context(tile_workers(session, workers))
        stops = 0
        for job in jobs:
            try:
                run = FileRun(job, TILE if tile is None else tile, level, batch_size, folder)
                result = _infer_file(session, run, options, resume, force, report, pool)
            except InputError as error:
                result = Result(job, str(error))
            except StoppedError as error:
                result = Result(job, Message(f"{job.source}: ", error), stopped=error.cause)
                if stops + 1 == MAX_STOPS:
                    raise
            except MemoryError:
                text = f"{job.source} needs more memory than is left; give a smaller "
                result = Result(job, Message(text, Argument("tile")))
            stops = stops + 1 if result.stopped else 0
            yield result


def _infer_file(
    session: TiledSession,
    run: FileRun,
    options: ResultOptions,
    resume: bool,
    force: bool,
    report: Report | None,
    workers: TileWorkers | None,
) -> Result:
    job = run.job
    with _scratch(run.scratch, resume, force), ExitStack() as stack:
        fingerprinted = fingerprint(Path(job.source))  # before the layout is read
        source, plan = run.plan(session, stack)
        dependencies = {
            "model": session.archive.digest,
            "source": os.path.realpath(job.source),
            "level": run.level,
            "state of the source": fingerprinted,
            "tile": plan.tile_extents[0],
            "batch size": plan.batch_size,
            "format": job.format,
            "content": job.content,
            "device": session.device,
        }
        state = State(run.scratch, dependencies)  # is compared before anything is opened to write
        work = run.work(session, source, plan)
        if isinstance(work.output, FileOutput) and work.output.is_new:
            state.step = 0  # the result of an earlier run has become the file, which may have changed since
        state.save(state.step)
        if workers is None:
            run_groups = stack.enter_context(on_threads(work, session.threads))
        else:
            run_groups = workers(replace(run, batch_size=plan.batch_size))
        run_steps(work, run_groups, state=state, report=report)
        if fingerprint(Path(job.source)) != fingerprinted:
            (run.scratch / STATE).unlink()  # nothing of it can be used
            raise InputError(f"{job.source} has changed while it was read; run it again")
        if isinstance(work.output, FileOutput):
            work.output.finish(Path(job.target), replace=job.replace)
            return Result(job, None)
    y, widths = np.asarray(work.output), Widths()
    if kind_named(session.metadata.kind).steps_are_columns:
        columns = source.grid[-1]  # also those of an image, which is not resized
        widths = {None: (columns, columns)}
    return Result(job, None, write_results(job, {None: y}, session.metadata, options, widths))


@contextmanager
def _scratch(folder: Path, resume: bool, force: bool) -> Iterator[None]:
    """Make the scratch folder of a run; it is removed at the end, unless an interrupted run can go on."""
    import shutil  # imported late: it imports modules that most calls do not need

    has_leftovers = os.path.exists(folder)
    with locked(folder, "choose another ", Argument("output")):
        if has_leftovers and not resume and not force:
            raise InputError(
                f"a run that was interrupted has left {folder}; go on with ",
                *(Argument("resume", True), ", or start over with ", Argument("force", True)),
            )
        if has_leftovers and not (resume and (folder / STATE).exists()):
            for path in folder.iterdir():  # but not the folder, which is locked
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        can_go_on = resume
        try:
            yield
            can_go_on = False
        except ExistsError as error:
            can_go_on = True
            kept = ": what was computed is kept"
            raise InputError(error, " and ", Argument("resume", True), kept) from None
        finally:
            if not can_go_on or not (folder / STATE).exists():
                shutil.rmtree(folder, ignore_errors=True)
