"""The interface of the model check of 1.0, on the check of 0.6."""

from __future__ import annotations

from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.security import model_check


def check_model(
    data: bytes, label: str, *, max_bytes: int = MAX_BYTES, trusted: bool = False
) -> dict[str, str]:
    """Check a model, and return its metadata."""
    return dict(model_check.check_model(data, label, max_bytes).metadata_props)
