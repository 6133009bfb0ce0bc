"""Run an exported model on files: open the model, read, run, write. `mdlstm infer` calls it and prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlstm_tk._util.checks import checked
from mdlstm_tk.errors import TILED_EXPORT, Argument, InputError, Message, StoppedError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import LINES
from mdlstm_tk.kinds.options import fit_options
from mdlstm_tk.kinds.rooms import load
from mdlstm_tk.runtime.batching import Result, infer_files
from mdlstm_tk.runtime.choices import Engine
from mdlstm_tk.runtime.combinations import check_jobs
from mdlstm_tk.runtime.io import Format, is_tiled
from mdlstm_tk.runtime.io.files import ensure_writable
from mdlstm_tk.runtime.io.npy import STDIO, byte_limit, open_output
from mdlstm_tk.runtime.jobs import (
    InputPath,
    Job,
    ResultOptions,
    files_for,
    files_of_form,
    find_files,
    is_single_file,
    is_table,
    plan_jobs,
    remaining_jobs,
)
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.model_choice import Candidate, FileReader, jobs_by_model, read_candidates
from mdlstm_tk.runtime.model_discovery import find_models
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.staleness import note_if_stale

if TYPE_CHECKING:
    from mdlstm_tk.runtime.answers import AnswerDocument
    from mdlstm_tk.runtime.tiles.session import TiledSession


@dataclass(frozen=True)
class Inference:
    """A planned inference. The work is done while `results` is iterated, once.

    Attributes:
        model: path of the model.
        further_models: those of the same folder that run files whose grids it does not take.
        session: the model, loaded.
        jobs: the files to run, without skipped ones.
        skipped: number of files that are skipped because their result exists.
        left_out: number of files that are no inputs of this model, and belong to no other input: of other
            types, and images in the folder of pages.
        earlier_results: number of results of earlier inferences below input folders, which are left out.
        table: the one file for the answers to several inputs, or None.
        stale: one line for each of these models whose run has gone on since the export.
        document: renders the answers that no file takes, in the order of the jobs, or None.
        results: one result per job, in an order that depends on the jobs alone.
    """

    model: Path
    further_models: list[Path]
    session: Session | TiledSession
    jobs: list[Job]
    skipped: int
    left_out: int
    earlier_results: int
    table: Path | None
    stale: list[Message]
    document: AnswerDocument | None
    results: Iterator[Result]

    def record(self, result: Result) -> dict[str, Any]:
        """A result as JSON values: source, error and, where it succeeded, target and answers."""
        values: dict[str, Any] = {"source": result.job.source, "error": result.error}
        if result.error is None:
            target = self.table or result.job.target
            values["target"] = None if target == STDIO else str(target)
            values["answers"] = [answer.as_dict() for answer in result.answers]
        return values


@checked
def infer_paths(
    inputs: Sequence[str | Path],
    model: str | Path | None = None,
    output: str | Path | None = None,
    *,
    output_format: Format | None = None,
    probabilities: bool = False,
    device: str = "auto",
    threads: int = 1,
    batch_size: int | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    max_bytes: int | None = None,
    timeout: float | None = None,
    isolated: bool = False,
    trusted: bool = False,
    skip_existing: bool = False,
    force: bool = False,
    tile: int | None = None,
    level: int | None = None,
    resume: bool = False,
    report: Callable[[int, int], None] | None = None,
    json: bool = False,
    **of_kind: Any,
) -> Inference:
    """Load a model and plan its inference on files and folders.

        >>> run = infer_paths(["scans/"], "model-8x8.onnx", "results/")
        >>> for result in run.results:
        ...     print(result.job.target, result.error or "ok")

    Args:
        inputs: files and folders, or "-" alone for standard input, which may hold any of the file types.
            Folders are searched recursively, also those that links lead to, each of them once, but without
            hidden files and without earlier results, which are `*.out.*` and documents that a model has
            written; name such a file to read it. Some kinds read documents, as a recogniser does the lines
            of pages; files that belong to them are then no inputs of their own. Those of a document on
            standard input lie in the current folder.
        model: an exported `.onnx` or `.tiles` file, or a folder of models of one task, of which each file
            gets one that takes its grid. None: see `find_models`.
        output: a file, a folder, or "-" for standard output, which of several inputs takes answers alone.
            None: beside the inputs; answers go to standard output. One file for several inputs is a table
            (.csv), a list (.json) or lines (.txt, .tsv) of answers, in the order of the inputs. Documents
            are written to a folder under the same name.
        output_format: file format of the results. None: see `plan_jobs`. txt, tsv, csv and json hold
            answers, csv and json masks, too; npy and npz, where they are named, the network's outputs.
        probabilities: of a classifier or segmenter, write the probability of every class: of a classifier
            by name in csv and json, else as arrays (softmax over the classes), in json, npy and npz. The
            default format is then npy or npz. Of kinds with other answers, their confidence.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run, as for `Session`. 0: one per core.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.
        engine: "local", or "ray" to distribute the files with Ray on $RAY_ADDRESS.
        workers: number of processes of the Ray engine. None: one per CPU. On CUDA at most one per GPU.
        max_bytes: maximum size in bytes of a file, before and after decompression, for the XML of a
            page an eighth of it, or 128 MiB if that is more; of a tiled model, of the resident memory.
            None: 1 GiB.
        timeout: maximum duration of one run in seconds. None: no limit, or 120 s in isolation.
        isolated: run the model in a child process with limits; see `Session`.
        trusted: allow operators outside the list of the model check; see `Session`.
        skip_existing: leave out files whose result exists.
        force: replace results that exist, and start over where an interrupted tiled run left something.
        tile: of a tiled model (`.tiles`), extents of a tile along each axis. None: 512.
        level: of a tiled model, which level of a TIFF with a pyramid is read. None: the largest, 0.
        resume: of a tiled model, go on with an interrupted run, and keep what an interruption leaves.
        report: of a tiled model, is called with the numbers of tiles that are done and of all.
        json: the caller prints a JSON document on standard output, where nothing else may go.
        **of_kind: options that kinds declare, see `mdlstm_tk.kinds.options`. Of a classifier `top`: name
            the `top` most likely classes, with their probabilities.

    Returns:
        The plan. Iterating over its `results` does the work and writes the results. A file that cannot be
        used gives a result with an error, unless the input is a single file: then its error is raised.

    Raises:
        InputError: an argument is invalid or does not go with the others, the model or the format (see
            `mdlstm_tk.runtime.combinations`), there is nothing to run or no model, a result exists, or the
            single input file cannot be used.
        StoppedError: the model exceeds a limit while it is loaded.
        DeviceError: the device cannot be used.
        MissingExtraError: ONNX Runtime, Pillow or Ray is needed and not installed.
    """
    if skip_existing and force:
        kept = Argument("skip_existing", True), " keeps results that exist, "
        raise InputError(*kept, Argument("force", True), " replaces them; give one")
    of_kind = fit_options("infer_paths", of_kind)
    numbers = {"batch_size": batch_size, "workers": workers, "tile": tile}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(Argument(name, value), " is out of range; give at least 1")
    if workers is not None and engine != "ray":
        needed = " needs ", Argument("engine", "ray"), "; in this process, set ", Argument("threads")
        raise InputError(Argument("workers"), *needed)
    sources = [os.fspath(path) for path in inputs]
    target = None if output is None else os.fspath(output)
    if engine == "ray" and STDIO in (*sources, target):
        raise InputError(Argument("engine", "ray"), " takes files, not - (stdin or stdout)")
    limit = byte_limit(max_bytes)
    is_single = is_single_file(sources)
    table = Path(target) if target and not is_single and is_table(target) else None
    if table and skip_existing:
        skip = Argument("skip_existing", True), " needs a folder"
        raise InputError(f"{table} holds the results of all inputs; ", *skip)
    if table and output_format and output_format not in LINES:
        unfit = Argument("output_format", output_format)
        raise InputError(f"{table} takes answers; leave out ", unfit)
    files, left_out, earlier_results = find_files(sources, target)

    tiling = {"tile": tile is not None, "level": level is not None, "resume": resume}
    models = find_models(model, tiled=any(tiling.values()))
    arguments: dict[str, Any] = {"threads": threads, "timeout": timeout, "max_bytes": max_bytes}
    arguments |= {"isolated": isolated, "trusted": trusted}
    reader = FileReader(limit)
    candidates: list[Candidate] = []
    if len(models) > 1:
        candidates = read_candidates(models, limit)
    path = candidates[0].path if candidates else models[-1]
    if is_tiled(path):
        candidates = []  # each takes all grids, so that the newest runs all files
    with ExitStack() as resources:
        sessions: dict[Path, Session | TiledSession] = {}

        def open_model(path: Path) -> Session | TiledSession:
            if path not in sessions:
                sessions[path] = _open_model(path, tiling, device, **arguments)
                resources.callback(sessions[path].close)
            return sessions[path]

        metadata = candidates[0].metadata if candidates else open_model(path).metadata
        kind = kind_named(metadata.kind)
        options = kind.prepare(ResultOptions(probabilities, of_kind), metadata, open_model)
        stdin: bytes | None = None
        if STDIO in sources and metadata.form != "tiles":
            content = reader.peek(STDIO)
            stdin, files = content.document, [InputPath(STDIO, f"stdin{content.suffix}")]
            if content.is_image and kind.has_documents_in_images(of_kind) and kind.documents:
                raise InputError(
                    f"an image on stdin is no {kind.documents.name}; give the path of its file"
                )
        of_form = files_of_form(files, metadata.form)
        left_out += len(files) - len(of_form)
        files, others = files_for(metadata.kind, of_form, earlier_results, of_kind)
        left_out += others
        planned = plan_jobs(files, metadata, target, output_format, options, is_single=is_single)
        given: dict[str, Any] = {
            "probabilities": probabilities,
            **of_kind,
            "skip_existing": skip_existing,
            "force": force,
            "output_format": output_format,
            "json": json,
            "batch_size": batch_size,
        }
        check_jobs(metadata, path, planned, given, table)
        if table:
            ensure_writable(table, force)
        jobs = remaining_jobs(planned, skip_existing, force)
        if engine == "ray" and kind.documents and any(job.documents for job in jobs):
            refused_type = f" takes arrays and images, not {kind.documents.name}s; use "
            raise InputError(Argument("engine", "ray"), refused_type, Argument("engine", "local"))
        by_model, refused = {path: jobs}, list[Result]()
        if candidates and jobs:
            by_model, refused = jobs_by_model(candidates, jobs, reader)
            path = next(iter(by_model), path)

        def start(path: Path, jobs: Sequence[Job]) -> Iterator[Result]:
            """The results of the jobs of one model, which is opened now."""
            session = open_model(path)
            of_documents = [job for job in jobs if job.documents]
            jobs = [job for job in jobs if not job.documents]
            run: Callable[[Sequence[Job]], Iterator[Result]]
            if not isinstance(session, Session):
                from mdlstm_tk.runtime.tiles.files import infer_tiled

                how: Any = {"tile": tile, "level": level or 0, "resume": resume, "report": report}
                how["folder"] = Path(table or "").parent
                if engine == "ray":
                    how["workers"] = workers or max(1, os.cpu_count() or 1)
                run = partial(
                    infer_tiled, session, batch_size=batch_size, options=options, force=force, **how
                )
            elif engine == "ray":
                from mdlstm_tk.runtime.ray import infer_with_ray

                session.close()  # the workers load the model themselves
                where: Any = {"device": "cpu" if session.device == "cpu" else "cuda", "workers": workers}
                run = partial(
                    infer_with_ray, path, batch_size=batch_size, options=options, **arguments, **where
                )
            else:
                run = partial(infer_files, session, read=reader, batch_size=batch_size, options=options)
            parts = [run(jobs)] if jobs else []
            if of_documents and kind.documents and isinstance(session, Session):
                run_documents = load(kind.documents.runner)
                parts = [run_documents(session, of_documents, limit, options, stdin), *parts]
            return chain(*parts)

        parts = [start(each, of_model) for each, of_model in by_model.items()]
        session = open_model(path)
        results: Iterator[Result] = iter(())
        if jobs:
            results = _with_resources(chain(refused, *parts), resources.pop_all(), is_single)
    document = _document(jobs, metadata, options, table, is_single)
    if table and document:
        results, document = _write_table(results, table, document, force), None
    further_models = [each for each in by_model if each != path]
    models_used = {each.path: each.metadata for each in candidates if each.path in by_model}
    stale = list(filter(None, starmap(note_if_stale, (models_used or {path: metadata}).items())))
    counts = len(planned) - len(jobs), left_out, len(earlier_results)
    return Inference(path, further_models, session, jobs, *counts, table, stale, document, results)


def _open_model(path: Path, tiling: dict[str, bool], device: str, **options: Any) -> Session | TiledSession:
    """Open a model for whole grids, or a tiled one."""
    if is_tiled(path):
        from mdlstm_tk.runtime.tiles.session import TiledSession  # imported late: most models need none

        return TiledSession(path, device, **options)
    if names := [name for name, is_set in tiling.items() if is_set]:
        raise InputError(
            *(Argument(names[0]), f" needs a tiled model, and {path} is none; make one with: "),
            *(TILED_EXPORT, ", then give RUN/model.tiles as ", Argument("model")),
        )
    return Session(path, device, **options)


def _with_resources(results: Iterator[Result], resources: ExitStack, is_single: bool) -> Iterator[Result]:
    """Pass results on, and release the resources after the last; of a single file, raise the error."""
    with resources:
        for result in results:
            if is_single and result.error is not None:
                if result.stopped is not None:
                    raise StoppedError(result.error, result.stopped)
                raise InputError(result.error)
            yield result


def _document(
    jobs: list[Job],
    metadata: Metadata,
    options: ResultOptions,
    table: Path | None,
    is_single: bool,
) -> AnswerDocument | None:
    """Renders the answers that go to one table or to standard output; None if there are none."""
    answer_jobs = [job for job in jobs if job.content == "lines" and job.target == STDIO]
    if not answer_jobs:
        return None
    from mdlstm_tk.runtime.answers import AnswerDocument

    folder = Path() if table is None else table.parent
    return AnswerDocument(
        answer_jobs[0].format, metadata, options, is_named=not is_single, folder=folder, jobs=answer_jobs
    )


def _write_table(
    results: Iterator[Result], table: Path, document: AnswerDocument, force: bool
) -> Iterator[Result]:
    """Pass results on, and write their answers to one file, in the order of the jobs."""
    with open_output(table, replace=force) as file:  # before the first run: it may fail
        file.write(document.begin().encode())
        for result in results:
            file.write(document.add_in_order(result.job, result.answers).encode())
            yield result
        file.write(document.end().encode())
