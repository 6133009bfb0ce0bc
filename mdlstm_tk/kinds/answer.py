"""The answer of a model for one sample, and how documents of any format hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdlstm_tk.runtime.jobs import ResultOptions

PROBABILITY_DIGITS = 6


@dataclass(frozen=True)
class Answer:
    """The answer for one sample. Each kind of task has a class of its own, with more fields.

    Attributes:
        text: the answer in one word or line.
        array: name of the array in a `.npz` file; else None.
        sample: index of the sample, if its array has a batch axis; else None.
    """

    text: str
    array: str | None = None
    sample: int | None = None

    def values(self) -> dict[str, Any]:
        """The answer as JSON values, which are also the first columns of a table."""
        return {"text": self.text}

    def details(self) -> dict[str, Any]:
        """More JSON values."""
        return {}

    def fields(self, options: ResultOptions) -> list[str]:
        """The fields of a line of txt or tsv."""
        return [self.text]

    def columns(self, options: ResultOptions, classes: Sequence[str]) -> dict[str, Any]:
        """The columns of a csv document."""
        return self.values()

    def as_dict(self) -> dict[str, Any]:
        """The answer as JSON values, with array and sample."""
        place = {"array": self.array, "sample": self.sample}
        return {k: v for k, v in place.items() if v is not None} | self.values() | self.details()
