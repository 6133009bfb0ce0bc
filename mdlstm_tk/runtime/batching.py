"""Run files through one session: equal shapes share batches, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from mdlstm_tk.errors import Cause, InputError, Message, StoppedError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.io.npy import Array, save_array, warn_if_not_finite
from mdlstm_tk.runtime.io.readers import Arrays, InputFile
from mdlstm_tk.runtime.jobs import LABELS_ONLY, Job, ResultOptions
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Outputs, Session
from mdlstm_tk.runtime.shapes import grid_of

if TYPE_CHECKING:
    from mdlstm_tk.runtime.answers import Answer

BATCH_SIZE = 64  # no model that was measured ran faster with more samples per run
BATCH_POSITIONS = BATCH_SIZE * 64 * 64  # memory of a run grows with its positions and the hidden size
CHUNK = 4 * BATCH_SIZE  # files; enough to fill batches when a folder holds a few different shapes
CHUNK_BYTES = 2**28
MAX_STOPS = 3  # in a row, as each may take as long as the limit on time

Read: TypeAlias = Callable[[str], InputFile]
Feed: TypeAlias = Array | Mapping[str, Array]
"""An array for x, or arrays for several inputs of a model by their names."""
Feeds: TypeAlias = dict[str | None, Feed]
"""The inputs of the runs for one file, by the name of the array."""
Widths: TypeAlias = dict[str | None, tuple[int, int]]
"""Where steps count as columns, the columns of x and the width in pixels of its image, by the name of the
array."""
OutputsOrError: TypeAlias = Outputs | InputError | StoppedError
"""What a session returns, or why there is nothing."""
Tag = TypeVar("Tag")
Item = TypeVar("Item")


class Result(NamedTuple):
    """Result of one file.

    Attributes:
        job: the file, its result's path and format.
        error: None if the result was written or is in `answers`, else what is wrong with the file.
        answers: those for the samples in the file. The caller prints them if the job's target
            is standard output.
        inputs: the arrays of the file, if it is the only one; else None.
        outputs: the network's outputs for the file, if it is the only one; else None.
        left_out: names of arrays in the file that were not run: the targets in a file to train on.
        stopped: what stopped the model, if the error is that of a `StoppedError`.
    """

    job: Job
    error: str | None = None
    answers: Sequence[Answer] = ()
    inputs: Arrays | None = None
    outputs: Arrays | None = None
    left_out: tuple[str, ...] = ()
    stopped: Cause | None = None


class PendingFile(NamedTuple):
    """A file that was read: a result that holds only inputs or an error, the feeds to run, and their
    widths."""

    result: Result
    feeds: Feeds = {}  # noqa: RUF012
    widths: Widths = {}  # noqa: RUF012


def infer_files(
    session: Session,
    jobs: Sequence[Job],
    read: Read,
    batch_size: int | None = None,
    options: ResultOptions = LABELS_ONLY,
) -> Iterator[Result]:
    """Run a model on files and write the results; yields the result of each job.

    Files are read in chunks; the next chunk is read while the model works on the current one. Which
    arrays share a batch depends on the jobs alone: batches never span chunks, and a chunk ends at every
    multiple of `CHUNK` files. If the model is stopped at a limit or crashes, the files of that batch are
    run one by one, so that the error is that of the file that caused it.

    Args:
        session, jobs, options: of the inference.
        read: reads a file; see `mdlstm_tk.runtime.io.readers.read_input`.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.

    Raises:
        MDLSTMError: the next file would fail, too: a result cannot be written, a package is missing, the
            model fails, or was stopped several times in a row.
    """
    stops: list[StoppedError] = []
    is_over = Event()
    chunks = _read_chunks(jobs, session.metadata, read, is_over)
    for chunk in chunks if len(jobs) == 1 else read_ahead(chunks, is_over):
        for result in _infer_chunk(session, chunk, batch_size, options, stops):
            yield result if len(jobs) == 1 else result._replace(inputs=None, outputs=None)


def run_batches(
    session: Session,
    feeds: Iterable[tuple[Tag, Feed]],
    batch_size: int | None = None,
    stops: list[StoppedError] | None = None,
) -> Iterator[tuple[Tag, OutputsOrError]]:
    """Run a model on arrays. Arrays of equal shape share batches; all do if the model takes `sizes`.

    Args:
        session, batch_size: as for `infer_files`.
        feeds: pairs of a tag and x, as `Session` takes it; or of a tag and several inputs by name, which
            are run alone.
        stops: consecutive errors that stopped the model, collected over several calls; the `MAX_STOPS`-th
            is raised.

    Yields:
        Pairs of a tag and what `session(x)` returns or raises, in an order that depends on shapes alone.
    """
    stops, metadata = [] if stops is None else stops, session.metadata
    is_padded = "sizes" in metadata.inputs
    groups: dict[Any, list[tuple[Tag, Feed]]] = {}
    for number, (tag, feed) in enumerate(feeds):
        key: Any = number  # several inputs run alone, and so do arrays that the session will refuse
        if not isinstance(feed, Mapping) and metadata.ndim <= feed.ndim <= metadata.ndim + 2:
            has_batch_axis = metadata.has_batch_axis(feed.ndim)
            key = "padded" if is_padded else feed.shape[has_batch_axis:]
        groups.setdefault(key, []).append((tag, feed))
    for key, members in groups.items():
        if key == "padded":  # grids of one size are padded least
            members.sort(key=lambda member: prod(grid_of(_x_of(member[1], metadata).shape, metadata)))
        batch: list[tuple[Tag, Feed]] = []
        samples, grid = 0, (0,) * metadata.ndim
        for tag, feed in members:
            x = _x_of(feed, metadata)
            x_grid = grid_of(x.shape, metadata)
            if key == "padded":
                x_grid = metadata.grid_like(x_grid)  # the grid that x is padded to
            count = len(x) if metadata.has_batch_axis(x.ndim) else 1
            padded_grid = tuple(map(max, grid, x_grid)) if batch else x_grid
            if batch and samples + count > _batch_limit(batch_size, padded_grid):
                yield from _run_batch(session, batch, _batch_limit(batch_size, grid), stops)
                batch, samples, padded_grid = [], 0, x_grid
            batch.append((tag, feed))
            samples, grid = samples + count, padded_grid
        yield from _run_batch(session, batch, _batch_limit(batch_size, grid), stops)


def grids_of(file: InputFile, metadata: Metadata) -> list[tuple[int, ...]]:
    """The extents of the grids in a file that a model is to take."""
    arrays = file.arrays_for(metadata)
    if file.holds_inputs(metadata):
        arrays = {None: arrays[metadata.inputs[0]]}
    return [grid_of(x.shape, metadata) for x in arrays.values()]


def _x_of(feed: Feed, metadata: Metadata) -> Array:
    return feed[metadata.inputs[0]] if isinstance(feed, Mapping) else feed


def _batch_limit(batch_size: int | None, grid: tuple[int, ...]) -> int:
    """The number of samples of a run."""
    return batch_size or max(1, min(BATCH_SIZE, BATCH_POSITIONS // max(prod(grid), 1)))


def _run_batch(
    session: Session, batch: Sequence[tuple[Tag, Feed]], limit: int, stops: list[StoppedError]
) -> Iterator[tuple[Tag, OutputsOrError]]:
    try:
        if len(batch) == 1:  # a single array may hold any number of samples
            outputs = [_run_split(session, batch[0][1], limit)]
        else:
            outputs = session.run_many([x for _, x in batch])  # type: ignore[misc]  # mappings are alone
    except (InputError, StoppedError) as error:
        if len(batch) == 1:
            yield batch[0][0], error
        if isinstance(error, StoppedError):
            stops.append(error)
            if len(stops) == MAX_STOPS:
                message = Message(f"{MAX_STOPS} runs in a row failed; in the last one ", error)
                raise StoppedError(message, error.cause) from None
        if len(batch) > 1:
            for item in batch:  # run each alone, so that the error names the array that caused it
                yield from _run_batch(session, [item], limit, stops)
    else:
        stops.clear()
        yield from zip((tag for tag, _ in batch), outputs, strict=True)


def _run_split(session: Session, feed: Feed, limit: int) -> Any:
    """The outputs of the session for one array or several inputs, in runs of at most `limit` samples."""
    metadata = session.metadata
    arrays = dict(feed) if isinstance(feed, Mapping) else {metadata.inputs[0]: feed}
    x = arrays.pop(metadata.inputs[0])
    is_short = not metadata.has_batch_axis(x.ndim) or len(x) <= limit
    if is_short or any(y.shape[:1] != x.shape[:1] for y in arrays.values()):  # the session refuses these
        return session(x, **arrays)
    cuts = [slice(i, i + limit) for i in range(0, len(x), limit)]
    parts: list[Any] = [session(x[cut], **{name: y[cut] for name, y in arrays.items()}) for cut in cuts]
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _read_chunks(
    jobs: Sequence[Job], metadata: Metadata, read: Read, is_over: Event
) -> Iterator[list[PendingFile]]:
    """Read the jobs' files."""
    chunk: list[PendingFile] = []
    chunk_bytes = 0
    for number, job in enumerate(jobs, start=1):
        if is_over.is_set():
            return
        try:
            file = read(job.source)
            arrays = file.arrays_for(metadata)
            feeds = _feeds_of(file, arrays, metadata)
            widths = (
                _widths_of(file, arrays, metadata) if kind_named(metadata.kind).steps_are_columns else {}
            )
            has_targets = "y" in (*file.arrays, *file.left_out) and file.is_to_train_on(metadata)
            left_out = ("y",) if has_targets else ()
            chunk.append(PendingFile(Result(job, inputs=arrays, left_out=left_out), feeds, widths))
            chunk_bytes += sum(array.nbytes for array in arrays.values())
        except InputError as error:
            chunk.append(PendingFile(Result(job, str(error))))
        except MemoryError:
            reason = f"{job.source} is too large for the memory that is left"
            chunk.append(PendingFile(Result(job, reason)))
        if number % CHUNK == 0 or chunk_bytes > CHUNK_BYTES:
            yield chunk
            chunk, chunk_bytes = [], 0
    if chunk:
        yield chunk


def read_ahead(items: Iterator[Item], is_over: Event) -> Iterator[Item]:
    """Yield `items`, computing the next one in another thread while the current one is in use.

    At the end `is_over` is set, so that no further file is read after an interrupt.
    """
    from concurrent.futures import ThreadPoolExecutor  # imported late: a single file does not need it

    with ThreadPoolExecutor(1) as executor:
        try:
            future = executor.submit(next, items, None)
            while (item := future.result()) is not None:
                future = executor.submit(next, items, None)
                yield item
        finally:
            is_over.set()


def _infer_chunk(
    session: Session,
    chunk: Sequence[PendingFile],
    batch_size: int | None,
    options: ResultOptions,
    stops: list[StoppedError],
) -> Iterator[Result]:
    yield from (file for file, feeds, _ in chunk if not feeds)
    tagged = [((k, name), feed) for k, (_, feeds, _) in enumerate(chunk) for name, feed in feeds.items()]
    parts: dict[int, dict[str | None, OutputsOrError]] = {}
    for (k, name), y in run_batches(session, tagged, batch_size, stops):
        file, feeds, widths = chunk[k]
        parts.setdefault(k, {})[name] = y
        if len(parts[k]) < len(feeds):
            continue
        complete = parts.pop(k)
        try:
            outputs = _outputs_of(file.job, {name: complete[name] for name in feeds})
            answers = write_results(file.job, outputs, session.metadata, options, widths)
        except (InputError, StoppedError) as error:
            yield Result(file.job, str(error), stopped=getattr(error, "cause", None))
        else:
            yield file._replace(answers=answers, outputs=outputs)


def _feeds_of(file: InputFile, arrays: Arrays, metadata: Metadata) -> Feeds:
    """The inputs of the session for a file: each of its arrays as x, or all of them by name if the model
    has several inputs of these names."""
    if file.holds_inputs(metadata):
        return {None: {name: array for name, array in arrays.items() if name is not None}}
    if len(metadata.required_inputs) > 1:
        names = sorted(name for name in arrays if name is not None)
        content = f"arrays called {', '.join(names)}" if names else "one array without a name"
        raise InputError(
            f"{file.label} holds {content}, but the model has several inputs; give a .npz file with arrays "
            f"called {', '.join(metadata.inputs)}"
        )
    return dict(arrays)


def _widths_of(file: InputFile, arrays: Arrays, metadata: Metadata) -> Widths:
    columns = {
        name: grid_of(x.shape, metadata)[-1] for name, x in arrays.items() if x.ndim >= metadata.ndim
    }
    return {name: (w, file.arrays[name].shape[1] if file.is_image else w) for name, w in columns.items()}


def _outputs_of(job: Job, parts: Mapping[str | None, OutputsOrError]) -> Arrays:
    """The outputs for a file's arrays, by the name of the array. Where the model has several outputs, their
    names follow after a dot."""
    outputs: Arrays = {}
    for name, y in parts.items():
        source = job.source if name is None else f"'{name}' in {job.source}"
        if isinstance(y, InputError):
            raise InputError(f"{source}: ", y)
        if isinstance(y, StoppedError):
            raise StoppedError(Message(f"{source}: ", y), y.cause)
        prefix = "" if name is None else f"{name}."
        for key, array in y.items() if isinstance(y, dict) else ((None, y),):
            full_name = name if key is None else f"{prefix}{key}"
            if full_name in outputs:
                raise InputError(
                    f"two results of {job.source} would have the name '{full_name}'; rename its arrays"
                )
            outputs[full_name] = array
    return outputs


def write_results(
    job: Job,
    outputs: Arrays,
    metadata: Metadata,
    options: ResultOptions = LABELS_ONLY,
    widths: Widths | None = None,
) -> tuple[Answer, ...]:
    """Write the outputs for a file: as answers or masks in txt, tsv, csv, json and png if the model's kind
    has such, else as numbers. Returns the answers, which are not written if the job's target is standard
    output: the caller prints them. Without `widths`, places in answers are in steps."""
    try:
        if job.format == "npy" and len(outputs) == 1 and job.content == "outputs":
            save_array(job.target, *outputs.values(), replace=job.replace)
            warn_if_not_finite(job.source, *outputs.values())
            return ()
        from mdlstm_tk.runtime.answers import write_decoded  # imported late: most results are plain arrays

        return write_decoded(job, outputs, metadata, options, widths or {})
    except InputError as error:
        raise InputError(f"{job.source}: ", error) from None
