"""`mdlstm infer`: NumPy and ONNX Runtime; torch and onnx are never imported."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mdlstm_tk.cli.console import err, next_command, note, progress, quoted
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.model_discovery import find_model

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Session
    from mdlstm_tk.runtime.batching import Outcome
    from mdlstm_tk.runtime.io.formats import Arrays
    from mdlstm_tk.runtime.jobs import Job

STDIO = "-"
LOOKED_AT = 32  # files, to choose a model by


def infer(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files or folders: npy, npz, png, jpg, csv; - for stdin."),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="An exported .onnx, or a folder of them.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="File, folder (input folders' trees are kept below it), or - for stdout."
        ),
    ] = None,
    form: Annotated[
        Literal["npy", "npz", "json", "png", "csv", "txt"] | None,
        typer.Option(
            "--format",
            help="Of results; by default npz for npz, else npy; or what a model is for: labels and texts "
            "(txt), masks (png). Else png clips values to [0, 1], as 8 bits.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: ONNX Runtime's choice.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows in one run; by default 64, fewer above 64x64.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: share files out over Ray Data, on $RAY_ADDRESS.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of --engine ray; by default one a CPU.")
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="That a file, or what it unpacks to, may take; by default 1 GiB."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds that one run may take.")] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out what has a result: goes on after a break.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run an exported model on arrays of shape (H, W), (H, W, C) or (N, H, W, C).

    matrix.npy gives matrix.out.npy beside it, - gives the result on stdout. A classifier's labels and a
    recogniser's texts are printed; a segmenter's masks are matrix.out.png. The model is -m, or
    $MDLSTM_MODEL, or the latest run's export, or the only .onnx in this folder. Images are (H, W) if
    grey, (H, W, C) if not, scaled to [0, 1].

    Of several files, those of one shape run together. One that cannot be used is named, the rest go on,
    and the exit code is 1. Folders are searched to the bottom, but for hidden files and *.out.* results.
    """
    from mdlstm_tk.runtime import Session
    from mdlstm_tk.runtime.io.formats import read_arrays
    from mdlstm_tk.runtime.io.npy import MAX_BYTES
    from mdlstm_tk.runtime.jobs import for_answers, plan_jobs

    limit = max_bytes or MAX_BYTES
    if skip_existing and force:
        raise InputError("--skip-existing keeps results that exist, --force replaces them; give one")
    if workers is not None and engine != "ray":
        raise InputError("--workers is for --engine ray; locally, set --threads")
    jobs, others = plan_jobs(files, output, form)
    several = len(files) > 1 or os.path.isdir(files[0])
    if engine == "ray" and STDIO in jobs[0]:
        raise InputError("--engine ray takes files, not - (stdin or stdout)")
    if not quiet and others:
        note(f"files of other kinds, left out: {others}")
    arrays = None
    if several or engine == "ray":
        grids = _first_grids(jobs, limit)
    else:  # read once, and its error is the command's own
        arrays = read_arrays(jobs[0].source, limit)
        grids = [_grid(next(iter(arrays.values())).shape)]
    path = find_model(model, grids)
    session = Session(path, device, threads=threads, timeout=timeout, max_bytes=limit)
    if not quiet:
        note(f"{path} on {session.device} ({session.provider})")
        if session.reason:
            note(f"not on CUDA: {session.reason}")
    if form is None:
        jobs = for_answers(jobs, session.metadata.kind, output)
    planned = len(jobs)
    jobs = _free(jobs, skip_existing, force)
    skipped = planned - len(jobs)
    if not jobs:
        if not quiet:
            note(f"nothing to do: all {skipped} results exist")
        return
    if arrays is not None:
        _one(jobs[0], arrays, session, batch_size, quiet)
        return
    outcomes: Iterator[Outcome]
    if engine == "ray":
        from mdlstm_tk.runtime.ray_engine import infer_with_ray

        kind = "cpu" if session.device == "cpu" else "cuda"
        session.close()  # each worker has its own
        outcomes = infer_with_ray(
            path, jobs, batch_size, limit, device=kind, threads=threads, timeout=timeout, workers=workers
        )
    else:
        from mdlstm_tk.runtime.batching import infer_files

        outcomes = infer_files(session, jobs, batch_size, limit)
    _report(outcomes, len(jobs), skipped, quiet)
    if not quiet:
        _show_next(jobs[-1])


def _one(job: Job, arrays: Arrays, session: Session, batch_size: int | None, quiet: bool) -> None:
    """Run one file and show what came of it."""
    from mdlstm_tk.runtime.batching import run_batches, write_results

    results = dict(run_batches(session, arrays.items(), batch_size))
    text = write_results(job, {name: results[name] for name in arrays}, session.metadata)
    if text:
        sys.stdout.write(text)
    if quiet or text:
        return
    for name, x in arrays.items():
        y = results[name]
        assert not isinstance(y, InputError)  # write_results has raised it
        if job.target != STDIO:
            shown = job.source if name is None else f"{name!a} in {job.source}"
            note(f"{shown} {x.shape} → {job.target} {y.shape}")
        if err().is_terminal and x.ndim == y.ndim == 2:
            from mdlstm_tk.viz.terminal_heatmap import show_grids

            show_grids(err(), {"input": x, "prediction": y})
    if job.target != STDIO:
        _show_next(job)


def _report(outcomes: Iterator[Outcome], total: int, skipped: int, quiet: bool) -> None:
    """Follow the outcomes to the end: a bar on a terminal, a line for each failure, then the counts.

    Raises:
        MDLSTMError: there were failures, or the work broke off.
    """
    done = failed = 0
    start = time.perf_counter()

    def rate() -> str:
        return f"{(done + failed) / max(time.perf_counter() - start, 1e-9):.3g} files/s"

    def counts() -> str:
        return f"{done} done, {skipped} skipped, {failed} failed, {rate()}"

    bar = progress(total) if err().is_terminal and not quiet else nullcontext(lambda step, text: None)
    try:
        with bar as report:
            for outcome in outcomes:
                if outcome.error is None:
                    done += 1
                    for line in outcome.text.splitlines():
                        sys.stdout.write(f"{outcome.job.source}\t{line}\n")
                else:
                    failed += 1
                    note(f"failed: {outcome.error}")
                report(done + failed, rate())
    except (MDLSTMError, KeyboardInterrupt):
        if not quiet:
            note(f"stopped: {counts()}, {total - done - failed} to do; go on with --skip-existing")
        raise
    if not quiet:
        note(counts())
    if failed:
        raise MDLSTMError(f"{failed} of {total} files failed; they are named above")


def _free(jobs: Sequence[Job], skip_existing: bool, force: bool) -> list[Job]:
    """The jobs without those whose result is there already.

    Raises:
        InputError: a result is in the way and may be neither kept nor replaced.
    """
    from mdlstm_tk.runtime.io.files import ensure_writable

    free = []
    for job in jobs:
        if job.target != STDIO:
            if skip_existing and os.path.isfile(job.target):
                continue
            ensure_writable(Path(job.target), force)
        free.append(job)
    return free


def _first_grids(jobs: Sequence[Job], max_bytes: int) -> list[tuple[int, ...]]:
    """The grids of the first files, as far as they can be read: by them a model is chosen among several."""
    from mdlstm_tk.runtime.io.formats import read_arrays

    grids = []
    for job in jobs[:LOOKED_AT]:
        with suppress(InputError):
            grids.append(_grid(next(iter(read_arrays(job.source, max_bytes).values())).shape))
    return grids


def _grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) < 4 else shape[1:3]


def _show_next(job: Job) -> None:
    if job.form == "npy":
        program = f"import numpy; print(numpy.load({job.target!r}).round(2))"
        plain = not set(job.target) & set("'\"\\$`!")
        next_command(f'python -c "{program}"' if plain else f"python -c {quoted(program)}")
