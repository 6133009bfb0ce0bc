"""`infer_paths`: run an exported model on files and folders. `mdlstm infer` calls it and prints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.answers import (
    ANSWER_KINDS,
    CLASS_KINDS,
    AnswerDocument,
    ResultOptions,
    answer_format,
)
from mdlstm_tk.runtime.batching import LocalReader, Outcome, Reader, infer_files, infer_single
from mdlstm_tk.runtime.io.arrays import STDIO, open_output
from mdlstm_tk.runtime.io.files import ensure_writable
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.io.readers import Arrays, InputFile
from mdlstm_tk.runtime.io.writers import Format
from mdlstm_tk.runtime.isolation.rule import choose_isolation
from mdlstm_tk.runtime.jobs import (
    Job,
    LeftOut,
    document_of,
    is_single_file,
    jobs_for_model,
    plan_jobs,
    remaining_jobs,
)
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.model_discovery import choose_model, find_models, newer_run_without_export
from mdlstm_tk.runtime.samples import check_takes_grids
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.archive import is_archive
from mdlstm_tk.runtime.tiles.files import TileOptions
from mdlstm_tk.runtime.tiles.local import Report
from mdlstm_tk.runtime.tiles.session import TILE

Engine = Literal["local", "ray"]
Grid = tuple[int, ...]

FILES_READ_FOR_GRIDS = 32
"""How many files are read to choose among several models by the grids of their arrays."""


@dataclass(frozen=True)
class Inference:
    """An inference that has been planned. The work is done while `outcomes` is iterated, once.

    Attributes:
        outcomes: one outcome per job, in an order that depends on the jobs alone.
        jobs: the files to run, without those that are skipped.
        skipped: number of files left out because their result exists.
        left_out: how many files below input folders are not run.
        single: whether the input is one file, run in this process. Its outcome then holds the arrays, and
            its errors are raised instead of being returned as an outcome.
        document: renders the answers of all files for standard output, which the caller prints; None if
            they are written to files or are not labels or texts.
        collected: the one file that holds the answers for several inputs, or None.
        model: path of the model.
        kind: kind of the model's task, or None.
        newer_run: the newest run folder, if the model was found in an older run because this one has no
            export yet; else None.
        device: "cpu" or "cuda:N", where the model runs.
        provider: ONNX Runtime's name for the device.
        reason: why "auto" did not take the CUDA that this ONNX Runtime supports; else None.
        isolated: whether the model runs, and the inputs are read, in processes with limits.
        isolation_problem: why this system cannot isolate, although the call asks for it; else None.
    """

    outcomes: Iterator[Outcome]
    jobs: list[Job]
    skipped: int
    left_out: LeftOut
    single: bool
    document: AnswerDocument | None
    collected: Path | None
    model: Path
    kind: str | None
    newer_run: Path | None
    device: str
    provider: str
    reason: str | None
    isolated: bool
    isolation_problem: str | None


def infer_paths(
    inputs: Sequence[str | Path],
    model: str | Path | None = None,
    output: str | Path | None = None,
    *,
    output_format: Format | None = None,
    probabilities: bool = False,
    top: int | None = None,
    device: str = "auto",
    threads: int = 1,
    batch_size: int | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    max_bytes: int | None = None,
    timeout: float | None = None,
    isolated: bool | None = None,
    skip_existing: bool = False,
    force: bool = False,
    tile: int | None = None,
    level: int | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> Inference:
    """Plan the inference of a model on files and folders, and load the model.

        >>> run = infer_paths(["scans/"], "model-8x8.onnx", "results/")
        >>> for outcome in run.outcomes:
        ...     print(outcome.job.target, outcome.error or "ok")

    Args:
        inputs: files and folders, or "-" alone for standard input, which may hold any of the file types.
            Folders are searched recursively; hidden files and earlier results (`*.out.*`) are ignored.
        model: an exported `.onnx` file or a folder of them. None: see `find_model`.
        output: a file, a folder, or "-" for standard output. None: beside the inputs; labels and texts go
            to standard output. One file for several inputs is a table (.csv), a list (.json) or lines
            (.txt) of labels or texts.
        output_format: file format of the results. None: the suffix of `output` if that is a file, else
            txt for the labels of a classifier and the texts of a recogniser, png for the masks of a
            segmenter, npz for `.npz` inputs and models with several outputs, and npy for all others.
            txt, csv and json hold labels, texts and masks; npy and npz hold the network's outputs.
        probabilities: write the probability of every class: by name in csv and json, as arrays (softmax
            over the classes) in npy and npz. The default format is then npy or npz.
        top: of a classifier, also name the `top` most likely classes and their probabilities.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run, as for `Session`. 0: one per core.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.
        engine: "local", or "ray" to distribute the files with Ray on $RAY_ADDRESS.
        workers: number of processes of the Ray engine. None: one per CPU.
        max_bytes: maximum size in bytes of a file, before and after decompression. None: 1 GiB.
        timeout: maximum duration of one run in seconds. None: no limit, or 120 s in isolation.
        isolated: read the inputs and run the model in child processes with limits; see `Session`. None: do
            so if `max_bytes` or `timeout` is given or the model was not exported on this machine, and the
            system can.
        skip_existing: leave out files whose result exists.
        force: replace results that exist, and start over where an interrupted tiled run left something.
        tile: of a tiled model (`.tiles`), extents of a tile along each axis. None: 512.
        level: of a tiled model, which level of a TIFF with a pyramid is read. None: the largest, 0.
        resume: of a tiled model, go on with an interrupted run, and keep what an interruption leaves.
        report: of a tiled model, is called with the numbers of tiles that are done and of all.

    Returns:
        The plan. Iterating over its `outcomes` does the work and writes the results. A file that cannot be
        used gives an outcome with an error, unless the input is a single file: then its error is raised.

    Raises:
        InputError: an argument is invalid, there is nothing to run or no model, a result exists, or the
            single input file cannot be used.
        StoppedError: the model exceeds a limit while it is loaded.
        DeviceError: the device cannot be used.
        MissingExtraError: ONNX Runtime, Pillow or Ray is needed and not installed.
    """
    if skip_existing and force:
        raise InputError("--skip-existing keeps results that exist, --force replaces them; give only one")
    if workers is not None and engine != "ray":
        raise InputError("--workers needs --engine ray; for the local engine, set --threads")
    sources = [os.fspath(path) for path in inputs]
    target = None if output is None else os.fspath(output)
    collected: Path | None = None
    collected_format = document_of(sources, target)
    if target is not None and collected_format is not None:
        if skip_existing:
            raise InputError(f"-o {target} holds the results of all inputs; --skip-existing needs a folder")
        collected, target, output_format = Path(target), None, output_format or collected_format
    jobs, left_out = plan_jobs(sources, target, output_format)
    if engine == "ray" and STDIO in (jobs[0].source, jobs[0].target):
        raise InputError("--engine ray takes files, not - (stdin or stdout)")

    limit = MAX_BYTES if max_bytes is None else max_bytes
    limited = max_bytes is not None or timeout is not None
    is_tiled = tile is not None or level is not None or resume
    models = find_models(model, tiled=is_tiled)
    if is_archive(models[-1]):
        from mdlstm_tk.runtime.tiled_inference import infer_in_tiles  # it imports this module

        return infer_in_tiles(
            models[-1],
            jobs,
            left_out,
            TileOptions(TILE if tile is None else tile, level or 0, resume, report),
            ResultOptions(probabilities, top),
            target=target,
            output_format=output_format,
            collected=collected,
            single=is_single_file(sources),
            device=device,
            threads=threads,
            batch_size=batch_size,
            engine=engine,
            workers=workers,
            max_bytes=max_bytes,
            timeout=timeout,
            isolated=isolated,
            skip_existing=skip_existing,
            force=force,
            newer_run=None if model else newer_run_without_export(models[-1]),
        )
    if is_tiled:
        given = "--tile" if tile is not None else "--level" if level is not None else "--resume"
        raise InputError(
            f"{given} needs a tiled model, and {models[-1]} is none; make one with: "
            "mdlstm export RUN --form tiles, then name it: -m RUN/model.tiles"
        )
    isolated, problem = choose_isolation(models, limit, limited=limited, isolated=isolated)
    with ExitStack() as resources:
        reader: Reader = LocalReader(limit)
        if isolated:
            from mdlstm_tk.runtime.isolation.limits import Limits  # imported late: most models need none
            from mdlstm_tk.runtime.isolation.reader import IsolatedReader

            reader = resources.enter_context(IsolatedReader(Limits(limit, timeout)))
        single = is_single_file(sources) and engine == "local"
        file: InputFile | None = None
        grids: list[Grid] = []
        if len(models) > 1 and single:
            file = reader.read(jobs[0].source)
            grids = [_grid_of(file.arrays)]
        elif len(models) > 1:
            grids = _first_grids(jobs, reader)
        path = choose_model(models, grids)
        session = resources.enter_context(
            Session(path, device, threads=threads, timeout=timeout, max_bytes=limit, isolated=isolated)
        )
        check_takes_grids(session.metadata, path)
        if single and file is None:
            file = reader.read(jobs[0].source)

        arrays = None if file is None else file.arrays_for(session.metadata)
        options = ResultOptions(probabilities, top)
        check_options(session.metadata, options, path, collected)
        jobs = jobs_for_model(jobs, session.metadata, target, output_format, probabilities)
        if collected:
            ensure_writable(collected, force)
        remaining = remaining_jobs(jobs, skip_existing, force)
        skipped = len(jobs) - len(remaining)

        outcomes: Iterator[Outcome]
        if not remaining:
            outcomes = iter(())
        elif engine == "ray":
            from mdlstm_tk.runtime.ray import infer_with_ray

            outcomes = infer_with_ray(
                path,
                remaining,
                batch_size,
                options,
                max_bytes=limit,
                device="cpu" if session.device == "cpu" else "cuda",
                threads=threads,
                timeout=timeout,
                isolated=session.isolated,
                workers=workers,
            )
        elif arrays is not None:
            outcomes = infer_single(session, remaining[0], arrays, batch_size, options)
        else:
            outcomes = infer_files(session, remaining, batch_size, reader, options)
        if remaining and engine == "local":  # Ray's workers load the model themselves
            outcomes = closing_with(resources.pop_all(), outcomes)
    document = answer_document(jobs, session.metadata, options, single=single)
    if collected and document:
        outcomes, document = collect(outcomes, document, collected), None
    return Inference(
        outcomes=outcomes,
        jobs=remaining,
        skipped=skipped,
        left_out=left_out,
        single=single,
        document=document,
        collected=collected,
        model=path,
        kind=session.metadata.kind,
        newer_run=None if model else newer_run_without_export(path),
        device=session.device,
        provider=session.provider,
        reason=session.reason,
        isolated=session.isolated,
        isolation_problem=problem,
    )


def check_options(metadata: Metadata, options: ResultOptions, model: Path, collected: Path | None) -> None:
    """Check that a model has what the options ask for.

    Raises:
        InputError: names the option and the kind of model that it needs.
    """
    kind = f"{model} is of kind {metadata.kind}"
    if options.probabilities and metadata.kind not in CLASS_KINDS:
        raise InputError(f"--probabilities needs a model of kind {', '.join(CLASS_KINDS)}; {kind}")
    if options.top is not None and metadata.kind != "classify":
        raise InputError(f"--top needs a model of kind classify; {kind}")
    if options.top is not None and options.probabilities:
        raise InputError("--probabilities includes all classes, --top only some; give one of them")
    if collected and metadata.kind not in ANSWER_KINDS:
        raise InputError(
            f"-o {collected} is a file, expected a folder for the results of several inputs; one file "
            f"takes the labels or texts of a model of kind {' or '.join(ANSWER_KINDS)}, but {kind}"
        )


def answer_document(
    jobs: Sequence[Job], metadata: Metadata, options: ResultOptions, single: bool
) -> AnswerDocument | None:
    """The document of the answers that are not written file by file; None if there is none."""
    file_format = answer_format(jobs[0].format)
    if metadata.kind not in ANSWER_KINDS or jobs[0].target != STDIO or file_format is None:
        return None
    return AnswerDocument(file_format, metadata, options, named=not single)


def collect(outcomes: Iterator[Outcome], document: AnswerDocument, path: Path) -> Iterator[Outcome]:
    """Pass outcomes on, and write their answers to one file, which appears when all files are done."""
    with open_output(path) as file:
        file.write(document.begin().encode())
        for outcome in outcomes:
            file.write(document.add(outcome.job.source, outcome.answers).encode())
            yield outcome
        file.write(document.end().encode())


def closing_with(resources: ExitStack, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Pass outcomes on, and close the resources when there are no more."""
    with resources:
        yield from outcomes


def _first_grids(jobs: Sequence[Job], reader: Reader) -> list[Grid]:
    """The grids of the first files that can be read; a model is chosen by them where there are several."""
    grids = []
    for job in jobs[:FILES_READ_FOR_GRIDS]:
        with suppress(InputError):
            grids.append(_grid_of(reader.read(job.source).arrays))
    return grids


def _grid_of(arrays: Arrays) -> Grid:
    """(H, W) of the first array, taken as (H, W), (H, W, C) or (N, H, W, C)."""
    shape = next(iter(arrays.values())).shape
    return shape[:2] if len(shape) < 4 else shape[1:3]
