"""Turn the outputs of a network into what its task asks for: answers, masks and probabilities.

>>> session = Session("digits.onnx")
>>> decode(session(x), session.metadata, top=3)[0].probabilities
(('7', 0.93), ('1', 0.05), ('9', 0.01))

One document holds the answers for any number of files.

txt    A line for each sample. Its fields are separated by tabs: the file (if there are several), the array
       (of a .npz), and those of `Answer.fields`: mostly its text. Each field is escaped as by
       `mdlstm_tk._util.text.text_field`, and `text_of_field` returns the original.
tsv    As txt, with the file in each line, relative to the table's folder. Only control characters are
       escaped. `mdlstm train` reads it as labels.tsv.
csv    A table with a heading, as Python's csv module and spreadsheets read it (RFC 4180). The names of
       files and arrays are escaped as in txt, of answers only control characters. A field may begin with
       "=": see docs/security.md.
json   A list of objects in UTF-8, with escapes for control characters.
"""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import counted, printable, text_field, to_json
from mdlstm_tk.errors import Argument, InputError, MDLSTMError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.answer import Answer as Answer
from mdlstm_tk.kinds.kind import Width
from mdlstm_tk.kinds.options import fit_options
from mdlstm_tk.runtime.combinations import written_as
from mdlstm_tk.runtime.io import Format
from mdlstm_tk.runtime.io.npy import STDIO, Array, check_real, open_output, warn_if_not_finite
from mdlstm_tk.runtime.io.readers import Arrays
from mdlstm_tk.runtime.io.writers import write_arrays, write_mask
from mdlstm_tk.runtime.jobs import LABELS_ONLY, Content, Job, ResultOptions
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.postprocessing import check_scores, class_axis
from mdlstm_tk.runtime.shapes import Shapes, as_array, covered_width


@checked
def decode(
    y: Array | Mapping[str, Array],
    metadata: Metadata,
    array: str | None = None,
    *,
    width: float | None = None,
    sizes: Any = None,
    **of_kind: Any,
) -> Any:
    """Decode the output of a network by the kind of its task.

    Args:
        y: what `Session` returned, with or without a batch axis; of several outputs the first one counts.
        metadata: of the model.
        array: name of the array, which the answers repeat.
        width: pixels that the columns of y cover, where its steps count as columns. None: places are in
            steps.
        sizes: valid extents of padded samples, (N, D), as the model got them. A density that takes sizes
            needs them where y has the grid of the model; no other model takes them.
        **of_kind: options of the kind, as for `infer_paths`: of a classifier `top`, the number of classes
            to return with their probabilities.

    Returns:
        A list of one `Answer` per sample for kinds with such. For "segment" a mask, (H, W) or (N, H, W), of
        the values that the classes have in the masks of the training data. For other kinds y.

    Raises:
        MDLSTMError: y has another shape than the metadata say.
        InputError: y holds NaN or infinity where it should give one answer, sizes are missing, not needed
            or wrong, or an option is not one of this kind or invalid.
    """
    kind, of_kind = kind_named(metadata.kind), fit_options("decode", of_kind)
    pixels = None if width is None else (width, width)
    for name in of_kind.keys() - kind.takes.keys():
        raise InputError(Argument(name), f" is no option of models of kind {metadata.kind}")
    for option in kind.options:
        if option.of_documents and option.name in of_kind:
            raise InputError(Argument(option.name), " is for the documents that infer_paths reads")
    options = kind.prepare(ResultOptions(of_kind=of_kind), metadata)
    if width is not None and not 0 < width < inf:
        raise InputError(f"width must be a positive number of pixels, got {width}")
    if isinstance(y, Mapping):
        first = metadata.output_names[0]
        if first not in y:
            raise InputError(f"y holds {', '.join(map(str, y)) or 'nothing'}, expected the output {first}")
        y = y[first]
    if not (kind.counts_positions and "sizes" in metadata.inputs):
        if sizes is not None:
            raise InputError("sizes are for outputs of densities that take sizes; leave them out")
        return _decode(y, metadata, array, options, pixels)
    shapes = Shapes(metadata)
    batch = shapes.with_axes(as_array(y, "y"), "y")
    if sizes is None:
        if shapes.has_grid(shapes.grid(batch.samples)):
            raise InputError(
                "y may be that of padded samples, and answers depend on their extents; give the sizes that "
                "the model got, too"
            )
        return _decode(y, metadata, array, options, pixels)
    parts = shapes.valid_parts(batch.samples, sizes)
    answers = [_decode(part, metadata, array, options, pixels)[0] for part in parts]
    if not batch.has_batch_axis:
        return answers
    return [replace(answer, sample=k) for k, answer in enumerate(answers)]


def _decode(
    y: Array,
    metadata: Metadata,
    array: str | None = None,
    options: ResultOptions = LABELS_ONLY,
    width: Width | None = None,
) -> Any:
    kind = kind_named(metadata.kind)
    if not kind.answers:
        return y
    y = as_array(y, "y")
    check_real(y.dtype, "y")
    if not kind.fits(y, metadata):  # the graph of a model may leave its shape open
        raise MDLSTMError(
            f"the model returned shape {y.shape}, expected {counted(metadata.outputs, 'output')} as it is "
            f"of kind {metadata.kind}; export it again"
        )
    return kind.decode(y, metadata, array, options, width)


def write_decoded(
    job: Job,
    outputs: Arrays,
    metadata: Metadata,
    options: ResultOptions,
    widths: Mapping[str | None, tuple[int, int]],
) -> tuple[Answer, ...]:
    """Write the outputs for a file in any format; see `mdlstm_tk.runtime.batching.write_results`."""
    if job.content == "lines":
        answers: list[Answer] = []
        for name, y in outputs.items():
            known = metadata.columns_per_step
            width = covered_width(y.shape[-2], *widths[name], known) if name in widths else None
            answers += _decode(y, metadata, name, options, width)
        write_answers(job, answers, metadata, options)
        return tuple(answers)
    content = job.content
    outputs = {name: numbers_of(y, metadata, content) for name, y in outputs.items()}
    if content == "answers" and job.format == "png" and len(outputs) == 1:
        values = metadata.mask_values or range(metadata.outputs)
        mask, palette = next(iter(outputs.values())), metadata.mask_palette
        write_mask(job.target, mask, values, palette, replace=job.replace)
        return ()
    if content == "outputs" and job.format in (
        "png",
        "csv",
    ):  # their rows and columns are those of the grid
        outputs = {name: np.moveaxis(y, class_axis(y, metadata), -1) for name, y in outputs.items()}
    write_arrays(job.target, outputs, job.format, replace=job.replace)
    warn_if_not_finite(job.source, *outputs.values())
    return ()


def numbers_of(y: Array, metadata: Metadata, content: Content) -> Array:
    """The numbers for an output of a model, or for a part of its grid."""
    if content == "probabilities":
        axis = class_axis(y, metadata)
        check_scores(y, axis)
        return written_as(metadata).scores_to_probabilities(y, axis)
    return np.asarray(_decode(y, metadata)) if content == "answers" else y


def write_answers(job: Job, answers: Sequence[Answer], metadata: Metadata, options: ResultOptions) -> None:
    """Write the answers for a file as a document of their own, if they go to a file."""
    if job.target != STDIO:
        document = AnswerDocument(job.format, metadata, options, folder=Path(job.target).parent)
        with open_output(job.target, replace=job.replace) as file:
            file.write(document.render([(job.source, answers)]).encode())


class AnswerDocument:
    """Renders answers as one document: `begin()`, then `add()` or `add_in_order()` for each file, then
    `end()`.

    If `is_named`, each line of a txt document begins with the name of its file. The names of files in a
    tsv document are relative to the folder. `jobs` are all files, for `add_in_order`.
    """

    def __init__(
        self,
        file_format: Format,
        metadata: Metadata,
        options: ResultOptions,
        *,
        is_named: bool = False,
        folder: Path = Path(),
        jobs: Sequence[Job] = (),
    ) -> None:
        self._format, self._metadata, self._options = file_format, metadata, options
        self._is_named, self._folder = is_named, folder
        self._is_empty = True
        self._waiting = deque(jobs)
        self._answers: dict[Job, list[Sequence[Answer]]] = {}  # several if a file was given several times

    def begin(self) -> str:
        """The text before the first answer."""
        if self._format == "csv":
            blank = kind_named(self._metadata.kind).blank(self._metadata, self._options)
            return _csv_line(self._columns("", blank))
        return "[" if self._format == "json" else ""

    def add(self, source: str, answers: Sequence[Answer]) -> str:
        """The answers for one file."""
        if self._format in ("txt", "tsv"):
            return "".join(self._line(source, answer) for answer in answers)
        if self._format == "csv":
            return "".join(_csv_line(self._columns(source, answer).values()) for answer in answers)
        parts = []
        for answer in answers:
            value = to_json({"file": source, **answer.as_dict()})
            parts.append(f"{'' if self._is_empty else ','}\n{value}")
            self._is_empty = False
        return "".join(parts)

    def add_in_order(self, job: Job, answers: Sequence[Answer]) -> str:
        """The text that can follow now: the answers for a job wait for those for all jobs before it."""
        self._answers.setdefault(job, []).append(answers)
        text = ""
        while self._waiting and self._answers.get(self._waiting[0]):
            first = self._waiting.popleft()
            text += self.add(first.source, self._answers[first].pop())
        return text

    def end(self) -> str:
        """The text after the last answer."""
        return "\n]\n" if self._format == "json" else ""

    def render(self, files: Iterable[tuple[str, Sequence[Answer]]]) -> str:
        """The whole document for (file, its answers)."""
        return self.begin() + "".join(self.add(*item) for item in files) + self.end()

    def _line(self, source: str, answer: Answer) -> str:
        """A line of a txt or tsv document."""
        fields = [source] if self._is_named else []
        if self._format == "tsv":
            fields = ["-" if source == STDIO else _relative(source, self._folder)]
        fields += [] if answer.array is None else [answer.array]
        fields += answer.fields(self._options)
        escape = text_field if self._format == "txt" else printable
        return "\t".join(map(escape, fields)) + "\n"

    def _columns(self, source: str, answer: Answer) -> dict[str, Any]:
        """The columns of a csv document for one answer."""
        sample = "" if answer.sample is None else answer.sample
        columns: dict[str, Any] = {
            "file": text_field(source),
            "array": text_field(answer.array or ""),
            "sample": sample,
        }
        return columns | answer.columns(self._options, self._metadata.classes or ())


def _relative(source: str, folder: str | Path) -> str:
    """The path of a file as it is found from a folder, of which each may lie behind links."""
    try:
        path = os.path.relpath(source, folder)
        if os.pardir not in (*path.split(os.sep), *source.split(os.sep)):
            return path
        # The parent of the folder that a link leads to is not the folder that the link lies in.
        parent = os.path.relpath(os.path.realpath(os.path.dirname(source)), os.path.realpath(folder))
        return os.path.normpath(os.path.join(parent, os.path.basename(source)))
    except ValueError:  # on another drive of Windows
        return os.path.abspath(source)


def _csv_line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    # Class names of a stranger's model may hold commands for a terminal.
    texts = (printable(value) if isinstance(value, str) else value for value in values)
    csv.writer(buffer, lineterminator="\n").writerow(texts)
    # A damaged model may name a class by half of a surrogate pair, which no file can hold.
    return buffer.getvalue().encode(errors="backslashreplace").decode()
