"""Run many arrays or files through one session: equal shapes share batches, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple, TypeVar

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.arrays import STDIO
from mdlstm_tk.runtime.io.npy import MAX_BYTES, Array
from mdlstm_tk.runtime.io.readers import Arrays, read_arrays
from mdlstm_tk.runtime.io.writers import write_arrays
from mdlstm_tk.runtime.jobs import DECODED_FORMATS, Job
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session

BATCH_SIZE = 64  # no model that was measured ran faster with more samples per run
BATCH_POSITIONS = BATCH_SIZE * 64 * 64  # memory of a run grows with its positions and the hidden size
WINDOW = 4 * BATCH_SIZE  # files; enough to fill batches when a folder holds a few different shapes
WINDOW_BYTES = 2**28

Item = TypeVar("Item")
Tag = TypeVar("Tag")


class Outcome(NamedTuple):
    """What became of one file.

    Attributes:
        job: the file, its result's path and format.
        error: None if the result was written or is in `text`, else what is wrong with the file.
        text: the lines of a result for standard output, which the caller prints.
        inputs, outputs: the arrays of a single input file; None where there are several files.
    """

    job: Job
    error: str | None
    text: str = ""
    inputs: Arrays | None = None
    outputs: Arrays | None = None


def infer_files(
    session: Session,
    jobs: Sequence[Job],
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    probabilities: bool = False,
) -> Iterator[Outcome]:
    """Run a model on files and write the results.

    Files are read in windows; the next window is read while the model works on the current one. Which
    arrays share a batch depends on the jobs alone: batches never span windows, and a window ends at every
    multiple of `WINDOW` files.

    Args:
        session: the model.
        jobs: the files to read and where to write their results.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.
        max_bytes: maximum size in bytes of a file and of the arrays in it.
        probabilities: write softmax over the last axis instead of labels, texts or masks.

    Yields:
        The outcome of each job. A file that cannot be used gives an outcome with an error.

    Raises:
        MDLSTMError: the next file would fail, too: a result cannot be written, a package is missing, or
            the model fails.
    """
    for window in _read_ahead(_read_windows(jobs, max_bytes)):
        yield from _infer_window(session, window, batch_size, probabilities)


def infer_single(
    session: Session, job: Job, arrays: Arrays, batch_size: int | None = None, probabilities: bool = False
) -> Iterator[Outcome]:
    """Run a model on the arrays of one file and write the result.

    Yields:
        One outcome, which holds the arrays.

    Raises:
        InputError: the model does not take an array, or the format cannot hold the result.
        MDLSTMError: the model fails, or the result cannot be written.
    """
    results = dict(run_batches(session, arrays.items(), batch_size))
    outputs = _outputs_of(job, {name: results[name] for name in arrays})
    text = write_results(job, outputs, session.metadata, probabilities)
    yield Outcome(job, None, text, arrays, outputs)


def run_batches(
    session: Session, arrays: Iterable[tuple[Tag, Array]], batch_size: int | None = None
) -> Iterator[tuple[Tag, Array | InputError]]:
    """Run a model on arrays. Arrays of equal shape share batches; all do if the model takes `sizes`.

    Args:
        session: the model.
        arrays: pairs of a tag and an array, with or without batch and channel axes, as `Session` takes it.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.

    Yields:
        Pairs of a tag and what `session(x)` returns or raises, in an order that depends on the shapes
        alone.
    """
    metadata = session.metadata
    batched_ndim = metadata.ndim + 2
    groups: dict[tuple[int, ...], list[tuple[Tag, Array]]] = {}
    for tag, x in arrays:
        sample_shape = x.shape[1:] if x.ndim == batched_ndim else x.shape
        key = (metadata.grid or ()) if "sizes" in metadata.inputs else sample_shape
        groups.setdefault(key, []).append((tag, x))
    for shape, members in groups.items():
        limit = batch_size or max(1, min(BATCH_SIZE, BATCH_POSITIONS // prod(shape)))
        batch: list[tuple[Tag, Array]] = []
        samples = 0
        for tag, x in members:
            batch.append((tag, x))
            samples += len(x) if x.ndim == batched_ndim else 1
            if samples >= limit:
                yield from _run_batch(session, batch, limit)
                batch, samples = [], 0
        if batch:
            yield from _run_batch(session, batch, limit)


def _run_batch(
    session: Session, batch: Sequence[tuple[Tag, Array]], limit: int
) -> Iterator[tuple[Tag, Array | InputError]]:
    try:
        if len(batch) == 1:  # a single array may hold any number of samples
            outputs = [_run_split(session, batch[0][1], limit)]
        else:
            outputs = session.run_many([x for _, x in batch])
        yield from zip((tag for tag, _ in batch), outputs, strict=True)
    except InputError as error:
        if len(batch) == 1:
            yield batch[0][0], error
            return
        for item in batch:  # run each alone, so that the error names the array that caused it
            yield from _run_batch(session, [item], limit)


def _run_split(session: Session, x: Array, limit: int) -> Array:
    """session(x), computed in runs of at most `limit` samples."""
    if x.ndim < session.metadata.ndim + 2 or len(x) <= limit:
        return session(x)
    return np.concatenate([session(x[i : i + limit]) for i in range(0, len(x), limit)])


def _read_windows(jobs: Sequence[Job], max_bytes: int) -> Iterator[list[tuple[Job, Arrays | str]]]:
    """Read the jobs' files. Each job comes with its arrays, or with the reason why it has none."""
    window: list[tuple[Job, Arrays | str]] = []
    window_bytes = 0
    for number, job in enumerate(jobs, start=1):
        try:
            arrays = read_arrays(job.source, max_bytes)
            window.append((job, arrays))
            window_bytes += sum(array.nbytes for array in arrays.values())
        except InputError as error:
            window.append((job, str(error)))
        except MemoryError:
            window.append((job, f"{job.source} is too large for the memory that is left"))
        if number % WINDOW == 0 or window_bytes > WINDOW_BYTES:
            yield window
            window, window_bytes = [], 0
    if window:
        yield window


def _read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield `items`, computing the next one in another thread while the current one is in use."""
    from concurrent.futures import ThreadPoolExecutor  # imported late: a single file does not need it

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, items, None)
        while (item := following.result()) is not None:
            following = reader.submit(next, items, None)
            yield item


def _infer_window(
    session: Session,
    window: Sequence[tuple[Job, Arrays | str]],
    batch_size: int | None,
    probabilities: bool,
) -> Iterator[Outcome]:
    tagged: list[tuple[tuple[int, str | None], Array]] = []
    for index, (job, arrays) in enumerate(window):
        if isinstance(arrays, str):
            yield Outcome(job, arrays)
        else:
            tagged += [((index, name), x) for name, x in arrays.items()]
    results: dict[int, dict[str | None, Array | InputError]] = {}
    for (index, name), y in run_batches(session, tagged, batch_size):
        job, arrays = window[index]
        results.setdefault(index, {})[name] = y
        if len(results[index]) == len(arrays):  # the file's last array
            complete = results.pop(index)
            try:
                outputs = _outputs_of(job, {name: complete[name] for name in arrays})
                yield Outcome(job, None, write_results(job, outputs, session.metadata, probabilities))
            except InputError as error:
                yield Outcome(job, str(error))


def _outputs_of(job: Job, results: dict[str | None, Array | InputError]) -> Arrays:
    """The outputs for a file's arrays.

    Raises:
        InputError: the model did not take one of them.
    """
    outputs: Arrays = {}
    for name, y in results.items():
        if isinstance(y, InputError):
            raise InputError(f"{job.source}: {y}" if name is None else f"{name!a} in {job.source}: {y}")
        outputs[name] = y
    return outputs


def write_results(job: Job, outputs: Arrays, metadata: Metadata, probabilities: bool = False) -> str:
    """Write the outputs for a file: as labels, texts or masks where the format is meant for these, else
    as numbers.

    Returns:
        The lines of labels or texts for standard output, which the caller prints; else "".

    Raises:
        InputError: the format cannot hold them.
        MDLSTMError: the file cannot be written.
    """
    kind = metadata.kind or ""
    if probabilities:
        from mdlstm_tk.runtime import postprocessing

        outputs = {name: postprocessing.probabilities(y) for name, y in outputs.items()}
    elif job.format == DECODED_FORMATS.get(kind):
        from mdlstm_tk.runtime.postprocessing import decode

        outputs = {name: decode(y, kind, metadata.classes or ()) for name, y in outputs.items()}
        if job.format == "txt" and job.target == STDIO:
            return "".join(
                f"{text}\n" if name is None else f"{name}\t{text}\n"
                for name, texts in outputs.items()
                for text in texts.tolist()
            )
    try:
        write_arrays(job.target, outputs, job.format)
    except InputError as error:
        raise InputError(f"{job.source}: {error}") from None
    return ""
