"""The kind `density`: the probability of a sample."""

from __future__ import annotations

from math import isnan, log
from typing import Any, ClassVar

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import Kind, Row

NUMBER_DIGITS = 4  # of nats and bits


class Density(Kind):
    name = "density"
    training_module = "mdlstm_tk.density.training"
    gives_rows = True
    x_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, sizes: Any = None
    ) -> list[Row]:
        """The negative log-probability of each sample in nats, and in bits for each of its values.

        Args:
            y, metadata: of the model.
            sizes: valid extents of padded samples (N, D), as the model got them.
        """
        if metadata.takes_sizes and sizes is None:
            raise InputError("y may be that of padded samples; give the sizes that the model got, too")
        rows = []
        for k, sample in enumerate(y):
            sample = sample if sizes is None else sample[metadata.region(sizes[k])]
            nats = 0.0 - float(sample.sum(dtype="float64"))  # which is not -0.0
            if isnan(nats):
                raise InputError("the log-probabilities hold NaN; the model diverged")
            bits = nats / log(2) / sample.size
            rows.append({"nats": round(nats, NUMBER_DIGITS), "bits_per_dim": round(bits, NUMBER_DIGITS)})
        return rows


KIND = Density()
