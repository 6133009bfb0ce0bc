"""Many arrays through one session: alike ones together, and never more in memory than two windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple, TypeVar

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.arrays import STDIO
from mdlstm_tk.runtime.io.formats import Arrays, read_arrays, write_arrays
from mdlstm_tk.runtime.io.npy import MAX_BYTES, Array
from mdlstm_tk.runtime.jobs import ANSWERS, Job
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session

BATCH = 64  # rows; beyond that no model ran faster
VALUES = BATCH * 64 * 64  # of a batch: what a run takes grows with them, and with the hidden size
WINDOW = 4 * BATCH  # files, so that few kinds of shape in a folder still fill batches
WINDOW_BYTES = 2**28

Item = TypeVar("Item")
Tag = TypeVar("Tag")


class Outcome(NamedTuple):
    """What came of a file: if `error` is None its result is written, or is `text` for stdout."""

    job: Job
    error: str | None
    text: str = ""


def infer_files(
    session: Session, jobs: Sequence[Job], batch_size: int | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Outcome]:
    """Run a model on files and write the results.

    Files are read a window ahead of those in work. Which arrays share a batch depends on the jobs alone:
    each window's files are batched by themselves, and a window ends at every multiple of `WINDOW`.

    Args:
        session: of the model.
        jobs: what to read, and where to write.
        batch_size: rows in one run; if not given, 64, or fewer for grids above 64×64.
        max_bytes: that a file may take, and the arrays in it.

    Returns:
        Each job's outcome once it is known. A file that cannot be used is one with an error.

    Raises:
        MDLSTMError: something that the next file would run into as well: a result cannot be written, a
            package is missing, the model fails.
    """
    for window in _ahead(_windows(jobs, max_bytes)):
        yield from _infer_window(session, window, batch_size)


def run_batches(
    session: Session, arrays: Iterable[tuple[Tag, Array]], batch_size: int | None = None
) -> Iterator[tuple[Tag, Array | InputError]]:
    """Run a model on arrays, those of one shape together; all together if the model takes sizes.

    Args:
        session: of the model.
        arrays: pairs of a tag and x, with or without batch and channel axes, as `Session` takes them.
        batch_size: rows in one run.

    Returns:
        Pairs of a tag and what `session(x)` returns or raises, in an order that depends on the shapes
        alone.
    """
    about = session.metadata
    groups: dict[tuple[int, ...], list[tuple[Tag, Array]]] = {}
    for tag, x in arrays:
        sample = x.shape[1:] if x.ndim == about.ndim + 2 else x.shape
        groups.setdefault((about.grid or ()) if "sizes" in about.inputs else sample, []).append((tag, x))
    for sample, members in groups.items():
        limit = batch_size or max(1, min(BATCH, VALUES // prod(sample)))
        batch: list[tuple[Tag, Array]] = []
        count = 0
        for tag, x in members:
            batch.append((tag, x))
            count += len(x) if x.ndim == about.ndim + 2 else 1
            if count >= limit:
                yield from _run(session, batch, limit)
                batch, count = [], 0
        if batch:
            yield from _run(session, batch, limit)


def _run(
    session: Session, batch: Sequence[tuple[Tag, Array]], limit: int
) -> Iterator[tuple[Tag, Array | InputError]]:
    try:
        if len(batch) == 1:  # of any number of rows
            results = [_in_parts(session, batch[0][1], limit)]
        else:
            results = session.run_many([x for _, x in batch])
        yield from zip((tag for tag, _ in batch), results, strict=True)
    except InputError as error:
        if len(batch) == 1:
            yield batch[0][0], error
            return
        for one in batch:  # by itself, so that what is wrong with one is said of that one
            yield from _run(session, [one], limit)


def _in_parts(session: Session, x: Array, limit: int) -> Array:
    """session(x), with no more than `limit` rows in a run."""
    if x.ndim < session.metadata.ndim + 2 or len(x) <= limit:
        return session(x)
    return np.concatenate([session(x[i : i + limit]) for i in range(0, len(x), limit)])


def _windows(jobs: Sequence[Job], max_bytes: int) -> Iterator[list[tuple[Job, Arrays | str]]]:
    """The jobs with their arrays, or why there are none; as many at a time as memory shall hold."""
    window: list[tuple[Job, Arrays | str]] = []
    held = 0
    for number, job in enumerate(jobs, start=1):
        try:
            arrays = read_arrays(job.source, max_bytes)
            window.append((job, arrays))
            held += sum(array.nbytes for array in arrays.values())
        except InputError as error:
            window.append((job, str(error)))
        except MemoryError:
            window.append((job, f"{job.source} is too large for the memory that is left"))
        if number % WINDOW == 0 or held > WINDOW_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made in another thread while the one before it is in use."""
    from concurrent.futures import ThreadPoolExecutor  # which a single file has no use for

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item


def _infer_window(
    session: Session, window: Sequence[tuple[Job, Arrays | str]], batch_size: int | None
) -> Iterator[Outcome]:
    todo: list[tuple[tuple[int, str | None], Array]] = []
    for place, (job, arrays) in enumerate(window):
        if isinstance(arrays, str):
            yield Outcome(job, arrays)
        else:
            todo += [((place, name), x) for name, x in arrays.items()]
    results: dict[int, dict[str | None, Array | InputError]] = {}
    for (place, name), y in run_batches(session, todo, batch_size):
        job, arrays = window[place]
        results.setdefault(place, {})[name] = y
        if len(results[place]) == len(arrays):
            done = results.pop(place)
            try:
                text = write_results(job, {name: done[name] for name in arrays}, session.metadata)
                yield Outcome(job, None, text)
            except InputError as error:
                yield Outcome(job, str(error))


def write_results(job: Job, results: dict[str | None, Array | InputError], about: Metadata) -> str:
    """Write what came of a file's arrays: as numbers, or what they say where a format is for that.

    Returns:
        The lines of a result that is text and for stdout, which the caller prints.

    Raises:
        InputError: of the first array that the model did not take, or the format cannot hold them.
        MDLSTMError: the file cannot be written.
    """
    good: Arrays = {}
    for name, y in results.items():
        if isinstance(y, InputError):
            raise InputError(f"{job.source}: {y}" if name is None else f"{name!a} in {job.source}: {y}")
        good[name] = y
    if job.form == ANSWERS.get(about.kind or ""):
        from mdlstm_tk.runtime.postprocessing import answer

        good = {name: answer(y, about.kind or "", about.classes or ()) for name, y in good.items()}
        if job.form == "txt" and job.target == STDIO:
            return "".join(
                f"{text}\n" if name is None else f"{name}\t{text}\n"
                for name, texts in good.items()
                for text in texts.tolist()
            )
    try:
        write_arrays(job.target, good, job.form)
    except InputError as error:
        raise InputError(f"{job.source}: {error}") from None
    return ""
