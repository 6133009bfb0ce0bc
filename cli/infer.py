"""`mdlstm infer`: NumPy and ONNX Runtime; torch and onnx are never imported."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mdlstm_tk.cli.console import err, next_command, note, progress, quoted
from mdlstm_tk.errors import MDLSTMError

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Inference, Outcome
    from mdlstm_tk.runtime.jobs import Job


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
    output_format: Annotated[
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
    from mdlstm_tk.runtime import infer_paths
    from mdlstm_tk.runtime.io.npy import MAX_BYTES

    run = infer_paths(
        files,
        model,
        output,
        output_format=output_format,
        device=device,
        threads=threads,
        batch_size=batch_size,
        engine=engine,
        workers=workers,
        max_bytes=max_bytes or MAX_BYTES,
        timeout=timeout,
        skip_existing=skip_existing,
        force=force,
    )
    if not quiet:
        _print_plan(run)
    if not run.jobs:
        return
    if run.single:
        _print_single(next(run.outcomes), quiet)
    else:
        _follow(run, quiet)
    if not quiet:
        _print_next(run.jobs[-1])


def _print_plan(run: Inference) -> None:
    if run.unsupported:
        note(f"files of other types, left out: {run.unsupported}")
    if run.newer_run:
        note(f"{run.newer_run} is newer and has no export; make one with: mdlstm export")
    note(f"{run.model} on {run.device} ({run.provider})")
    if run.reason:
        note(f"not on CUDA: {run.reason}")
    if not run.jobs:
        note(f"nothing to do: all {run.skipped} results exist")


def _print_single(outcome: Outcome, quiet: bool) -> None:
    """Print the result of a single file: its text, or its shapes and, on a terminal, a heat map."""
    job = outcome.job
    if outcome.text:
        sys.stdout.write(outcome.text)
    if quiet or outcome.text or outcome.inputs is None or outcome.outputs is None:
        return
    for name, x in outcome.inputs.items():
        y = outcome.outputs[name]
        if job.target != "-":
            label = job.source if name is None else f"{name!a} in {job.source}"
            note(f"{label} {x.shape} → {job.target} {y.shape}")
        if err().is_terminal and x.ndim == y.ndim == 2:
            from mdlstm_tk.viz.terminal_heatmap import show_grids

            show_grids(err(), {"input": x, "prediction": y})


def _follow(run: Inference, quiet: bool) -> None:
    """Follow the outcomes to the end: a bar on a terminal, a line for each failure, then the counts.

    Raises:
        MDLSTMError: there were failures, or the work broke off.
    """
    total = len(run.jobs)
    done = failed = 0
    start = time.perf_counter()

    def rate() -> str:
        return f"{(done + failed) / max(time.perf_counter() - start, 1e-9):.3g} files/s"

    def counts() -> str:
        return f"{done} done, {run.skipped} skipped, {failed} failed, {rate()}"

    bar = progress(total) if err().is_terminal and not quiet else nullcontext(lambda step, text: None)
    try:
        with bar as report:
            for outcome in run.outcomes:
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


def _print_next(job: Job) -> None:
    if job.format == "npy" and job.target != "-":
        program = f"import numpy; print(numpy.load({job.target!r}).round(2))"
        plain = not set(job.target) & set("'\"\\$`!")
        next_command(f'python -c "{program}"' if plain else f"python -c {quoted(program)}")
