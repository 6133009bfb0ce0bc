"""Run many arrays or files through one session: equal shapes share batches, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime.answers import (
    ANSWER_KINDS,
    CLASS_KINDS,
    LABELS_ONLY,
    Answer,
    AnswerDocument,
    AnswerFormat,
    ResultOptions,
    answer_format,
    decode,
)
from mdlstm_tk.runtime.io.arrays import STDIO
from mdlstm_tk.runtime.io.npy import MAX_BYTES, Array
from mdlstm_tk.runtime.io.readers import Arrays, InputFile, read_input
from mdlstm_tk.runtime.io.writers import write_arrays, write_mask, write_text
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.postprocessing import class_axis, probabilities
from mdlstm_tk.runtime.session import Session

BATCH_SIZE = 64  # no model that was measured ran faster with more samples per run
BATCH_POSITIONS = BATCH_SIZE * 64 * 64  # memory of a run grows with its positions and the hidden size
WINDOW = 4 * BATCH_SIZE  # files; enough to fill batches when a folder holds a few different shapes
WINDOW_BYTES = 2**28
MAX_STOPS = 3  # in a row, as each may take as long as the limit on time

Outputs = Array | dict[str, Array]  # what a session returns: an array, or several by the names of outputs
Result = Outputs | InputError | StoppedError
Item = TypeVar("Item")
Tag = TypeVar("Tag")


class Outcome(NamedTuple):
    """What became of one file.

    Attributes:
        job: the file, its result's path and format.
        error: None if the result was written or is in `answers`, else what is wrong with the file.
        answers: the labels or texts of the samples in the file. The caller prints them if the job's target
            is standard output.
        inputs: the arrays of a single input file; None where there are several files.
        outputs: the network's outputs for a single input file; None where there are several files.
    """

    job: Job
    error: str | None
    answers: Sequence[Answer] = ()
    inputs: Arrays | None = None
    outputs: Arrays | None = None


class Reader(Protocol):
    """Reads input files, in this process or in another one."""

    def read(self, source: str) -> InputFile:
        """Read a file, as `read_input` does."""

    def read_all(self, sources: Sequence[str]) -> Iterator[InputFile | InputError | MemoryError]:
        """Read files; yields for each what `read` returns or raises."""

    def close(self) -> None:
        """Break off what another thread is reading, if that can be done."""


class LocalReader:
    """A `Reader` in this process.

    Args:
        max_bytes: maximum size in bytes of a file and of the arrays in it.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes

    def read(self, source: str) -> InputFile:
        return read_input(source, self._max_bytes)

    def read_all(self, sources: Sequence[str]) -> Iterator[InputFile | InputError | MemoryError]:
        for source in sources:
            try:
                yield self.read(source)
            except (InputError, MemoryError) as error:
                yield error

    def close(self) -> None:
        pass


def infer_files(
    session: Session,
    jobs: Sequence[Job],
    batch_size: int | None = None,
    reader: Reader | None = None,
    options: ResultOptions = LABELS_ONLY,
) -> Iterator[Outcome]:
    """Run a model on files and write the results.

    Files are read in windows; the next window is read while the model works on the current one. Which
    arrays share a batch depends on the jobs alone: batches never span windows, and a window ends at every
    multiple of `WINDOW` files. If the model is stopped at a limit or crashes, the files of that batch are
    run one by one, so that the error is that of the file that caused it.

    Args:
        session: the model.
        jobs: the files to read and where to write their results.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.
        reader: reads the files. None: `LocalReader()`.
        options: which probabilities to write.

    Yields:
        The outcome of each job. A file that cannot be used gives an outcome with an error.

    Raises:
        MDLSTMError: the next file would fail, too: a result cannot be written, a package is missing, the
            model fails, or was stopped several times in a row.
    """
    stops = StopCount()
    reader = reader or LocalReader()
    for window in _read_ahead(_read_windows(jobs, session.metadata, reader), reader):
        yield from _infer_window(session, window, batch_size, options, stops)


def infer_single(
    session: Session,
    job: Job,
    arrays: Arrays,
    batch_size: int | None = None,
    options: ResultOptions = LABELS_ONLY,
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
    answers = write_results(job, outputs, session.metadata, options)
    yield Outcome(job, None, answers, arrays, outputs)


class StopCount:
    """Counts how often in a row a model was stopped at a limit or crashed."""

    def __init__(self) -> None:
        self._count = 0

    def reset(self) -> None:
        """Note that the model ran."""
        self._count = 0

    def add(self, error: StoppedError) -> None:
        """Note that the model was stopped.

        Raises:
            StoppedError: this has happened `MAX_STOPS` times in a row.
        """
        self._count += 1
        if self._count == MAX_STOPS:
            raise StoppedError(f"{MAX_STOPS} runs in a row failed; in the last one {error}", error.cause)


def run_batches(
    session: Session,
    arrays: Iterable[tuple[Tag, Array]],
    batch_size: int | None = None,
    stops: StopCount | None = None,
) -> Iterator[tuple[Tag, Result]]:
    """Run a model on arrays. Arrays of equal shape share batches; all do if the model takes `sizes`.

    Args:
        session: the model.
        arrays: pairs of a tag and an array, with or without batch and channel axes, as `Session` takes it.
        batch_size: samples per run. None: 64, or fewer for grids above 64×64.
        stops: counts across calls.

    Yields:
        Pairs of a tag and what `session(x)` returns or raises, in an order that depends on the shapes
        alone.

    Raises:
        StoppedError: the model was stopped `MAX_STOPS` times in a row.
    """
    stops = stops or StopCount()
    metadata = session.metadata
    batched_ndim = metadata.ndim + 2
    groups: dict[tuple[int, ...], list[tuple[Tag, Array]]] = {}
    for tag, x in arrays:
        sample_shape = x.shape[1:] if x.ndim == batched_ndim else x.shape
        key = tuple(e or 0 for e in metadata.grid or ()) if "sizes" in metadata.inputs else sample_shape
        groups.setdefault(key, []).append((tag, x))
    for shape, members in groups.items():
        limit = batch_size or max(1, min(BATCH_SIZE, BATCH_POSITIONS // prod(shape)))
        batch: list[tuple[Tag, Array]] = []
        samples = 0
        for tag, x in members:
            batch.append((tag, x))
            samples += len(x) if x.ndim == batched_ndim else 1
            if samples >= limit:
                yield from _run_batch(session, batch, limit, stops)
                batch, samples = [], 0
        if batch:
            yield from _run_batch(session, batch, limit, stops)


def _run_batch(
    session: Session, batch: Sequence[tuple[Tag, Array]], limit: int, stops: StopCount
) -> Iterator[tuple[Tag, Result]]:
    try:
        if len(batch) == 1:  # a single array may hold any number of samples
            outputs = [_run_split(session, batch[0][1], limit)]
        else:
            outputs = session.run_many([x for _, x in batch])
    except (InputError, StoppedError) as error:
        if len(batch) == 1:
            yield batch[0][0], error
        if isinstance(error, StoppedError):
            stops.add(error)
        if len(batch) > 1:
            for item in batch:  # run each alone, so that the error names the array that caused it
                yield from _run_batch(session, [item], limit, stops)
    else:
        stops.reset()
        yield from zip((tag for tag, _ in batch), outputs, strict=True)


def _run_split(session: Session, x: Array, limit: int) -> Any:
    """session(x), computed in runs of at most `limit` samples."""
    if x.ndim < session.metadata.ndim + 2 or len(x) <= limit:
        return session(x)
    parts = [session(x[i : i + limit]) for i in range(0, len(x), limit)]
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _read_windows(
    jobs: Sequence[Job], metadata: Metadata, reader: Reader
) -> Iterator[list[tuple[Job, Arrays | str]]]:
    """Read the jobs' files. Each job comes with its arrays, or with the reason why it has none.

    Raises:
        StoppedError: the files cannot be read within the limits; those that were read came before.
    """
    window: list[tuple[Job, Arrays | str]] = []
    window_bytes = 0
    files = reader.read_all([job.source for job in jobs])
    for number, job in enumerate(jobs, start=1):
        try:
            file = next(files)
            if isinstance(file, InputError | MemoryError):
                raise file
            arrays = file.arrays_for(metadata)
            window.append((job, arrays))
            window_bytes += sum(array.nbytes for array in arrays.values())
        except InputError as error:
            window.append((job, str(error)))
        except MemoryError:
            window.append((job, f"{job.source} is too large for the memory that is left"))
        except StoppedError:
            yield window
            raise
        if number % WINDOW == 0 or window_bytes > WINDOW_BYTES:
            yield window
            window, window_bytes = [], 0
    if window:
        yield window


def _read_ahead(items: Iterator[Item], reader: Reader) -> Iterator[Item]:
    """Yield `items`, computing the next one in another thread while the current one is in use.

    An interrupt ends the reader, so that nobody waits for a file that takes long.
    """
    from concurrent.futures import ThreadPoolExecutor  # imported late: a single file does not need it

    with ThreadPoolExecutor(1) as executor:
        try:
            following = executor.submit(next, items, None)
            while (item := following.result()) is not None:
                following = executor.submit(next, items, None)
                yield item
        except BaseException:
            reader.close()
            raise


def _infer_window(
    session: Session,
    window: Sequence[tuple[Job, Arrays | str]],
    batch_size: int | None,
    options: ResultOptions,
    stops: StopCount,
) -> Iterator[Outcome]:
    tagged: list[tuple[tuple[int, str | None], Array]] = []
    for index, (job, arrays) in enumerate(window):
        if isinstance(arrays, str):
            yield Outcome(job, arrays)
        else:
            tagged += [((index, name), x) for name, x in arrays.items()]
    results: dict[int, dict[str | None, Result]] = {}
    for (index, name), y in run_batches(session, tagged, batch_size, stops):
        job, arrays = window[index]
        results.setdefault(index, {})[name] = y
        if len(results[index]) == len(arrays):  # the file's last array
            complete = results.pop(index)
            try:
                outputs = _outputs_of(job, {name: complete[name] for name in arrays})
                yield Outcome(job, None, write_results(job, outputs, session.metadata, options))
            except (InputError, StoppedError) as error:
                yield Outcome(job, str(error))


def _outputs_of(job: Job, results: Mapping[str | None, Result]) -> Arrays:
    """The outputs for a file's arrays, by the name of the array. Where the model has several outputs, their
    names follow after a dot.

    Raises:
        InputError: the model did not take one of the arrays.
        StoppedError: the model was stopped while it ran on one of them.
    """
    outputs: Arrays = {}
    for name, y in results.items():
        source = job.source if name is None else f"{name!a} in {job.source}"
        if isinstance(y, InputError):
            raise InputError(f"{source}: {y}")
        if isinstance(y, StoppedError):
            raise StoppedError(f"{source}: {y}", y.cause)
        if isinstance(y, dict):
            prefix = "" if name is None else f"{name}."
            named: Arrays = {f"{prefix}{output}": array for output, array in y.items()}
            if twice := outputs.keys() & named.keys():
                raise InputError(
                    f"two results of {job.source} would have the name {min(map(str, twice))!a}; "
                    "rename its arrays"
                )
            outputs |= named
        else:
            outputs[name] = y
    return outputs


def write_results(
    job: Job, outputs: Arrays, metadata: Metadata, options: ResultOptions = LABELS_ONLY
) -> tuple[Answer, ...]:
    """Write the outputs for a file: as labels, texts or masks in txt, csv, json and png if the model's kind
    has such, else as numbers.

    Returns:
        The labels or texts; empty for other results. They are not written if the job's target is standard
        output: the caller prints them.

    Raises:
        InputError: the format cannot hold them.
        MDLSTMError: the file cannot be written.
    """
    is_single = len(metadata.output_names) == 1
    has_classes = metadata.kind in CLASS_KINDS and is_single
    try:
        if is_single and metadata.kind in ANSWER_KINDS and (text_format := answer_format(job.format)):
            return _write_answers(job, text_format, outputs, metadata, options)
        if has_classes and options.probabilities:
            outputs = {name: probabilities(y, class_axis(y, metadata)) for name, y in outputs.items()}
        elif has_classes and metadata.kind == "segment" and job.format in ("png", "csv", "json"):
            outputs = {name: decode(y, metadata) for name, y in outputs.items()}
            if job.format == "png" and len(outputs) == 1:
                values = metadata.mask_values or range(metadata.outputs)
                write_mask(job.target, next(iter(outputs.values())), values, metadata.mask_palette)
                return ()
        elif job.format in ("png", "csv"):  # their rows and columns are those of the grid
            outputs = {name: np.moveaxis(y, class_axis(y, metadata), -1) for name, y in outputs.items()}
        write_arrays(job.target, outputs, job.format)
    except InputError as error:
        raise InputError(f"{job.source}: {error}") from None
    return ()


def _write_answers(
    job: Job, text_format: AnswerFormat, outputs: Arrays, metadata: Metadata, options: ResultOptions
) -> tuple[Answer, ...]:
    top = metadata.outputs if options.probabilities else options.top or 1
    answers = tuple(answer for name, y in outputs.items() for answer in decode(y, metadata, top, name))
    if job.target != STDIO:
        document = AnswerDocument(text_format, metadata, options, named=False)
        write_text(job.target, document.render([(job.source, answers)]))
    return answers
