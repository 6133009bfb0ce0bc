"""Results of `mdlstm infer`, which are never data: neither training nor another inference reads them."""

from __future__ import annotations

import os

from mdlstm_tk.kinds import documents_of
from mdlstm_tk.runtime.io import suffix_of


def is_result(path: str | os.PathLike[str]) -> bool:
    """True for `*.out.*`, and for a document that a model has written."""
    if suffix_of(os.path.splitext(path)[0]) == ".out":
        return True
    documents = documents_of(path)
    return documents is not None and documents.is_result(os.fspath(path))
