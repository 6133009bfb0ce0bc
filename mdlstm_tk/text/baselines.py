"""The kind `baselines`: the lines of a page, found in its image."""

from __future__ import annotations

from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import Kind


class Baselines(Kind):
    name = "baselines"
    training_module = "mdlstm_tk.text.baselines_training"


KIND = Baselines()
