"""`mdlstm infer`: run an exported model on files with NumPy and ONNX Runtime, never torch or onnx."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import (
    TileProgress,
    detail,
    err,
    error,
    next_command,
    note,
    on_terminal,
    print_json,
    progress,
    warn,
)
from mdlstm_tk.cli.options import (
    OUTPUT,
    Device,
    Engine,
    Format,
    Json,
    Level,
    MaxBytes,
    Resume,
    Stream,
    Tile,
    Timeout,
    complete_files,
    complete_model_file,
)
from mdlstm_tk.errors import InputError, MDLSTMError

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Inference, Outcome
    from mdlstm_tk.runtime.jobs import Job

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
INPUTS = (".npy", ".npz", ".csv", *IMAGES, ".zarr")
EXECUTION = "Execution"


def infer(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files, and folders of files, of the types npy, npz, csv, png, jpg, tif, bmp, gif, webp, "
            "pgm, ppm, for tiled models npy, tif, zarr; or - for one file of any of these types on stdin.",
            autocompletion=complete_files(*INPUTS),
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH",
            help="Exported .onnx or .tiles file, or a folder of .onnx files.",
            autocompletion=complete_model_file,
            show_default="$MDLSTM_MODEL, the latest run's export, or the only .onnx here",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="File for the result of one input, folder for the results of several, or - for stdout. A "
            ".csv, .json or .txt file takes the labels or texts for several inputs.",
            show_default="beside the inputs; stdout for labels and texts",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="File format of the results: txt, csv and json hold labels, texts and masks, npy and npz "
            "the network's outputs; png holds masks, or values clipped to [0, 1] with 8 bits. "
            "The fields of txt are separated by tabs.",
            show_default="txt for labels and texts, png for masks, npz for .npz inputs, else npy",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Write the probability of every class, by name in csv and json, else as arrays.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Name the K most likely classes of a classifier with their probabilities.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave out inputs whose result exists; continues an interrupted call.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace results that exist.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
    device: Device = "auto",
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            help="CPU threads of one run, or of all tiles; 0: one per core.",
            rich_help_panel=EXECUTION,
        ),
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples per run, or tiles of a tiled model.",
            show_default="64, or fewer for grids above 64x64; 4 tiles",
            rich_help_panel=EXECUTION,
        ),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="Where files and tiles are run: in this process, or distributed with Ray on $RAY_ADDRESS.",
            rich_help_panel=EXECUTION,
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes of --engine ray.",
            show_default="one per CPU",
            rich_help_panel=EXECUTION,
        ),
    ] = None,
    tile: Tile = None,
    level: Level = None,
    resume: Resume = False,
    stream: Stream = False,
    max_bytes: MaxBytes = None,
    timeout: Timeout = None,
) -> None:
    """Run an exported model on arrays and images.

    Arrays have the shape (H, W), (H, W, C) or (N, H, W, C) and are used as they are. Images are prepared as
    in training: turned upright, converted to the colours that the model takes, and scaled to [0, 1].

    The result of matrix.npy is matrix.out.npy, beside it. The labels of a classifier and the texts of a
    recogniser are printed, or collected in one table with -o labels.csv; so are the nats and the
    bits per dimension of a density model. The masks of a segmenter are
    written as PNG with the values and the palette of the masks that it was trained on.

    Files of equal shape run together. A file that cannot be used is reported, the others go on, and the
    exit code is 1. Folders are searched recursively, without hidden files and earlier results (*.out.*).

    A tiled model (.tiles) reads npy, tif and zarr by region, so that they may be larger than the memory,
    and writes npy, zarr, and masks as tif.

    A model that was not exported on this machine runs in isolation, and so does every model with --timeout
    or --max-bytes: processes with limits on memory and time read the files and run the model.
    """
    if json and output == "-":
        raise InputError("--json prints on stdout, where -o - writes the result; give one of them")
    from mdlstm_tk.runtime import infer_paths

    if stream:
        _stream(files, model, output, device, timeout)
        return
    tiles = TileProgress()
    run = infer_paths(
        files,
        model,
        output,
        output_format=output_format,
        probabilities=probabilities,
        top=top,
        device=device,
        threads=threads,
        batch_size=batch_size,
        engine=engine,
        workers=workers,
        max_bytes=max_bytes,
        timeout=timeout,
        skip_existing=skip_existing,
        force=force,
        tile=tile,
        level=level,
        resume=resume,
        report=tiles,
    )
    tiles.is_shown = run.single
    _print_plan(run)
    records: list[dict[str, Any]] | None = [] if json else None
    try:
        if run.single and run.jobs:
            _print_single(run, next(run.outcomes), records)
        elif run.jobs:
            _follow(run, records)
    except (MDLSTMError, KeyboardInterrupt):
        if resume and run.jobs:
            note("what was done is kept beside the result; the same command with --resume goes on")
        raise
    finally:
        tiles.close()
        if records is not None:
            print_json(_summary(run, records))
    if run.collected and run.jobs:
        note(f"wrote {run.collected}")
    elif run.jobs:
        _print_next(run.jobs[-1])


def _stream(
    files: list[str], model: str | None, output: str | None, device: str, timeout: float | None
) -> None:
    """Read rows from stdin, and write those of the result to stdout or a file."""
    from mdlstm_tk.runtime.tiled_inference import stream_paths

    if files != ["-"]:
        raise InputError(f"--stream reads rows from stdin, which is -, got {' '.join(files)}")
    read, written = stream_paths(model, output or "-", device=device, timeout=timeout)
    note(f"{read} rows → {written} rows")


def _print_plan(run: Inference) -> None:
    if run.left_out.unsupported:
        note(f"files of other types, left out: {run.left_out.unsupported}")
    if run.left_out.outside:
        note(f"links to files outside the folder, left out: {run.left_out.outside}; copy the files to run")
    if run.newer_run:
        warn(
            f"the model is of an older run, because the newest, {run.newer_run}, has no export; "
            f"make one with: mdlstm export {shell_quoted(run.newer_run)}"
        )
    if run.isolation_problem:
        warn(f"{run.model} runs without limits that bind: {run.isolation_problem}")
    note(f"{run.model} on {run.device} ({run.provider}){', isolated' if run.isolated else ''}")
    if run.reason:
        note(f"not on CUDA: {run.reason}")
    if run.advice:
        warn(run.advice)
    if not run.jobs:
        note(f"nothing to do: all {run.skipped} results exist")


def _print_single(run: Inference, outcome: Outcome, records: list[dict[str, Any]] | None) -> None:
    """Print the result of a single file: its answers, or its shapes and, on a terminal, a heat map."""
    job = outcome.job
    if records is not None:
        records.append(_record(run, outcome))
    elif run.document:
        sys.stdout.write(run.document.render([(job.source, outcome.answers)]))
    if outcome.inputs is None and not outcome.answers and job.target != "-":
        note(f"{job.source} → {job.target}")
    if outcome.answers or outcome.inputs is None or outcome.outputs is None:
        return
    for name, x in outcome.inputs.items():
        y = outcome.outputs.get(name)
        if y is None:  # the model has several outputs
            continue
        if job.target != "-":
            label = job.source if name is None else f"{name!a} in {job.source}"
            is_mask = run.kind == "segment" and job.format not in ("npy", "npz")
            note(f"{label} {x.shape} → {job.target}{'' if is_mask else f' {y.shape}'}")
        if on_terminal() and x.ndim == y.ndim == 2:
            from mdlstm_tk.report.terminal_heatmap import show_grids

            show_grids(err(), {"input": x, "prediction": y})


def _follow(run: Inference, records: list[dict[str, Any]] | None) -> None:
    """Follow the outcomes to the end: a bar on a terminal, a line for each failure, then the counts.

    Raises:
        MDLSTMError: some files failed, or the work was interrupted.
    """
    total = len(run.jobs)
    done = failed = 0
    start = time.perf_counter()

    def rate() -> float:
        return (done + failed) / max(time.perf_counter() - start, 1e-9)

    def counts() -> str:
        return f"{done} done, {run.skipped} skipped, {failed} failed, {rate():.3g} files/s"

    document = run.document if records is None else None
    if document:
        sys.stdout.write(document.begin())
    try:
        with progress(total) as show:
            for outcome in run.outcomes:
                if records is not None:
                    records.append(_record(run, outcome))
                if outcome.error is None:
                    done += 1
                    detail(f"{outcome.job.source} → {run.collected or outcome.job.target}")
                    if document:
                        sys.stdout.write(document.add(outcome.job.source, outcome.answers))
                else:
                    failed += 1
                    error(outcome.error, label="failed")
                if on_terminal():
                    left = (total - done - failed) / rate()
                    show(done + failed, f"{rate():.3g} files/s", left)
    except (MDLSTMError, KeyboardInterrupt):
        advice = "nothing was written" if run.collected else "continue with --skip-existing"
        note(f"stopped: {counts()}, {total - done - failed} to do; {advice}")
        raise
    if document:
        sys.stdout.write(document.end())
    note(counts())
    if failed:
        raise MDLSTMError(f"{failed} of {total} files failed; see the lines above")


def _record(run: Inference, outcome: Outcome) -> dict[str, Any]:
    """What --json prints of one file."""
    record: dict[str, Any] = {"source": outcome.job.source, "error": outcome.error}
    if outcome.error is None:
        target = run.collected or outcome.job.target
        record["target"] = None if target == "-" else str(target)
        record["answers"] = [answer.as_dict(run.kind) for answer in outcome.answers]
    return record


def _summary(run: Inference, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json prints."""
    failed = sum(record["error"] is not None for record in records)
    return {
        "model": str(run.model),
        "device": run.device,
        "provider": run.provider,
        "isolated": run.isolated,
        "done": len(records) - failed,
        "failed": failed,
        "skipped": run.skipped,
        "files": records,
    }


def _print_next(job: Job) -> None:
    if job.format == "npy" and job.target != "-":
        program = f"import numpy; print(numpy.load({job.target!r}).round(2))"
        plain = not set(job.target) & set("'\"\\$`!")
        next_command(f'python -c "{program}"' if plain else f"python -c {shell_quoted(program)}")
