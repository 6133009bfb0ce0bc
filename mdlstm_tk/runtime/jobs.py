"""Plan which files an inference reads and where it writes the result of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.answers import ANSWER_KINDS, AnswerFormat, answer_format
from mdlstm_tk.runtime.io.arrays import STDIO
from mdlstm_tk.runtime.io.files import ensure_writable
from mdlstm_tk.runtime.io.readers import READABLE, suffix_of
from mdlstm_tk.runtime.io.writers import FORMATS, Format
from mdlstm_tk.runtime.metadata import Metadata


class Job(NamedTuple):
    """One file to run.

    Attributes:
        source: path of the input, or "-" for standard input.
        target: path of the result, or "-" for standard output.
        format: file format of the result.
    """

    source: str
    target: str
    format: Format


class LeftOut(NamedTuple):
    """How many files below input folders are not run.

    Attributes:
        unsupported: files whose type cannot be read.
        outside: symbolic links to files outside the folder, which a stranger's folder may hold.
    """

    unsupported: int = 0
    outside: int = 0


def is_single_file(inputs: Sequence[str]) -> bool:
    """Whether the inputs are one file or "-", rather than several files or a folder."""
    return len(inputs) == 1 and not _is_folder(inputs[0])


def _is_folder(path: str) -> bool:
    """Whether a path is a folder, but for an array of zarr, which is one as well."""
    return os.path.isdir(path) and suffix_of(path.rstrip(os.sep)) != ".zarr"


def plan_jobs(
    inputs: Sequence[str], output: str | None, output_format: Format | None
) -> tuple[list[Job], LeftOut]:
    """One job for each input file and for each readable file below each input folder.

    Files in folders are ordered by name. Links to folders, links to files outside the folder, hidden files,
    the output folder and earlier results (`*.out.*`) are ignored. The result of x.npy is x.out.npy, beside
    it or at the same relative path below `output`.

    Args:
        inputs: files and folders, or "-" alone.
        output: a file (for one input file), a folder, "-" or None.
        output_format: format of the results. None: by the suffix of `output`, else npz for `.npz` inputs
            and npy for all others.

    Returns:
        The jobs, and how many files below folders are left out.

    Raises:
        InputError: there is nothing to run, or `output` does not suit the inputs.
    """
    if len(inputs) > 1 and STDIO in inputs:
        raise InputError("- (stdin) must be the only input; run files separately")
    if is_single_file(inputs):
        return [_single_job(inputs[0], output, output_format)], LeftOut()
    if output == STDIO:
        raise InputError("-o - takes the result of one file, got several inputs; give a folder")
    names_file = output is not None and (os.path.exists(output) or suffix_of(output)[1:] in FORMATS)
    if names_file and not os.path.isdir(output or ""):
        raise InputError(f"-o {output} is a file, expected a folder for the results of several inputs")
    jobs, unsupported, outside = [], 0, 0
    for name in inputs:
        if not _is_folder(name):
            name = name.rstrip(os.sep)
            stem_path = name if output is None else os.path.join(output, os.path.basename(name))
            jobs.append(_job(name, stem_path, output_format))
            continue
        root = Path(name).resolve()
        for path in _walk(name, output):
            if _is_result(path):
                continue
            if os.path.islink(path) and not Path(path).resolve().is_relative_to(root):
                outside += 1
                continue
            if suffix_of(path) not in READABLE:
                unsupported += 1
                continue
            relative = path.removeprefix(name).lstrip(os.sep)
            stem_path = path if output is None else os.path.join(output, relative)
            jobs.append(_job(path, stem_path, output_format))
    if not jobs:
        found = f", only {unsupported} of other types" if unsupported else ""
        found += f", {outside} links to files outside it" if outside else ""
        raise InputError(f"no input file in {', '.join(inputs)}{found}; expected {', '.join(READABLE)}")
    return jobs, LeftOut(unsupported, outside)


def document_of(inputs: Sequence[str], output: str | None) -> AnswerFormat | None:
    """The format of the one document that the answers for several inputs go to; None if there is none.

    `output` asks for one by the suffix .txt, .csv or .json, unless it is a folder.
    """
    if output is None or is_single_file(inputs) or os.path.isdir(output):
        return None
    return answer_format(suffix_of(output)[1:])


def jobs_for_model(
    jobs: Sequence[Job],
    metadata: Metadata,
    output: str | None,
    output_format: Format | None,
    probabilities: bool,
) -> list[Job]:
    """Change planned jobs so that they suit the model.

    Unless a format was asked for, masks become PNG files, several outputs `.npz` files, and labels and
    texts lines of text. Labels and texts go to standard output if `output` is None. Tiled models write
    masks as TIFF.

    Args:
        jobs: the jobs that `plan_jobs(inputs, output, output_format)` returned.
        metadata: of the model.
        output: as for `plan_jobs`.
        output_format: as for `plan_jobs`.
        probabilities: whether probabilities are wanted; without a format they are written as numbers.

    Raises:
        InputError: a result would overwrite an input or another result, or only tiled models write its
            format.
    """
    is_tiled = metadata.form == "tiles"
    if jobs[0].format in ("tif", "zarr") and not is_tiled:
        raise InputError(
            f"only tiled models write {jobs[0].format}; make one with: mdlstm export RUN --form tiles"
        )
    names_file = output is not None and suffix_of(output) != "" and jobs[0].target == output
    default: Format | None = None
    if output_format is None and not names_file:
        if len(metadata.output_names) > 1:
            default = "npz"
        elif metadata.kind in ("segment", *ANSWER_KINDS) and not probabilities:
            masks: Format = "tif" if is_tiled else "png"
            default = masks if metadata.kind == "segment" else "txt"
    changed = []
    for job in jobs:
        target, file_format = job.target, default or job.format
        if metadata.kind in ANSWER_KINDS and output is None and answer_format(file_format):
            target = STDIO
        elif target not in (STDIO, output):
            target = f"{os.path.splitext(target)[0]}.{file_format}"
        changed.append(Job(job.source, target, file_format))
    _check_targets(changed)
    return changed


def remaining_jobs(jobs: Sequence[Job], skip_existing: bool, force: bool) -> list[Job]:
    """The jobs that are still to run.

    Args:
        jobs: the planned jobs.
        skip_existing: leave out jobs whose result exists.
        force: allow existing results to be replaced.

    Raises:
        InputError: a result exists and may be neither kept nor replaced, or its path is not a file.
    """
    remaining = []
    for job in jobs:
        if job.target != STDIO:
            is_array = os.path.isfile(os.path.join(job.target, "zarr.json"))  # zarr writes a folder
            if skip_existing and (os.path.isfile(job.target) or is_array):
                continue
            if is_array and not force:
                raise InputError(
                    f"{job.target} exists; give another name with -o, or --force to replace it"
                )
            if not is_array:
                ensure_writable(Path(job.target), force)
        remaining.append(job)
    return remaining


def _single_job(source: str, output: str | None, output_format: Format | None) -> Job:
    """The job of the only input file, whose output may be a file, a folder or standard output."""
    source = source.rstrip(os.sep) or source
    if output is None and source != STDIO:
        return _job(source, source, output_format)
    output = output or STDIO
    if output != STDIO and (_is_folder(output) or output.endswith(os.sep)):
        name = "stdin" if source == STDIO else os.path.basename(source)
        return _job(source, os.path.join(output, name), output_format)
    suffix = suffix_of(output)[1:]
    if output_format is None and suffix:
        suffix = "tif" if suffix == "tiff" else suffix
        output_format = next((known for known in FORMATS if known == suffix), None)
        if output_format is None:
            raise InputError(
                f"unsupported file type '.{suffix}' of -o {output}; give --format {'|'.join(FORMATS)}"
            )
    return _job(source, source, output_format)._replace(target=output)


def _job(source: str, stem_path: str, output_format: Format | None) -> Job:
    """The job whose result is `stem_path` with its suffix replaced by `.out.FORMAT`."""
    if output_format is None:
        output_format = "npz" if suffix_of(source) == ".npz" else "npy"
    return Job(source, f"{os.path.splitext(stem_path)[0]}.out.{output_format}", output_format)


def _walk(folder: str, output: str | None) -> Iterator[str]:
    """Files below a folder in a fixed order, without hidden ones and those below `output`."""
    excluded = None if output is None else os.path.realpath(output)
    folders = [folder]
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"cannot read the folder {parent}: {error.strerror or error}") from None
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        yield from (entry.path for entry in entries if entry.is_file())
        children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        folders += [path for path in reversed(children) if os.path.realpath(path) != excluded]


def _is_result(path: str) -> bool:
    return suffix_of(os.path.splitext(path)[0]) == ".out"


def _check_targets(jobs: list[Job]) -> None:
    """Check that every result has a path of its own, and that none is the path of an input.

    Raises:
        InputError: names the inputs that collide.
    """
    real_folder = cache(os.path.realpath)

    def canonical(path: str) -> str:
        folder = real_folder(os.path.dirname(path))
        return os.path.normcase(os.path.join(folder, os.path.basename(path)))

    inputs = {canonical(job.source) for job in jobs if job.source != STDIO}
    source_of_target: dict[str, str] = {}
    for job in jobs:
        if job.target == STDIO:
            continue
        key = canonical(job.target)
        if key in inputs:
            raise InputError(
                f"the result of {job.source} would overwrite the input {job.target}; choose another -o"
            )
        if key in source_of_target:
            raise InputError(
                f"{source_of_target[key]} and {job.source} would both be written to {job.target}; "
                "run them separately with different -o"
            )
        source_of_target[key] = job.source
