"""The kind `density`: the probability of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, log
from typing import TYPE_CHECKING, Any, ClassVar

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.answer import Answer
from mdlstm_tk.kinds.kind import LINES, Kind, Width

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.runtime.metadata import Metadata

NUMBER_DIGITS = 4  # of nats and bits


@dataclass(frozen=True)
class Probability(Answer):
    """The probability of a sample.

    Attributes:
        nats: the negative log-probability.
        bits_per_dim: the same in bits, divided by the number of values.
    """

    nats: float = 0.0
    bits_per_dim: float = 0.0

    def values(self) -> dict[str, Any]:
        return {"nats": self.nats, "bits_per_dim": self.bits_per_dim}

    def fields(self, options: ResultOptions) -> list[str]:
        return [f"{value:.{NUMBER_DIGITS}f}" for value in self.values().values()]


class Density(Kind):
    name = "density"
    training_module = "mdlstm_tk.density.training"
    answers = "nats and bits"
    formats = LINES
    is_printed = True
    x_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    counts_positions = True

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        ones, channels = (1,) * metadata.ndim, metadata.channels
        yield "window", metadata.window == ones, f"{list(ones)}, as a density has a number for each value"
        yield "outputs", metadata.outputs == channels, f"{channels}, one for each channel of x"

    def fits(self, y: Array, metadata: Metadata) -> bool:
        return True  # a value for each of x, which may have no axis of channels

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> Sequence[Probability]:
        answers = []
        for k, sample in self.each_sample(y, metadata):
            nats = 0.0 - float(sample.sum(dtype="float64"))  # which is not -0.0
            if isnan(nats):
                raise InputError("the log-probabilities hold NaN; the model diverged")
            bits, nats = (round(x, NUMBER_DIGITS) for x in (nats / log(2) / sample.size, nats))
            answers.append(Probability(str(nats), array, k, nats, bits))
        return answers


KIND = Density()
