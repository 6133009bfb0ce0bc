"""The kind `regress`: numbers for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.answer import Answer
from mdlstm_tk.kinds.kind import LINES, Kind, Width

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.runtime.metadata import Metadata

RESERVED = ("file", "array", "sample", "error")  # what documents say about each sample
DIGITS = 9  # significant ones, which identify a float32


@dataclass(frozen=True)
class Numbers(Answer):
    """The numbers of a sample.

    Attributes:
        numbers: (name, number) of each column.
    """

    numbers: tuple[tuple[str, float], ...] = ()

    def values(self) -> dict[str, Any]:
        return dict(self.numbers)

    def fields(self, options: ResultOptions) -> list[str]:
        return [f"{name}={value:.{DIGITS}g}" for name, value in self.numbers]


class Regress(Kind):
    name = "regress"
    training_module = "mdlstm_tk.kinds.regress_training"
    networks_of = "classify"
    answers = "numbers of a sample"
    formats = LINES
    is_printed = True
    sample_axes = 1
    axes = "N"
    table = "targets.csv"

    def name_count(self, outputs: int) -> int:
        return outputs

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        is_free = not set(RESERVED) & set(metadata.classes or ())
        yield "classes", is_free, f"other names than {', '.join(RESERVED)}, which documents have anyway"

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> Sequence[Numbers]:
        import numpy as np

        if not np.isfinite(y).all():
            raise InputError("the numbers hold NaN or infinity; the model diverged")
        names, answers = metadata.classes or (), []
        for k, row in self.each_sample(y, metadata):
            values = [float(str(value)) for value in row]  # the shortest that identify them, 0.1 for 0.1
            numbers = Numbers("", array, k, tuple(zip(names, values, strict=True)))
            answers.append(replace(numbers, text=" ".join(numbers.fields(options))))
        return answers


KIND = Regress()
