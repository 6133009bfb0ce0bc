"""The kind `baselines`: the lines of a page, found in its image."""

from __future__ import annotations

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import Kind, Row

MAPS = 3  # of a model: of baselines, of their beginnings, and of their ends
REACH = {"above": 0.7, "below": 0.35}
"""Line spacings that outlines reach above and below baselines, where a model has not learned them."""


class Baselines(Kind):
    name = "baselines"
    training_module = "mdlstm_tk.text.baselines_training"
    gives_rows = True
    run_files = (DECODING_FILE,)
    sample_axes = 3

    def decode(self, y: Array, metadata: Metadata) -> list[Row]:  # type: ignore[override]
        raise InputError(
            "a model of kind baselines finds the lines of pages; use: mdlstm read PAGES -m MODEL"
        )


KIND = Baselines()
