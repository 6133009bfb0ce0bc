"""Plan an inference: which files are read, and where and in which format the result of each is written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import TILED_EXPORT, Argument, InputError
from mdlstm_tk.kinds import all_documents, all_kinds, documents_of, kind_named
from mdlstm_tk.kinds.kind import LINES
from mdlstm_tk.runtime.combinations import formats_of, written_as
from mdlstm_tk.runtime.io import (
    FORMATS,
    IMAGE_SUFFIXES,
    READABLE,
    READABLE_IN_TILES,
    STDIO,
    Format,
    suffix_of,
)
from mdlstm_tk.runtime.io.files import ensure_writable
from mdlstm_tk.runtime.io.npy import label_of
from mdlstm_tk.runtime.io.results import is_result
from mdlstm_tk.runtime.metadata import Metadata

if TYPE_CHECKING:
    from mdlstm_tk.kinds.documents import Documents


Content: TypeAlias = Literal["lines", "outputs", "probabilities", "answers"]
"""Content of a result: answers as lines of text, what the network returned, probabilities of classes, or
what else its kind makes of the outputs, such as masks and documents."""


class ResultOptions(NamedTuple):
    """The options of results: `probabilities`, and those that kinds declare, by name; see `infer_paths`."""

    probabilities: bool = False
    of_kind: Mapping[str, Any] = {}


LABELS_ONLY = ResultOptions()


class InputPath(NamedTuple):
    """An input file: its path, or "-" for standard input; where its result lies below an output folder,
    before the suffix is replaced; if it was named, rather than found in a folder; and the documents that an
    image counts as one of."""

    source: str
    relative: str
    is_named: bool = True
    in_image: Documents | None = None

    @property
    def documents(self) -> Documents | None:
        """The documents that the file may be one of, by its suffix or by what came from standard input."""
        return self.in_image or documents_of(self.relative)


class FoundFiles(NamedTuple):
    """The input files; the number of files below folders that cannot be read; and results of earlier
    inferences below folders, which are left out, too."""

    files: list[InputPath]
    left_out: int
    results: list[InputPath]


class Job(NamedTuple):
    """One file to run: the path of the input, or "-" for standard input; that of the result, "-" for
    standard output or for one table of several files; the file format and the content of the result; if it
    may replace a file; where results of the input lie below a folder, before the suffix is replaced; and
    the documents that the input is one of, or None."""

    source: str
    target: str
    format: Format
    content: Content = "outputs"
    replace: bool = True
    relative: str = ""
    documents: Documents | None = None


def is_single_file(inputs: Sequence[str]) -> bool:
    """True if the inputs are one file or "-", rather than several files or a folder."""
    return len(inputs) == 1 and not _is_folder(inputs[0])


def format_of(path: str) -> Format | None:
    """The format that the suffix of a file names."""
    suffix = suffix_of(path)[1:].replace("tiff", "tif")
    return next((name for name in FORMATS if name == suffix), None)


def is_table(output: str) -> bool:
    """True if `output`, for several inputs, is one file for all answers, by its suffix."""
    return format_of(output) in LINES and not os.path.isdir(output)


def find_files(inputs: Sequence[str], output: str | None) -> FoundFiles:
    """The input files, and all readable files and documents below input folders, in the order of their
    names.

    Hidden files and `output` are ignored, and results of earlier inferences left out. Links are followed,
    to each folder once; a warning counts those that lead to no file.

    Raises:
        InputError: there is nothing to run, a folder cannot be read, or `output` is one file for several
            results.
    """
    if len(inputs) > 1 and STDIO in inputs:
        raise InputError("- (stdin) must be the only input; run files separately")
    if output is not None and output != STDIO and not is_single_file(inputs) and not is_table(output):
        is_file = os.path.exists(output) or format_of(output) is not None
        if is_file and not os.path.isdir(output):
            expected = f" is the file {output}, expected a folder for the results of several inputs"
            raise InputError(Argument("output"), expected)
    files, results, left_out, dead = list[InputPath](), list[InputPath](), 0, list[str]()
    for name in inputs:
        if not _is_folder(name):
            path = name.rstrip(os.sep) or name
            files.append(InputPath(path, "stdin" if path == STDIO else os.path.basename(path)))
            continue
        for path, exists in _walk(name, output):
            file = InputPath(path, path.removeprefix(name).lstrip(os.sep), is_named=False)
            documents = file.documents
            is_readable = suffix_of(path) in (*READABLE, ".zarr")
            if not exists:
                dead += [path] if is_readable or documents else []
            elif is_result(path):
                results.append(file)
            elif is_readable or (documents and documents.holds(path)):
                files.append(file)
            else:
                left_out += 1
    if dead:
        text = f"links that lead to no file, left out: {len(dead)}, such as {dead[0]}"
        warnings.warn(text, stacklevel=3)
    if not files:
        counts = [f"{left_out} of other types"] * bool(left_out)
        counts += [f"{counted(len(results), 'result')} of mdlstm infer, which may be named"] * bool(results)
        hint = f", only {' and '.join(counts)}" if counts else ""
        expected = ", ".join((*READABLE, *(f"{each.suffix} of {each.name}s" for each in all_documents())))
        raise InputError(f"no input file in {', '.join(inputs)}{hint}; expected {expected}")
    return FoundFiles(files, left_out, results)


def files_of_form(files: Sequence[InputPath], form: str) -> list[InputPath]:
    """The files that were named, and of those that were found in folders the types that a tiled model reads
    by region, or that any other model reads.

    Raises:
        InputError: there are none.
    """
    suffixes = (each.suffix for each in all_documents())
    readable = READABLE_IN_TILES if form == "tiles" else (*READABLE, *suffixes)
    remaining = [file for file in files if file.is_named or suffix_of(file.source) in readable]
    if not remaining:
        raise InputError(f"{files[0].source} is no input of this model, which reads {', '.join(readable)}")
    return remaining


def files_for(
    kind: str | None,
    files: Sequence[InputPath],
    results: Sequence[InputPath] = (),
    of_kind: Mapping[str, Any] = LABELS_ONLY.of_kind,
) -> tuple[list[InputPath], int]:
    """The files that a model of some kind takes: no documents but its own, and then nothing that belongs to
    these, `results` included; of folders, no targets of training data. And the number of those that are
    left out, but for files that belong to a document. `of_kind` are the options of the kind that are given.

    Raises:
        InputError: there are none.
    """
    own = kind_named(kind).documents
    inputs = [file for file in files if file.is_named or not _holds_targets(file, kind)]
    if files and not inputs:
        raise InputError(f"{files[0].source} holds targets of kind {kind}; to read it as numbers, name it")
    remaining = [file for file in inputs if file.documents in (None, own)]
    if inputs and not remaining:
        source, documents = inputs[0].source, inputs[0].documents
        kinds = ", ".join(each.name for each in all_kinds() if each.documents is documents)
        raise InputError(
            f"{label_of(source)} is a {documents and documents.name}, but the model is of "
            f"{f'kind {kind}' if kind else 'no kind'}; give one of kind {kinds}"
        )
    left_out = len(files) - len(remaining)
    if own is None:
        return remaining, left_out
    are_images = kind_named(kind).has_documents_in_images(of_kind)
    selected, more = own.select(remaining, [file for file in results if file.documents is own], are_images)
    if are_images:
        selected = [
            file._replace(in_image=own) if suffix_of(file.relative) in IMAGE_SUFFIXES else file
            for file in selected
        ]
    return selected, left_out + more


def _holds_targets(file: InputPath, kind: str | None) -> bool:
    """True if a file that was found in a folder holds targets of training data of a kind: it is their
    table, or lies in their folder beside images/."""
    path, depth = Path(file.source), len(Path(file.relative).parts) - 1
    folders = [each for each in [*path.parents][:depth] if each.name == kind_named(kind).target_folder]
    return path.name == kind_named(kind).table or any(
        folder.with_name("images").is_dir() for folder in folders
    )


def plan_jobs(
    files: Sequence[InputPath],
    metadata: Metadata,
    output: str | None = None,
    output_format: Format | None = None,
    options: ResultOptions = LABELS_ONLY,
    *,
    is_single: bool = False,
) -> list[Job]:
    """Decide where and in which format the result of each file is written.

    The result of x.npy is x.out.npy, beside it or at the same relative path below the folder `output`.
    Answers go to standard output if `output` is None. The format is that of the suffix of a file
    `output`, else npz for several outputs, txt for answers, png for masks of images (tif where the
    model is tiled), npz for `.npz` inputs, and npy for all others. So npy and npz hold masks if no format
    was named, and outputs of the network if it was; with probabilities, those of labels and masks. The
    result of a document is one of the same name in the folder `output`, or its answers.
    `is_single`: the only input is a file, rather than a folder.

    Raises:
        InputError: the suffix of `output` names no format, a result would overwrite an input or another
            result, standard output would get several arrays, or the model or the input has no result in its
            format.
    """
    file: str | None = None  # for the only result, or for all answers
    folder: str | None = None  # of the results
    if output not in (None, STDIO):
        is_array = os.path.isfile(os.path.join(output, "zarr.json"))  # by whatever name
        is_folder = (_is_folder(output) and not is_array) or output.endswith(os.sep)
        is_file = not is_folder if is_single else is_table(output)
        file, folder = (output, None) if is_file else (None, output)
    if file is not None and output_format is None:
        output_format = format_of(file)
        if output_format is None and (suffix := suffix_of(file)):
            raise InputError(
                f"unsupported file type '{suffix}' of {file}; name one of {', '.join(FORMATS)} with ",
                Argument("output_format"),
            )
    if output_format in ("tif", "zarr") and metadata.form != "tiles":
        raise InputError(f"only tiled models write {output_format}; make one with: ", TILED_EXPORT)
    jobs = []
    for path in files:
        source, relative = path.source, path.relative
        file_format = output_format or _default_format(path, metadata, options, output)
        documents = path.documents
        content = _content(documents, file_format, metadata, options, is_default=output_format is None)
        if output == STDIO and not is_single and content != "lines":
            one = f" takes answers to several inputs, but {file_format} of one alone; give a folder"
            raise InputError(Argument("output", STDIO), one)
        is_printed = output is None and (source == STDIO or content == "lines")
        if is_printed or output == STDIO or (file is not None and not is_single):
            target = STDIO
        elif file is not None:
            target = file
        else:
            target = source if folder is None else os.path.join(folder, relative)
            if documents is None or file_format != documents.format:
                target = f"{os.path.splitext(target)[0]}.out.{file_format}"
            elif path.in_image:
                target = os.path.splitext(target)[0] + documents.suffix
        jobs.append(Job(source, target, file_format, content, relative=relative, documents=documents))
    _check_targets(jobs, file)
    return jobs


def remaining_jobs(jobs: Sequence[Job], skip_existing: bool, force: bool) -> list[Job]:
    """The jobs that are still to run, which replace what exists if `force` is true."""
    remaining = []
    for job in jobs:
        if job.target != STDIO:
            if skip_existing and os.path.exists(job.target):
                continue
            ensure_writable(Path(job.target), force, job.format == "zarr")
        remaining.append(job._replace(replace=force))
    return remaining


def _is_folder(path: str) -> bool:
    """True for a folder that is not a zarr array."""
    return os.path.isdir(path) and suffix_of(path.rstrip(os.sep)) != ".zarr"


def _default_format(
    path: InputPath, metadata: Metadata, options: ResultOptions, output: str | None
) -> Format:
    source = path.source
    if path.documents:
        return "txt" if output in (None, STDIO) else path.documents.format
    if len(metadata.output_names) > 1:
        return "npz"
    kind = kind_named(metadata.kind)
    if kind.is_printed and (not options.probabilities or "txt" in kind.probabilities):
        return "txt"
    is_image = metadata.ndim == 2 and suffix_of(source) != ".npz"
    own = kind.tile_format if metadata.form == "tiles" else kind.image_format if is_image else None
    if own is not None and own in formats_of(metadata) and not options.probabilities:
        return own
    return "npz" if suffix_of(source) == ".npz" else "npy"


def _content(
    documents: Documents | None,
    file_format: Format,
    metadata: Metadata,
    options: ResultOptions,
    *,
    is_default: bool,
) -> Content:
    """The content of a result in some format; `is_default` if nobody has named the format."""
    kind = written_as(metadata)
    if file_format in LINES and (documents or kind.is_printed):
        return "lines"
    if options.probabilities:
        return "probabilities"
    is_mask = kind.image_format is not None and is_default
    return "answers" if documents or is_mask or file_format in kind.formats else "outputs"


def _walk(folder: str, output: str | None) -> Iterator[tuple[str, bool]]:
    """Files and zarr arrays below a folder in a fixed order, without hidden ones and those in `output`; and
    for each if it exists, which a link may not. Links to folders that lie elsewhere come last."""
    excluded = "" if output is None else os.path.realpath(output)
    excluded_name = os.path.basename(excluded)
    tops, visited = [folder], set[str]()
    for top in tops:  # links to folders are added
        for parent, folders, files in os.walk(top, onerror=_cannot_read):
            names, found = sorted(folders + files), set(folders)
            folders.clear()  # holds those to enter
            real = os.path.realpath(parent)
            if real in visited or (real == excluded and parent != folder):
                continue
            visited.add(real)
            for name in names:
                path = os.path.join(parent, name)
                is_excluded = name == excluded_name and os.path.realpath(path) == excluded
                if name.startswith(".") or is_excluded:
                    continue
                if os.path.isfile(path) or (name in found and suffix_of(name) == ".zarr"):
                    yield path, True
                elif os.path.islink(path):
                    if name in found:
                        tops.append(path)
                    elif not os.path.exists(path):
                        yield path, False
                elif name in found:
                    folders.append(name)


def _cannot_read(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror or error}") from None


def _check_targets(jobs: Sequence[Job], file: str | None) -> None:
    """Check that every result has a path of its own, and that none is the path of an input; `file` may be
    that of all results."""
    real_folder = cache(os.path.realpath)

    def canonical(path: str) -> str:
        if os.path.islink(path):  # the file that it leads to is written
            return os.path.normcase(os.path.realpath(path))
        return os.path.normcase(os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path)))

    inputs = {canonical(job.source) for job in jobs if job.source != STDIO}
    results = [(job.source, job.target) for job in jobs if job.target != STDIO]
    if file is not None and not results:
        results = [("all inputs", file)]
    sources: dict[str, str] = {}
    for source, target in results:
        key = canonical(target)
        if key in inputs:
            raise InputError(
                f"the result of {source} would overwrite the input {target}; choose another place with ",
                Argument("output"),
            )
        if key in sources:
            if canonical(source) == canonical(sources[key]):
                raise InputError(f"the inputs name {source} twice; name it once")
            raise InputError(
                f"{sources[key]} and {source} would both be written to {target}; "
                "run them separately, each with its own ",
                Argument("output"),
            )
        sources[key] = source
