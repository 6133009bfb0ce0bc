"""The kind `regress`: numbers for each sample."""

from __future__ import annotations

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import Kind, Row

RESERVED = ("file",)  # the column that tables of answers have in any case


class Regress(Kind):
    name = "regress"
    training_module = "mdlstm_tk.kinds.regress_training"
    networks_of = "classify"
    gives_rows = True
    sample_axes = 1
    axes = "N"
    table = "targets.csv"

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(self, y: Array, metadata: Metadata) -> list[Row]:  # type: ignore[override]
        if not np.isfinite(y).all():
            raise InputError("the numbers hold NaN or infinity; the model diverged")
        shortest = ([float(str(value)) for value in row] for row in y)  # that identify them: 0.1 for 0.1
        return [dict(zip(metadata.classes or (), row, strict=True)) for row in shortest]


KIND = Regress()
