"""Which files `mdlstm infer` takes, and where the result of each goes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.arrays import STDIO
from mdlstm_tk.runtime.io.formats import FORMATS, READABLE, Format, suffix_of

ANSWERS: dict[str, Format] = {"classify": "txt", "transcribe": "txt", "segment": "png"}
"""By kind of task, the format of what its models' outputs say: labels, texts, masks."""


class Job(NamedTuple):
    """One file: where it is, where its result goes, and in what format."""

    source: str
    target: str
    form: Format


def plan_jobs(inputs: Sequence[str], output: str | None, form: Format | None) -> tuple[list[Job], int]:
    """The job of each input file and of each readable file below each input folder.

    Below folders, files are taken in order of their names; links to folders, hidden files, the output
    folder and results (`*.out.*`) are left out. The result of x.npy is x.out.npy, beside it or at the
    same place below `output`; without `form`, a `.npz` gives a `.npz` and all else a `.npy`.

    Args:
        inputs: files and folders, or "-".
        output: a file for one input file, a folder, "-", or None.
        form: of the results.

    Returns:
        The jobs, and how many files below folders are of no readable kind.

    Raises:
        InputError: there is nothing to do, or a result would be written over an input or another result.
    """
    if len(inputs) > 1 and STDIO in inputs:
        raise InputError("- (stdin) cannot be mixed with other files")
    if len(inputs) == 1 and not os.path.isdir(inputs[0]):
        jobs = [_one(inputs[0], output, form)]
        _check_apart(jobs)
        return jobs, 0
    if output == STDIO:
        raise InputError("-o - takes one file; give a folder for several")
    if output is not None and os.path.isfile(output):
        raise InputError(f"-o {output} is a file, for several inputs; give a folder")
    jobs, others = [], 0
    for name in inputs:
        if not os.path.isdir(name):
            below = os.path.basename(name)
            jobs.append(_job(name, name if output is None else os.path.join(output, below), form))
            continue
        for path in _walk(name, output):
            if _is_result(path):
                continue
            if suffix_of(path) not in READABLE:
                others += 1
            else:
                place = (
                    path if output is None else os.path.join(output, path.removeprefix(name).lstrip(os.sep))
                )
                jobs.append(_job(path, place, form))
    if not jobs:
        rest = f", only {others} of other kinds" if others else ""
        raise InputError(
            f"there is no file to run in {', '.join(inputs)}{rest}; those are {', '.join(READABLE)}"
        )
    _check_apart(jobs)
    return jobs, others


def for_answers(jobs: Sequence[Job], kind: str | None, output: str | None) -> list[Job]:
    """The same jobs, planned without a format, for a model of that kind of task.

    One that classifies, segments or transcribes gives what its numbers say, see `ANSWERS`; unless the
    name in `output` asks for another format. Texts without a place go to stdout.

    Raises:
        InputError: as in `plan_jobs`.
    """
    form = ANSWERS.get(kind or "")
    if form is None or (output is not None and suffix_of(output) and jobs[0].target == output):
        return list(jobs)
    changed = []
    for job in jobs:
        target = job.target
        if form == "txt" and output is None:
            target = STDIO
        elif target not in (STDIO, output):
            target = f"{os.path.splitext(target)[0]}.{form}"
        changed.append(Job(job.source, target, form))
    _check_apart(changed)
    return changed


def _one(source: str, output: str | None, form: Format | None) -> Job:
    """The job of an input file that is the only one."""
    if output is None and source != STDIO:
        return _job(source, source, form)
    output = output or STDIO
    if output != STDIO and (os.path.isdir(output) or output.endswith(os.sep)):
        name = "stdin" if source == STDIO else os.path.basename(source)
        return _job(source, os.path.join(output, name), form)
    suffix = suffix_of(output)[1:]
    if form is None and suffix:
        form = next((known for known in FORMATS if known == suffix), None)
        if form is None:
            raise InputError(
                f"-o {output} is of no kind that can be written; give --format {'|'.join(FORMATS)}"
            )
    return _job(source, source, form)._replace(target=output)


def _job(source: str, place: str, form: Format | None) -> Job:
    if form is None:
        form = "npz" if suffix_of(source) == ".npz" else "npy"
    return Job(source, f"{os.path.splitext(place)[0]}.out.{form}", form)


def _walk(folder: str, output: str | None) -> Iterator[str]:
    """Files below a folder, but for hidden ones and those in `output`, in a fixed order."""
    left_out = None if output is None else os.path.realpath(output)
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
        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        folders += [path for path in reversed(below) if os.path.realpath(path) != left_out]


def _is_result(path: str) -> bool:
    return suffix_of(os.path.splitext(path)[0]) == ".out"


def _check_apart(jobs: list[Job]) -> None:
    """Make sure that each result has a place of its own, which is no input's.

    Raises:
        InputError: names the inputs that are in each other's way.
    """
    folder = cache(os.path.realpath)

    def place(path: str) -> str:
        return os.path.normcase(os.path.join(folder(os.path.dirname(path)), os.path.basename(path)))

    inputs = {place(job.source) for job in jobs if job.source != STDIO}
    taken: dict[str, str] = {}
    for job in jobs:
        if job.target == STDIO:
            continue
        key = place(job.target)
        if key in inputs:
            raise InputError(f"the result of {job.source} would be written over the input {job.target}")
        if key in taken:
            raise InputError(
                f"several inputs would be written to {job.target}: {taken[key]} and {job.source}; "
                "run them one after the other with different -o, each kind for itself: *.png"
            )
        taken[key] = job.source
