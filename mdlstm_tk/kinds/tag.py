"""The kind `tag`: any number of labels for each sample."""

from __future__ import annotations

from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.classify import by_name
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import Kind, Row, check_scores, sigmoid

SEPARATOR = ";"
THRESHOLD = 0.5  # of files that hold none


class Tag(Kind):
    name = "tag"
    training_module = "mdlstm_tk.kinds.tag_training"
    networks_of = "classify"
    gives_rows = True
    run_files = (DECODING_FILE,)
    sample_axes = 1
    axes = "N"
    table = "tags.csv"

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, probabilities: bool = False
    ) -> list[Row]:
        """The labels of at least the `threshold` that training has chosen; of all, the `probabilities`."""
        check_scores(y)
        threshold, rows = metadata.more.get("threshold", THRESHOLD), []
        for p in sigmoid(y):
            pairs = zip(metadata.classes or (), p.tolist(), strict=True)
            labels = [name for name, value in pairs if value >= threshold]
            rows.append(
                {"labels": SEPARATOR.join(labels), **(by_name(metadata, p) if probabilities else {})}
            )
        return rows


KIND = Tag()
