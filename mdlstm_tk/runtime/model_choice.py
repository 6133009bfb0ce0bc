"""Choose among the models of a folder by their metadata: for each file, one that takes its grids."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import Argument, InputError, Message
from mdlstm_tk.runtime.batching import CHUNK_BYTES, Result, grids_of
from mdlstm_tk.runtime.io.npy import STDIO
from mdlstm_tk.runtime.io.readers import InputFile, read_input
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.model_discovery import read_metadata
from mdlstm_tk.runtime.shapes import Grid, Shapes

OF_A_TASK = (  # what models must share that answer one call
    *("kind", "layout", "channels", "outputs", "output_names", "classes", "mask_values", "mask_palette"),
    *("preprocessing", "required_inputs"),
)
OF_A_RUN = ("task", "user_data")  # and these, which networks without a run do not name


class Candidate(NamedTuple):
    """A model, and what its file says."""

    path: Path
    metadata: Metadata

    @property
    def is_specific(self) -> int:
        """How little else the model takes: a grid of its own rather than any, and no padded one."""
        fixed = sum(extent is not None for extent in self.metadata.extents)
        return 2 * fixed - ("sizes" in self.metadata.inputs)

    def takes(self, grids: Sequence[Grid]) -> bool:
        """True if the model takes each of these grids."""
        shapes = Shapes(self.metadata)
        return all(shapes.takes(grid) for grid in grids)


class FileReader:
    """Reads files as `read_input` does. What `peek` has read is kept for the next call, up to a bounded
    size in all."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[str, InputFile] = {}
        self._bytes_left = CHUNK_BYTES

    def __call__(self, source: str) -> InputFile:
        return self._kept.pop(source, None) or read_input(source, self._max_bytes)

    def peek(self, source: str) -> InputFile:
        """Read a file that will be read once more; standard input is always kept."""
        file = self(source)
        size = sum(array.nbytes for array in file.arrays.values())
        if size <= self._bytes_left or source == STDIO:
            self._bytes_left -= size
            self._kept[source] = file
        return file


def read_candidates(models: Sequence[Path], max_bytes: int) -> list[Candidate]:
    """The models and what their files say, the newest first.

    Args:
        models: what `find_models` returned; one that cannot be read is left out with a warning.
        max_bytes: maximum size in bytes of a file.

    Raises:
        InputError: no model can be read, or they are of several tasks.
    """
    found: list[Candidate] = []
    errors: list[InputError] = []
    for path in reversed(models):
        try:
            found.append(Candidate(path, read_metadata(path, max_bytes)))
        except InputError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    for each in errors:
        warnings.warn(Message("a model is left out: ", each), stacklevel=3)
    first, *others = found
    for other in others:
        are_of_runs = None not in (first.metadata.task, other.metadata.task)
        for name in (*OF_A_TASK, *(OF_A_RUN if are_of_runs else ())):
            value, other_value = getattr(first.metadata, name), getattr(other.metadata, name)
            if value != other_value:
                raise InputError(
                    f"{other.path} and {first.path} are models of two tasks, whose {name} is "
                    f"{other_value!s:.40} and {value!s:.40}; choose one with ",
                    Argument("model"),
                )
    return found


def choose_models(
    candidates: Sequence[Candidate], grids: Mapping[str, Sequence[Grid]]
) -> dict[str, Candidate | None]:
    """The model for each file: one that takes all of them, if there is one, otherwise the first that takes
    the grids of the file, otherwise None.

    A model for the grid alone comes before one for any grid, and then the newest. Where the grids of a file
    are unknown, because it is a document or cannot be read, models for any grid come first.

    Args:
        candidates: what `read_candidates` returned.
        grids: extents of the grids in each file; none if they are unknown.
    """
    sign = -1 if grids and all(grids.values()) else 1
    ranked = sorted(candidates, key=lambda each: sign * each.is_specific)  # stable
    for candidate in ranked:
        if all(map(candidate.takes, grids.values())):
            return dict.fromkeys(grids, candidate)
    return {
        name: next((candidate for candidate in ranked if candidate.takes(each)), None)
        for name, each in grids.items()
    }


def jobs_by_model(
    candidates: Sequence[Candidate], jobs: Sequence[Job], reader: FileReader
) -> tuple[dict[Path, list[Job]], list[Result]]:
    """The jobs of each model, and the results of those that no model takes. The grids of documents are
    unknown until their samples are cut out."""
    interfaces = {each.metadata.inputs: each.metadata for each in candidates}  # a file may fit one by names
    grids: dict[str, list[Grid]] = {job.source: [] for job in jobs}
    for source in dict.fromkeys(job.source for job in jobs if not job.documents):
        with suppress(InputError), warnings.catch_warnings():  # the run will name it
            warnings.simplefilter("ignore")
            file = reader.peek(source)
            for metadata in interfaces.values():
                grids[source] += grids_of(file, metadata)
    choice = choose_models(candidates, grids)
    by_model: dict[Path, list[Job]] = {}
    refused, ndim = [], candidates[0].metadata.ndim
    for job in jobs:
        model = choice[job.source]
        if model is None and any(len(grid) != ndim or 0 in grid for grid in grids[job.source]):
            model = candidates[0]  # which says what is wrong with the shape
        if model is None:
            refused.append(Result(job, _refusal(job.source, grids[job.source], candidates)))
        else:
            by_model.setdefault(model.path, []).append(job)
    return by_model, refused


def _refusal(source: str, grids: Sequence[Grid], candidates: Sequence[Candidate]) -> Message:
    sizes = ", ".join(dict.fromkeys(map(format_size, grids)))
    models = ", ".join(
        f"{each.path.name} takes {format_size(each.metadata.extents)}" for each in candidates
    )
    return Message(
        f"{source} has the grid {sizes}, which no model in {candidates[0].path.parent} takes ({models}); ",
        *Shapes(candidates[0].metadata).advice_for(tuple(grids[0])),
    )
