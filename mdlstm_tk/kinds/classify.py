"""The kind `classify`: one class for each sample."""

from __future__ import annotations

import numpy as np

from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import PROBABILITY_DIGITS, Kind, Row, check_scores, softmax


class Classify(Kind):
    name = "classify"
    training_module = "mdlstm_tk.kinds.classify_training"
    gives_rows = True
    sample_axes = 1
    axes = "N"

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, top: int = 1, probabilities: bool = False
    ) -> list[Row]:
        """The `top` most likely classes; or all of them by name, with their `probabilities`."""
        check_scores(y)
        names, rows = metadata.classes or (), []
        for p in softmax(y):
            row: Row = {}
            for rank, c in enumerate(np.argsort(-p, kind="stable")[:top].tolist(), 1):
                end = f"_{rank}" if rank > 1 else ""
                row |= {
                    f"label{end}": names[c],
                    f"probability{end}": round(float(p[c]), PROBABILITY_DIGITS),
                }
            rows.append(row | (by_name(metadata, p) if probabilities else {}))
        return rows


def by_name(metadata: Metadata, p: Array) -> Row:
    """A column for the probability of each class."""
    pairs = zip(metadata.classes or (), p.tolist(), strict=True)
    return {f"probability_{name}": round(value, PROBABILITY_DIGITS) for name, value in pairs}


KIND = Classify()
