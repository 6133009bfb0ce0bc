"""The kind `segment`: one class at every position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mdlstm_tk.kinds.kind import ARRAYS, Kind, Width

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.runtime.metadata import Metadata


class Segment(Kind):
    name = "segment"
    training_module = "mdlstm_tk.kinds.segment_training"
    answers = "masks"
    target_folder = "masks"
    formats = ("png", "tif", "csv", "json")
    probabilities = ("json", *ARRAYS, "zarr", "tif")
    image_format = "png"
    tile_format = "tif"

    def name_count(self, outputs: int) -> int:
        return outputs

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        yield "window", metadata.window is not None, "extents, as a segmenter has a grid of classes"

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> Array:
        """A mask, (H, W) or (N, H, W), of the values that the classes have in the masks of training."""
        from mdlstm_tk.runtime.postprocessing import check_scores, class_axis, mask_values

        axis = class_axis(y, metadata)
        check_scores(y, axis)
        return mask_values(y.argmax(axis), metadata.mask_values or range(metadata.outputs))


KIND = Segment()
