"""`mdlstm infer`: run an exported model on files with NumPy and ONNX Runtime, never torch or onnx."""

from __future__ import annotations

import inspect
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli import console, options
from mdlstm_tk.cli.console import note
from mdlstm_tk.errors import InputError, MDLSTMError

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Answer, Inference, Result
    from mdlstm_tk.runtime.jobs import Job

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
INPUTS = (".npy", ".npz", ".csv", *IMAGES, ".xml", ".zarr")
STREAM_OPTIONS = ("output", "model", "device", "timeout", "max_bytes", "isolated", "trusted", "force")


def infer(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files, and folders of files, of the types npy, npz, csv, png, jpg, tif, bmp, gif, webp, "
            "pgm, ppm, pages in ALTO or PAGE xml, for tiled models npy, tif, zarr; or - for one file of "
            "any of these types on stdin.",
            autocompletion=options.complete_files(*INPUTS),
            show_default=False,
        ),
    ],
    model: options.ModelFile = None,
    output: options.Output = None,
    output_format: options.OutputFormat = None,
    probabilities: options.Probabilities = False,
    top: options.Top = None,
    beam: options.Beam = None,
    lm: options.LanguageModel = None,
    skip_existing: options.SkipExisting = False,
    force: options.ForceFile = False,
    json: options.Json = False,
    device: options.Device = "auto",
    threads: options.Threads = 1,
    batch_size: options.BatchSize = None,
    engine: options.EngineName = "local",
    workers: options.Workers = None,
    tile: options.Tile = None,
    level: options.Level = None,
    resume: options.Resume = False,
    stream: options.Stream = False,
    max_bytes: options.MaxBytes = None,
    timeout: options.Timeout = None,
    isolated: options.Isolated = False,
    trusted: options.Trusted = False,
) -> None:
    """Run an exported model on arrays and images.

    Arrays have the shape (H, W), (H, W, C) or (N, H, W, C) and are used as they are. Images are prepared as
    in training: turned upright, converted to the colours that the model takes, and scaled to [0, 1].

    The result of matrix.npy is matrix.out.npy, beside it. The labels of a classifier and the texts of a
    recogniser are printed, or collected in one table with -o labels.csv; so are the nats and the
    bits per dimension of a density model. The masks of a segmenter are
    written as PNG with the values and the palette of the masks that it was trained on.

    A recogniser reads the lines of pages, images with ALTO or PAGE XML beside them: -o read/ writes the XML
    again with texts and confidences.

    Files of equal shape run together. A file that cannot be used is reported, the others go on, and the
    exit code is 1. Folders are searched recursively, without hidden files and earlier results (*.out.*).

    A tiled model (.tiles) reads npy, tif and zarr by region, so that they may be larger than the memory,
    and writes npy, zarr, and masks as tif.

    A model file cannot read or write other files. It may take any time and memory; --isolated limits both.
    """
    given = {name: value for name, value in locals().items() if name not in ("files", "json", "stream")}
    if json and output == "-":
        raise InputError("--json prints on stdout, where -o - writes the result; give one of them")
    if max_bytes is not None:
        with suppress(ImportError):  # the limit of Pillow is that of this process
            from PIL import Image

            from mdlstm_tk.runtime.preprocessing import PIXEL_BYTES

            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_bytes // PIXEL_BYTES)
    if stream:
        _stream(files, given | {"json": json})
        return
    from mdlstm_tk.runtime.inference import infer_paths
    from mdlstm_tk.runtime.jobs import is_single_file

    is_single = is_single_file(files)
    tiles = console.TileProgress(is_shown=is_single)
    run = infer_paths(files, **given, report=tiles)
    session = run.session
    if run.left_out:
        note(f"files of other types, left out: {run.left_out}")
    if model is None:
        from mdlstm_tk.runtime.model_discovery import newer_run_without_export

        if newer := newer_run_without_export(run.model):
            console.warn(
                f"the model is of an older run, because the newest, {newer}, has no export; "
                f"make one with: mdlstm export {shell_quoted(newer)}"
            )
    note(f"{run.model} on {session.device} ({session.provider}){', isolated' if session.isolated else ''}")
    if session.reason:
        note(f"not on CUDA: {session.reason}")
    if not run.jobs:
        note(f"nothing to do: all {run.skipped} results exist")
    records: list[dict[str, Any]] = []
    try:
        _follow(run, records, given, is_single, json)
    except (MDLSTMError, KeyboardInterrupt):
        if resume and run.jobs:
            note("what was done is kept beside the result; the same command with --resume goes on")
        raise
    finally:
        tiles.close()
        if json:
            failed = sum(record["error"] is not None for record in records)
            facts = {name: getattr(run.session, name) for name in ("device", "provider", "isolated")}
            counts = {"done": len(records) - failed, "failed": failed, "skipped": run.skipped}
            console.print_json({"model": str(run.model), **facts, **counts, "files": records})
    if run.table and run.jobs:
        note(f"wrote {run.table}")
    elif run.jobs and (job := run.jobs[-1]).format == "npy" and job.target != "-":
        program = f"import numpy; print(numpy.load({job.target!r}).round(2))"
        plain = not set(job.target) & set("'\"\\$`!")
        console.next_command(f'python -c "{program}"' if plain else f"python -c {shell_quoted(program)}")


def _stream(files: list[str], given: dict[str, Any]) -> None:
    """Read rows from stdin, and write those of the result to stdout or a file."""
    from mdlstm_tk.runtime.inference import stream_paths

    if files != ["-"]:
        raise InputError(f"--stream reads rows from stdin, which is -, got {' '.join(files)}")
    parameters = inspect.signature(infer).parameters
    for name, value in given.items():
        if name not in STREAM_OPTIONS and value != parameters[name].default:
            raise InputError(f"--stream writes rows as they come, and takes no {name}=...; leave it out")
    taken = {name: given[name] for name in STREAM_OPTIONS if name != "output"}
    read, written = stream_paths(output=given["output"] or "-", **taken)
    note(f"{read} rows → {written} rows")


def _follow(
    run: Inference, records: list[dict[str, Any]], given: dict[str, Any], is_single: bool, is_json: bool
) -> None:
    """Follow the results to the end: a bar on a terminal, a line for each failure, then the counts.

    Labels and texts that go to no file are printed on stdout, in the order of the jobs, each as soon as
    those before it are there. `records` gets what --json prints of each file.
    """
    if not run.jobs:
        return
    from mdlstm_tk.runtime.jobs import ANSWER_FORMATS, ANSWER_KINDS, ResultOptions

    metadata, job = run.session.metadata, run.jobs[0]
    is_printed = not is_json and run.table is None and job.target == "-"
    document = None
    if is_printed and job.format in ANSWER_FORMATS and metadata.kind in ANSWER_KINDS:
        from mdlstm_tk.runtime.answers import AnswerDocument

        chosen = ResultOptions(given["probabilities"], given["top"])
        document = AnswerDocument(job.format, metadata, chosen, is_named=not is_single)
        sys.stdout.write(document.begin())
    waiting: deque[Job] = deque(run.jobs)
    answers: dict[Job, Sequence[Answer]] = {}
    total, done, failed, start = len(run.jobs), 0, 0, time.perf_counter()

    def rate() -> float:
        return (done + failed) / max(time.perf_counter() - start, 1e-9)

    def note_counts(left: str = "") -> None:
        if not is_single:
            counts = f"{done} done, {run.skipped} skipped, {failed} failed, {rate():.3g} files/s"
            note(f"stopped: {counts}, {left}" if left else counts)

    try:
        with nullcontext() if is_single else console.progress(total) as show:
            for result in run.results:
                answers[result.job] = result.answers
                while document and waiting and waiting[0] in answers:
                    job = waiting.popleft()
                    sys.stdout.write(document.add(job.source, answers.pop(job)))
                records.append({"source": result.job.source, "error": result.error})
                if result.error is None:
                    done += 1
                    target = run.table or result.job.target
                    records[-1]["target"] = None if target == "-" else str(target)
                    records[-1]["answers"] = [answer.as_dict(metadata.kind) for answer in result.answers]
                    _note_result(run, result, is_single)
                else:
                    failed += 1
                    console.error(result.error, label="failed")
                if show and console.on_terminal():
                    show(done + failed, f"{rate():.3g} files/s", (total - done - failed) / rate())
    except (MDLSTMError, KeyboardInterrupt):
        advice = "nothing was written" if run.table else "continue with --skip-existing"
        note_counts(f"{total - done - failed} to do; {advice}")
        raise
    if document:
        sys.stdout.write(document.end())
    note_counts()
    if failed:
        raise MDLSTMError(f"{failed} of {total} files failed; see the lines above")


def _note_result(run: Inference, result: Result, is_single: bool) -> None:
    """Say where a result went; of a single file also the shapes and, on a terminal, a heat map."""
    job = result.job
    if result.left_out:
        note(f"{job.source}: {', '.join(result.left_out)} was left out, as it holds targets")
    if not is_single:
        console.detail(f"{job.source} → {run.table or job.target}")
    elif job.target != "-" and (result.answers or result.inputs is None):
        note(f"{job.source} → {job.target}")
    elif not result.answers:
        is_mask = run.session.metadata.kind == "segment" and job.format not in ("npy", "npz")
        for name, y in (result.outputs or {}).items():
            x = (result.inputs or {}).get(name)
            label = job.source if name is None else f"'{name}' in {job.source}"
            if job.target != "-":
                of_x, of_y = "" if x is None else f" {x.shape}", "" if is_mask else f" {y.shape}"
                note(f"{label}{of_x} → {job.target}{of_y}")
            if console.on_terminal() and x is not None and x.ndim == y.ndim == 2:
                from mdlstm_tk.report.terminal_heatmap import show_grids

                show_grids(console.err(), {"input": x, "prediction": y})
