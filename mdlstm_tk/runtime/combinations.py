"""The combinations that an inference takes: kinds of task, options, formats, sources and targets.

`infer_paths` checks every combination by this table before the first run, and the help of `mdlstm infer` is
made from it. It imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.kinds import all_documents, all_kinds, kind_named
from mdlstm_tk.kinds.kind import ARRAYS, LINES, Kind
from mdlstm_tk.runtime.io import STDIO, Format

if TYPE_CHECKING:
    from mdlstm_tk.runtime.jobs import Job
    from mdlstm_tk.runtime.metadata import Metadata

REGIONS: tuple[Format, ...] = ("npy", "zarr", "tif")  # are written tile by tile
GRIDS: tuple[Format, ...] = (*ARRAYS, "json", "csv", "png")


def written_as(metadata: Metadata) -> Kind:
    """The kind as which the results of a model are written: several outputs are numbers."""
    return kind_named(metadata.kind if len(metadata.output_names) == 1 else None)


def formats_of(metadata: Metadata, probabilities: bool = False) -> tuple[Format, ...]:
    """The formats that hold the results of a model for arrays and images."""
    kind, has_grid = written_as(metadata), metadata.window is not None
    is_mask = bool(kind.formats) and not probabilities
    axes = metadata.ndim + (metadata.outputs > 1 and not is_mask)  # of the result for one sample
    if metadata.form == "tiles" and has_grid:
        return REGIONS if metadata.ndim == 2 else REGIONS[:2]  # a TIFF holds images
    if len(metadata.output_names) > 1:
        return ("npz", "json")
    if kind.is_printed:
        return (*LINES, *ARRAYS)
    is_image = metadata.ndim == 2 and (is_mask or metadata.outputs in (1, 3))
    fits = {"csv": axes <= 2 or not has_grid, "png": is_image or not has_grid}
    return tuple(each for each in GRIDS if fits.get(each, True))


def check_jobs(
    metadata: Metadata,
    model: Path,
    jobs: Sequence[Job],
    options: Mapping[str, Any],
    table: Path | None = None,
) -> None:
    """Check that each result can be written, and that each option has an effect on it.

    Args:
        metadata, model: of the model, and its path.
        jobs: all that are planned.
        options: arguments of `infer_paths`, and `json` if the caller prints JSON on standard output; those
            that are not given are None or False.
        table: the one file for the answers to several inputs.

    Raises:
        InputError: two things do not go together.
    """
    kind, given = (
        written_as(metadata),
        {name for name, value in options.items() if value is not None and value is not False},
    )
    model_kind = f"{model} is of {f'kind {metadata.kind}' if metadata.kind else 'no kind'}"
    if len(metadata.output_names) > 1:
        model_kind += f" with the outputs {', '.join(metadata.output_names)}"
    output, output_format = Argument("output"), Argument("output_format")
    own, is_tiled = kind_named(metadata.kind), metadata.form == "tiles"
    if table and not kind.is_printed:
        kinds = ", ".join(each.name for each in all_kinds() if each.is_printed)
        expected = (
            f" is the file {table}, expected a folder for the results of several inputs; one file takes"
        )
        raise InputError(output, expected, f" answers of kind {kinds} with one output, but {model_kind}")
    for job in jobs:
        file_format, is_stdout = job.format, job.target == STDIO
        document = job.documents
        if is_tiled and (job.source == STDIO or document):
            raise InputError(f"a tiled model reads .npy, .zarr and TIFF by region, not {job.source}")
        if is_tiled and is_stdout and metadata.window is not None:
            raise InputError("a tiled model writes files by region, not to stdout; give a file as ", output)
        held = document.formats if document else formats_of(metadata, "probabilities" in given)
        takes = own.takes if document or kind.answers else {}
        for name in dict.fromkeys(name for each in all_kinds() for name in each.takes):
            option = Argument(name, True if name == "probabilities" else None)
            if name in given and name not in takes:
                kinds = ", ".join(each.name for each in all_kinds() if name in each.takes)
                raise InputError(
                    option, f" needs a model of kind {kinds} with one output, but {model_kind}"
                )
            showing = [each for each in takes.get(name, ()) if each in held]
            if name in given and file_format not in showing:
                shows = f" shows in {', '.join(showing)}, got {file_format}; choose one with "
                raise InputError(option, shows, output_format)
        if file_format not in held:
            text = f"{model_kind}, whose results {', '.join(held)} can hold, got {file_format}"
            raise InputError(text, "; choose one with ", output_format)
        if "batch_size" in given and document:
            whole = f"{job.source} is a {document.name}, which runs as a whole, without "
            raise InputError(whole, Argument("batch_size"))
        if "json" in given and is_stdout and not (job.content == "lines" and "output_format" not in given):
            text = " prints a document on stdout, where the result goes, too; leave one out, or give "
            raise InputError(Argument("json", True), text, output)
    if own.documents and not any(job.documents for job in jobs):
        for name in (option.name for option in own.options if option.of_documents and option.name in given):
            text = f" is for {own.documents.name}s, but {jobs[0].source} is none"
            raise InputError(Argument(name), text)
    for name in ("skip_existing",) if is_tiled else ("skip_existing", "force"):
        if name in given and not table and all(job.target == STDIO for job in jobs):
            text = " is for results in files, but these go to stdout; leave it out, or give "
            raise InputError(Argument(name, True), text, output)


def describe_option(name: str) -> str:
    """The kinds that take an option, with the formats in which it shows, for the help."""
    takes = [(kind.name, kind.takes[name]) for kind in all_kinds() if name in kind.takes]
    return "For kind " + "; ".join(f"{kind} as {', '.join(formats)}" for kind, formats in takes)


def describe_formats() -> str:
    """The formats that hold what models give, for the help; kinds with the same formats stand together."""
    kinds_of: dict[tuple[Format, ...], list[str]] = {}
    for kind in all_kinds():
        if kind.answers:
            formats = tuple(each for each in kind.formats if each in (*LINES, *GRIDS))  # of whole grids
            kinds_of.setdefault(formats, []).append(kind.name)
    held = [(formats, f"answers of kind {', '.join(names)}") for formats, names in kinds_of.items()]
    held += [(each.formats, f"{each.name}s") for each in all_documents()]
    without_answers = tuple(each for each in GRIDS if each not in ARRAYS)
    held += [(ARRAYS, "numbers"), (without_answers, "those of a kind without answers")]
    held += [(REGIONS, "grids of a tiled model")]
    return "; ".join(f"{', '.join(formats)} for {words}" for formats, words in held)


def describe_documents() -> str:
    """The documents that models of some kinds read, for the help."""
    return "".join(f"{each.name}s in {each.types}, " for each in all_documents())
