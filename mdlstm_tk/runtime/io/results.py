"""Results of `mdlstm infer`, which are never data: neither training nor another inference reads them."""

from __future__ import annotations

import os

from mdlstm_tk.runtime.io import PAGE_SUFFIX, suffix_of

MARK = "mdlstm-tk"
"""The processing instruction in front of a page whose texts a model has read. Most editors of pages drop
it, and whoever corrects the texts by another way removes its line."""


def is_result(path: str | os.PathLike[str]) -> bool:
    """True for `*.out.*`, and for a page that has the `MARK`."""
    if suffix_of(os.path.splitext(path)[0]) == ".out":
        return True
    if suffix_of(path) != PAGE_SUFFIX:
        return False
    from mdlstm_tk.runtime.io.markup import root_tag  # imported late: few files are pages

    return MARK in root_tag(path)[1]
