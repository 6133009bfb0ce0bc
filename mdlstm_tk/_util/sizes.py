"""Parse and format the sizes of grids, such as 8, 8x12 or 4x8x8."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mdlstm_tk.errors import InputError


def parse_size(text: str, ndim: int = 2) -> tuple[int, ...]:
    """Parse a size: parse_size("8") is (8, 8), parse_size("8x12") is (8, 12).

    Args:
        text: one extent for all axes, or one per axis, separated by "x".
        ndim: number of grid axes.

    Raises:
        InputError: the text has another format, an extent is 0, or there are neither 1 nor `ndim` extents.
    """
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text.lower(), re.ASCII):
        raise InputError(f"size must be written like 8 or 8x12, got '{text:.100}'")
    extents = tuple(int(part) for part in text.lower().split("x"))
    if len(extents) == 1:
        extents *= ndim
    if len(extents) != ndim:
        raise InputError(f"size must have 1 or {ndim} extents, got '{text:.100}'")
    if min(extents) < 1:
        raise InputError(f"extents of a size must be at least 1, got '{text:.100}'")
    return extents


def format_size(extents: Sequence[int | None]) -> str:
    """Format a size: format_size((8, 12)) is "8x12", and format_size((8, None)) "8x*"."""
    return "x".join("*" if extent is None else str(extent) for extent in extents)
