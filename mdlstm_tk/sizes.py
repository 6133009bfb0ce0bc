"""Grid sizes as people write them: 8, 8x12, 4x8x8."""

from __future__ import annotations

import re

from mdlstm_tk.errors import InputError


def parse_size(text: str, ndim: int = 2) -> tuple[int, ...]:
    """The extents that "8" (each axis), "8x12" or "4x8x8" stand for.

    Raises:
        InputError: it is written otherwise, an extent is 0, or there are not `ndim` of them.
    """
    if not re.fullmatch(r"\d+(x\d+)*", text.lower()):
        raise InputError(f"size must be written like 8 or 8x12, got '{text}'")
    extents = tuple(int(part) for part in text.lower().split("x"))
    if len(extents) == 1:
        extents *= ndim
    if len(extents) != ndim:
        raise InputError(f"size must have 1 or {ndim} extents, got '{text}'")
    if min(extents) < 1:
        raise InputError(f"extents of a size must be at least 1, got '{text}'")
    return extents


def format_size(extents: tuple[int, ...]) -> str:
    """(8, 12) → "8x12"."""
    return "x".join(map(str, extents))
