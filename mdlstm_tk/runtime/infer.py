"""Run an exported model on files: read, run, decode, write. `mdlstm infer` calls it and prints."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io import READABLE, STDIO, TILED_SUFFIX, Array
from mdlstm_tk.io.files import check_free, find_files, open_output, write_arrays
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import Row
from mdlstm_tk.runtime.answers import TABLES, Table, check_options, options_of
from mdlstm_tk.runtime.inputs import Resize, read_feeds
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import Batch, restore

CHUNK = 256  # files; enough to fill batches when a folder holds a few different shapes
CHUNK_BYTES = 2**28
ARRAYS, TILED_ARRAYS = ("npy", "npz", "png", "csv", "json"), ("npy", "tif", "zarr")
TILED_INPUTS = (".npy", ".zarr", ".tif", ".tiff")
RUNS = Path("runs")


class Job(NamedTuple):
    """A file to run, and the file of its result and its format; "-" is standard input or output."""

    source: str
    target: str
    form: str


class Result(NamedTuple):
    """Result of a job: an error, or rows of answers, or shapes of arrays that were written."""

    job: Job
    error: MDLSTMError | None = None
    rows: Sequence[Row] = ()
    shapes: Sequence[tuple[int, ...]] = ()


class Pending(NamedTuple):
    """A file that was read: its inputs by the names of its arrays, or its error."""

    job: Job
    batches: dict[str | None, Batch]
    error: Exception | None = None


Parts = dict[str | None, tuple[dict[str, Array], Batch]]


@dataclass
class Inference:
    """A planned inference. Iterating over it does the work, and yields a `Result` for each job in order.

    Attributes:
        session, model: the model, loaded, and its path.
        jobs: the files to run, without skipped ones.
        table: the file for all rows of answers, "-" for standard output, or None if results are arrays.
        skipped: number of files that are skipped because their result exists.
        options: of the answers, see `Kind.decode`.
        raw, force, batch_size, workers, resize, report: see `infer_paths`.
    """

    session: Any
    model: Path
    jobs: list[Job]
    table: str | None = None
    skipped: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    raw: bool = False
    force: bool = False
    batch_size: int | None = None
    workers: int | None = None
    resize: Resize = None
    report: Callable[[int, int], None] | None = None

    def __iter__(self) -> Iterator[Result]:
        if self.table is None or not self.jobs:
            yield from self._results()
            return
        has_failed = False
        with suppress(_NothingDoneError), open_output(self.table, self.force) as file:
            table = Table(file, self.jobs[0].form)
            is_bare = self.table == STDIO and self.jobs[0].form == "tsv" and len(self.jobs) == 1
            for result in self._results():
                rows = result.rows
                if is_bare and len(rows) == 1:  # its file needs no name
                    rows = [{name: value for name, value in row.items() if name != "file"} for row in rows]
                table.add(rows)
                has_failed = has_failed or result.error is not None
                yield result
            if has_failed and not table.count:
                raise _NothingDoneError  # takes the place of no table that exists
            table.end()

    def _results(self) -> Iterator[Result]:
        if not isinstance(self.session, Session):
            return (self.session.run_file(self, job) for job in self.jobs)  # tile by tile
        if self.workers:
            from mdlstm_tk.runtime.ray import infer_with_ray

            return infer_with_ray(self, self.workers)
        return self.run(self.jobs)

    def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Run jobs in this process. The next files are read while the model works on the current ones."""
        chunks = self._read(jobs)
        with ThreadPoolExecutor(1) as executor:
            following = executor.submit(next, chunks, None)
            while chunk := following.result():
                following = executor.submit(next, chunks, None)
                yield from self._run_chunk(chunk)

    def _read(self, jobs: Sequence[Job]) -> Iterator[list[Pending]]:
        chunk, size = list[Pending](), 0
        for job in jobs:
            try:
                feeds = read_feeds(job.source, self.session.metadata, self.resize)
                prepared = {name: self.session.prepare(**feed.arguments) for name, feed in feeds.items()}
                batches = {name: b._replace(width=feeds[name].width) for name, b in prepared.items()}
                chunk.append(Pending(job, batches))
                size += sum(x.nbytes for batch in batches.values() for x in batch.feeds.values())
            except Exception as error:  # of all kinds, as of a damaged file
                chunk.append(Pending(job, {}, error))
            if len(chunk) == CHUNK or size > CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _run_chunk(self, chunk: Sequence[Pending]) -> Iterator[Result]:
        try:
            batches = [batch for pending in chunk for batch in pending.batches.values()]
            outputs = iter(self.session.run(batches, self.batch_size))
        except MDLSTMError as error:
            if len(chunk) == 1:
                yield failed(chunk[0].job, error)
                return
            for pending in chunk:  # each alone, so that the error names its file
                yield from self._run_chunk([pending])
            return
        for job, of_job, failure in chunk:
            if failure:
                yield failed(job, failure)
                continue
            parts = {name: (next(outputs), batch) for name, batch in of_job.items()}
            try:
                yield self.finish(job, parts)
            except Exception as error:
                yield failed(job, error)

    def finish(self, job: Job, parts: Parts) -> Result:
        """Write the results of a file, or return its rows, of outputs (N, …) and their inputs."""
        metadata, rows, arrays = self.session.metadata, list[Row](), dict[str | None, Array]()
        kind, first = kind_named(metadata.kind), metadata.output_names[0]
        for name, (outputs, batch) in parts.items():
            if not self.raw:
                answers: Any = kind.decode(outputs[first], metadata, **self._options(batch))
                if kind.answers == "rows":
                    for k, row in enumerate(answers):
                        sample = f"[{k}]" if len(answers) > 1 else ""
                        rows.append({"file": f"{job.source}{f'[{name}]' if name else ''}{sample}", **row})
                    continue
                outputs = {**outputs, first: np.asarray(answers)}
            values = restore(outputs, batch, metadata)
            if job.form == "png" and not isinstance(values, dict):
                values = _image_of(values, batch, metadata)
            pairs = values.items() if isinstance(values, dict) else [("", values)]
            arrays |= {".".join(filter(None, (name, key))) or None: y for key, y in pairs}
        if arrays:
            with open_output(job.target, self.force) as file:
                write_arrays(file, arrays, job.form, metadata.mask_values, metadata.mask_palette)
            if not all(np.isfinite(y).all() for y in arrays.values()):
                text = f"the result of {job.source} holds NaN or infinity: diverged, or too large an x"
                warnings.warn(text, stacklevel=2)
        return Result(job, rows=rows, shapes=[y.shape for y in arrays.values()])

    def _options(self, batch: Batch) -> dict[str, Any]:
        """The options of `Kind.decode` for a batch."""
        options, names = dict(self.options), options_of(self.session.metadata)
        if "sizes" in names:
            options["sizes"] = batch.feeds.get("sizes")
        if "widths" in names:
            columns = self.session.metadata.grid_of(batch.feeds["x"].shape)[-1]
            options["widths"] = columns, batch.width or columns
        return options


class _NothingDoneError(Exception):
    """No row was made, as files failed."""


def _image_of(y: Array, batch: Batch, metadata: Metadata) -> Array:
    """The only result of a batch, (H, W) or (H, W, C)."""
    if batch.has_batch_axis:
        if len(y) != 1:
            raise InputError(f"png holds one image, but the results are {len(y)}; use --format npy")
        y = y[0]
    return y if metadata.channels_last or y.ndim < 3 else np.moveaxis(y, 0, -1)


def failed(job: Job, error: Exception) -> Result:
    """The result of a job that cannot be done; the error names its file."""
    text = str(error) if isinstance(error, MDLSTMError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        text = str(error) or "it is too large for the memory that is left"
    label = "standard input" if job.source == STDIO else job.source
    kind = type(error) if isinstance(error, MDLSTMError) else MDLSTMError
    return Result(job, kind(text if label in text else f"{label}: {text}"))


def infer_paths(
    inputs: Sequence[str | Path],
    model: str | Path | None = None,
    output: str | Path | None = None,
    *,
    output_format: str | None = None,
    raw: bool = False,
    resize: Resize = None,
    device: str = "auto",
    threads: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    trusted: bool = False,
    skip_existing: bool = False,
    force: bool = False,
    tile: int | None = None,
    report: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Inference:
    """Load a model and plan its inference on files and folders.

        >>> for result in infer_paths(["scans/"], "model-8x8.onnx", "results/"):
        ...     print(result.job.target, result.error or "ok")

    Args:
        inputs: files and folders, which are searched without hidden files and earlier results (*.out.*); or
            "-" alone for standard input.
        model: an exported file, or a folder of which the newest is taken; None: see `find_model`.
        output: answers go to one table, standard output by default. Arrays go beside the inputs, as
            x.out.npy for x.npy, below a folder, or for one input to a file; "-" is standard output.
        output_format: of the results: tsv, csv or json for answers, npy, npz, png, csv or json for arrays,
            npy, tif or zarr in tiles. None: by the suffix of `output`; else tsv for answers, png for masks
            of images (tif in tiles), npz for several arrays, and npy.
        raw: write what the network returns, rather than the answers of its kind.
        resize: extents (H, W) that images are resized to, one of them perhaps None; None: those of
            training.
        device, threads, trusted: see `Session`.
        batch_size: samples of one run, or tiles; None: see `Session.run`, or 4 tiles.
        workers: run files in so many processes of Ray, on $RAY_ADDRESS; None: in this process.
        skip_existing: leave out files whose result exists and is newer than they and the model.
        force: replace results that exist.
        tile: extent of a tile, of a tiled model; None: 512.
        report: is called with the numbers of tiles that are done and of all.
        **options: of the answers of the model's kind, see `mdlstm_tk.runtime.decode`.

    Raises:
        InputError: there is no model or no input, a result exists or cannot be in this format, or an option
            has no effect.
        DeviceError: the device cannot be used.
        MissingExtraError: ONNX Runtime, Pillow or Ray is needed and not installed.
    """
    path = find_model(model, tile is not None)
    session = open_model(path, device, tile=tile, threads=threads, trusted=trusted)
    metadata, is_tiled = session.metadata, path.suffix == TILED_SUFFIX
    if raw and options:
        raise InputError(f"raw=True (--raw) has no answers, so leave out {', '.join(options)}")
    check_options(metadata, options)
    names, target = [os.fspath(each) for each in inputs], None if output is None else os.fspath(output)
    if STDIO in names and (len(names) > 1 or workers or is_tiled):
        raise InputError("- (standard input) must be the only input, of a model that is not tiled")
    if is_tiled and (workers or resize):
        raise InputError(f"{path} is tiled and takes neither workers (--workers) nor resize (--resize)")
    files = _without_targets(find_files(names, TILED_INPUTS if is_tiled else READABLE), names, metadata)
    has_rows = kind_named(metadata.kind).answers == "rows" and not raw
    is_single = len(files) == 1 and files[0][0] == names[0]
    is_file = target not in (None, STDIO) and (has_rows or is_single) and not _is_folder(str(target))
    suffix = os.path.splitext(target or "")[1][1:].lower()
    if suffix in {*TABLES, *ARRAYS, *TILED_ARRAYS} and not is_file and not _is_folder(str(target)):
        raise InputError(f"{target} would hold the results of several inputs; give a folder with -o")
    named = output_format or (suffix.replace("tiff", "tif") if is_file else None)
    has_grid = is_tiled and metadata.window is not None
    if has_grid and target == STDIO:
        raise InputError("a grid that is larger than the memory goes to a file; name one with -o")
    allowed = TABLES if has_rows else TILED_ARRAYS if has_grid else ARRAYS
    if named is not None and named not in allowed:
        what = f"--format {named}" if output_format else target
        raise InputError(f"{what}: results of {path} are {', '.join(allowed)}; name one with --format")
    is_answer = not raw and not options.get("probabilities")
    default = ("tsv" if has_rows else _default_form(metadata, source, is_answer) for source, _ in files)
    forms = [named or form for form in default]
    stems = Counter(os.path.splitext(relative)[0] for _, relative in files)
    jobs = []
    for (source, relative), form in zip(files, forms, strict=True):
        place = source if target is None else os.path.join(target, relative)
        is_unique = stems[os.path.splitext(relative)[0]] == 1  # else a.jpg and a.png keep their suffixes
        place = f"{os.path.splitext(place)[0] if is_unique else place}.out.{form}"
        place = target if is_file and target else place
        is_printed = has_rows or target == STDIO or (target is None and source == STDIO)
        jobs.append(Job(source, STDIO if is_printed else place, form))
    table = (target or STDIO) if has_rows else None
    targets = [table] if table else [job.target for job in jobs]
    if not table and len({*targets}) < len(jobs):
        raise InputError("the results of several inputs would be one file; give a folder with -o")
    sources = {os.path.realpath(source) for source, _ in files if source != STDIO}
    if sources & {os.path.realpath(each) for each in targets if each != STDIO}:
        raise InputError("a result would replace an input; give another path with -o")
    remaining = jobs
    if skip_existing:
        if table:
            raise InputError("skip_existing=True (--skip-existing) needs a file for each result")
        age = path.stat().st_mtime
        remaining = [job for job in jobs if not _is_newer(job.target, age, job.source)]
    for each in [table] if table else [job.target for job in remaining]:
        if each != STDIO:
            check_free(each, force)
    skipped = len(jobs) - len(remaining)
    return Inference(
        session, path, remaining, table, skipped, options, raw, force, batch_size, workers, resize, report
    )


def _is_newer(target: str, age: float, source: str) -> bool:
    """True for a result that is not older than its model, of that age, and its input."""
    return os.path.exists(target) and os.stat(target).st_mtime >= max(age, os.stat(source).st_mtime)


def find_model(model: str | Path | None = None, is_tiled: bool = False) -> Path:
    """The model that is named, or the newest of a folder: `model`, $MDLSTM_MODEL, the runs below runs/, or
    the current folder. Tiled models are found if one is asked for, or there are no others."""
    name = model or os.environ.get("MDLSTM_MODEL")
    if name and not os.path.isdir(name):
        return Path(name)
    for folders in ([Path(name)],) if name else (sorted(RUNS.glob("[!.]*")), [Path()]):
        models = [path for folder in folders for path in models_in(folder)]
        preferred = [path for path in models if (path.suffix == TILED_SUFFIX) == is_tiled]
        if models:
            return max(preferred or models, key=_age)
    raise InputError(f"no exported model in {name or 'runs/ or here'}; give -m, or run: mdlstm export")


def models_in(folder: Path) -> list[Path]:
    """The visible `.onnx` and `.tiles` files in a folder, the oldest first."""
    files = [each for each in folder.glob("[!.]*") if each.suffix in (".onnx", TILED_SUFFIX)]
    return sorted(filter(Path.is_file, files), key=_age)


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, str(path)  # files that were unpacked together have one time


def open_model(path: Path, device: str = "auto", *, tile: int | None = None, **options: Any) -> Any:
    """A `Session`, or a `TiledSession` of a `.tiles` file."""
    if path.suffix == TILED_SUFFIX:
        from mdlstm_tk.runtime.tiles.session import TiledSession

        options |= {"tile": tile} if tile else {}
        return TiledSession(path, device, **options)
    if tile:
        raise InputError(f"--tile needs a tiled model, not {path}; run: mdlstm export --form tiles")
    return Session(path, device, **options)


def _without_targets(
    files: list[tuple[str, str]], named: Sequence[str], metadata: Metadata
) -> list[tuple[str, str]]:
    """The files without those that were found in a folder of training data, and hold its targets."""
    kind = kind_named(metadata.kind)

    def is_target(path: Path, relative: Path) -> bool:
        below = [*path.parents][: len(relative.parts) - 1]  # folders of those that were named
        folders = [each for each in below if each.name == kind.targets]
        return path.name == kind.targets or any(folder.with_name("images").is_dir() for folder in folders)

    inputs = [each for each in files if each[0] in named or not is_target(Path(each[0]), Path(each[1]))]
    if not inputs:
        raise InputError(f"{files[0][0]} holds targets of training data; to read it as an input, name it")
    return inputs


def _is_folder(path: str) -> bool:
    is_array = os.path.isfile(os.path.join(path, "zarr.json"))
    return (os.path.isdir(path) and not is_array) or path.endswith(os.sep)


def _default_form(metadata: Metadata, source: str, is_answer: bool) -> str:
    """The format of arrays where none is named."""
    if len(metadata.output_names) > 1 or source.lower().endswith(".npz"):
        return "npz"
    form = kind_named(metadata.kind).answers if is_answer and metadata.ndim == 2 else "npy"
    return form.replace("png", "tif") if metadata.form == "tiles" else form
