"""The kind `segment`: one class at every position."""

from __future__ import annotations

import numpy as np

from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import Kind, check_scores, softmax


class Segment(Kind):
    name = "segment"
    training_module = "mdlstm_tk.kinds.segment_training"
    image_format = "png"
    target_folder = "masks"

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, probabilities: bool = False
    ) -> Array:
        """Masks (N, *grid) of the values that the classes have in the masks of training, in the smallest
        dtype of integers that holds them; or the `probabilities` of the classes, in the shape of y."""
        axis = metadata.class_axis(y)
        check_scores(y, axis)
        if probabilities:
            return softmax(y, axis)
        values = np.asarray(metadata.mask_values or range(metadata.outputs))
        low, high = int(values.min()), int(values.max())
        # Beside a negative value, the largest one needs a signed dtype: one that holds -1 - high.
        dtype = np.result_type(*map(np.min_scalar_type, (low, -1 - high if low < 0 <= high else high)))
        mask: Array = values.astype(dtype)[y.argmax(axis)]
        return mask


KIND = Segment()
