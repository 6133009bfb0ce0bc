"""`mdlstm infer`: run an exported model on files with NumPy and ONNX Runtime, never torch or onnx."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
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
    BatchSize,
    Device,
    EngineName,
    ForceFile,
    Isolated,
    Json,
    Level,
    MaxBytes,
    ModelFile,
    Output,
    OutputFormat,
    Probabilities,
    Resume,
    SkipExisting,
    Stream,
    Threads,
    Tile,
    Timeout,
    Top,
    Trusted,
    Workers,
    complete_files,
)
from mdlstm_tk.errors import InputError, MDLSTMError

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Inference, Result
    from mdlstm_tk.runtime.answers import Answer, AnswerDocument
    from mdlstm_tk.runtime.jobs import Job

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
INPUTS = (".npy", ".npz", ".csv", *IMAGES, ".zarr")
STREAM_OPTIONS = ("output", "model", "device", "timeout", "max_bytes", "isolated", "trusted", "force")


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
    model: ModelFile = None,
    output: Output = None,
    output_format: OutputFormat = None,
    probabilities: Probabilities = False,
    top: Top = None,
    skip_existing: SkipExisting = False,
    force: ForceFile = False,
    json: Json = False,
    device: Device = "auto",
    threads: Threads = 1,
    batch_size: BatchSize = None,
    engine: EngineName = "local",
    workers: Workers = None,
    tile: Tile = None,
    level: Level = None,
    resume: Resume = False,
    stream: Stream = False,
    max_bytes: MaxBytes = None,
    timeout: Timeout = None,
    isolated: Isolated = False,
    trusted: Trusted = False,
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

    A model file cannot read or write other files. It may take any time and memory; --isolated limits both.
    """
    options = {name: value for name, value in locals().items() if name not in ("files", "json", "stream")}
    if json and output == "-":
        raise InputError("--json prints on stdout, where -o - writes the result; give one of them")
    if max_bytes is not None:
        _allow_pixels(max_bytes)
    if stream:
        _stream(files, options | {"json": json})
        return
    from mdlstm_tk.runtime.inference import infer_paths
    from mdlstm_tk.runtime.jobs import is_single_file

    is_single = is_single_file(files)
    tiles = TileProgress(is_shown=is_single)
    run = infer_paths(files, **options, report=tiles)
    _print_plan(run, model)
    records: list[dict[str, Any]] = []
    try:
        if run.jobs:
            answers = _Answers(run, options, is_named=not is_single, is_shown=not json)
            _follow(run, answers, records, is_single)
    except (MDLSTMError, KeyboardInterrupt):
        if resume and run.jobs:
            note("what was done is kept beside the result; the same command with --resume goes on")
        raise
    finally:
        tiles.close()
        if json:
            print_json(_summary(run, records))
    if run.table and run.jobs:
        note(f"wrote {run.table}")
    elif run.jobs:
        _print_next(run.jobs[-1])


def _allow_pixels(max_bytes: int) -> None:
    """Let Pillow decode what --max-bytes allows; its own limit is that of this process."""
    with suppress(ImportError):
        from PIL import Image

        from mdlstm_tk.runtime.preprocessing import PIXEL_BYTES

        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_bytes // PIXEL_BYTES)


def _stream(files: list[str], options: dict[str, Any]) -> None:
    """Read rows from stdin, and write those of the result to stdout or a file."""
    from mdlstm_tk.runtime.inference import stream_paths

    if files != ["-"]:
        raise InputError(f"--stream reads rows from stdin, which is -, got {' '.join(files)}")
    parameters = inspect.signature(infer).parameters
    for name, value in options.items():
        if name not in STREAM_OPTIONS and value != parameters[name].default:
            raise InputError(f"--stream writes rows as they come, and takes no {name}=...; leave it out")
    taken = {name: options[name] for name in STREAM_OPTIONS if name != "output"}
    read, written = stream_paths(output=options["output"] or "-", **taken)
    note(f"{read} rows → {written} rows")


def _print_plan(run: Inference, model: str | None) -> None:
    from mdlstm_tk.runtime.model_discovery import newer_run_without_export

    session = run.session
    if run.left_out:
        note(f"files of other types, left out: {run.left_out}")
    if model is None and (newer := newer_run_without_export(run.model)):
        warn(
            f"the model is of an older run, because the newest, {newer}, has no export; "
            f"make one with: mdlstm export {shell_quoted(newer)}"
        )
    isolated = ", isolated" if session.isolated else ""
    note(f"{run.model} on {session.device} ({session.provider}){isolated}")
    if session.reason:
        note(f"not on CUDA: {session.reason}")
    if not run.jobs:
        note(f"nothing to do: all {run.skipped} results exist")


class _Answers:
    """Prints labels and texts on stdout, unless they go to files.

    They come in the order of the jobs, each as soon as those before it are there.
    """

    def __init__(self, run: Inference, options: dict[str, Any], is_named: bool, is_shown: bool) -> None:
        from mdlstm_tk.runtime.jobs import ANSWER_KINDS, ResultOptions, answer_format

        self._jobs, self._count = run.jobs, 0
        self._answers: dict[Job, Sequence[Answer]] = {}
        self.document: AnswerDocument | None = None
        metadata, job = run.session.metadata, run.jobs[0]
        text_format = answer_format(job.format)
        is_printed = is_shown and run.table is None and job.target == "-"
        if is_printed and text_format and metadata.kind in ANSWER_KINDS:
            from mdlstm_tk.runtime.answers import AnswerDocument

            chosen = ResultOptions(options["probabilities"], options["top"])
            self.document = AnswerDocument(text_format, metadata, chosen, is_named=is_named)
            sys.stdout.write(self.document.begin())

    def add(self, result: Result) -> None:
        """Note the answers for one file, and print those whose turn it is."""
        self._answers[result.job] = result.answers
        jobs = self._jobs
        while self.document and self._count < len(jobs) and jobs[self._count] in self._answers:
            job = jobs[self._count]
            sys.stdout.write(self.document.add(job.source, self._answers[job]))
            self._count += 1

    def end(self) -> None:
        """Print what comes after the last answer."""
        if self.document:
            sys.stdout.write(self.document.end())


def _follow(run: Inference, answers: _Answers, records: list[dict[str, Any]], is_single: bool) -> None:
    """Follow the results to the end: a bar on a terminal, a line for each failure, then the counts.

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

    try:
        with nullcontext(_show_nothing) if is_single else progress(total) as show:
            for result in run.results:
                records.append(_record(run, result))
                answers.add(result)
                if result.error is None:
                    done += 1
                    _note_result(run, result, is_single)
                else:
                    failed += 1
                    error(result.error, label="failed")
                if on_terminal():
                    show(done + failed, f"{rate():.3g} files/s", (total - done - failed) / rate())
    except (MDLSTMError, KeyboardInterrupt):
        advice = "nothing was written" if run.table else "continue with --skip-existing"
        if not is_single:
            note(f"stopped: {counts()}, {total - done - failed} to do; {advice}")
        raise
    answers.end()
    if not is_single:
        note(counts())
    if failed:
        raise MDLSTMError(f"{failed} of {total} files failed; see the lines above")


def _show_nothing(step: int, text: str, seconds_left: float | None = None) -> None:
    """The progress of a single file is that of its tiles, if it has any."""


def _note_result(run: Inference, result: Result, is_single: bool) -> None:
    """Say where a result went; of a single file also the shapes and, on a terminal, a heat map."""
    job = result.job
    if result.left_out:
        note(f"{job.source}: {', '.join(result.left_out)} was left out, as it holds targets")
    if not is_single:
        detail(f"{job.source} → {run.table or job.target}")
    elif job.target != "-" and (result.answers or result.inputs is None):
        note(f"{job.source} → {job.target}")
    elif not result.answers:
        is_mask = run.session.metadata.kind == "segment" and job.format not in ("npy", "npz")
        for name, y in (result.outputs or {}).items():
            x = (result.inputs or {}).get(name)
            label = job.source if name is None else f"'{name}' in {job.source}"
            if job.target != "-":
                shape_of_x, shape_of_y = (
                    "" if x is None else f" {x.shape}",
                    "" if is_mask else f" {y.shape}",
                )
                note(f"{label}{shape_of_x} → {job.target}{shape_of_y}")
            if on_terminal() and x is not None and x.ndim == y.ndim == 2:
                from mdlstm_tk.report.terminal_heatmap import show_grids

                show_grids(err(), {"input": x, "prediction": y})


def _record(run: Inference, result: Result) -> dict[str, Any]:
    """What --json prints of one file."""
    record: dict[str, Any] = {"source": result.job.source, "error": result.error}
    if result.error is None:
        target = run.table or result.job.target
        record["target"] = None if target == "-" else str(target)
        record["answers"] = [answer.as_dict(run.session.metadata.kind) for answer in result.answers]
    return record


def _summary(run: Inference, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json prints."""
    failed = sum(record["error"] is not None for record in records)
    return {
        "model": str(run.model),
        "device": run.session.device,
        "provider": run.session.provider,
        "isolated": run.session.isolated,
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
