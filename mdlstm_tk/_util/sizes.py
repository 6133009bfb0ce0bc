"""Parse and format the sizes of grids, such as 8, 8x12, 4x8x8 or 48x*."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mdlstm_tk.errors import InputError


def parse_size(text: str, ndim: int | None = None) -> tuple[int, ...]:
    """Parse a size: parse_size("8") is (8, 8), parse_size("8x12") is (8, 12), and so on for more axes.

    Args:
        text: one extent for all axes, or one per axis, separated by "x".
        ndim: number of grid axes; None: as many as the text names, or two if it names one extent.

    Raises:
        InputError: the text has another format, an extent is 0, or there are neither 1 nor `ndim` extents.
    """
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text.lower(), re.ASCII):
        raise InputError(f"size must be written like 8 or 8x12, got '{text:.100}'")
    extents = tuple(int(part) for part in text.lower().split("x"))
    if min(extents) < 1:
        raise InputError(f"extents of a size must be at least 1, got '{text:.100}'")
    extents = extents * (ndim or 2) if len(extents) == 1 else extents
    if ndim is not None and len(extents) != ndim:
        raise InputError(f"size must have 1 or {ndim} extents, got '{text:.100}'")
    return extents


def parse_free_size(text: str, ndim: int | None = None) -> tuple[int | None, ...]:
    """Parse a size whose extents may be free: parse_free_size("48x*") is (48, None).

    Raises:
        InputError: as `parse_size`.
    """
    if "*" not in text:
        return parse_size(text, ndim)
    parts = text.lower().split("x")
    parts = parts * (ndim or 2) if len(parts) == 1 else parts
    numbers = parse_size("x".join("1" if part == "*" else part for part in parts), ndim)
    return tuple(None if part == "*" else number for part, number in zip(parts, numbers, strict=True))


def parse_resize(text: str) -> tuple[int | None, int | None]:
    """Parse the extents (H, W) that images are resized to: as `parse_size`, or with one free extent.

    parse_resize("48x*") is (48, None): the width follows from the height and the aspect of each image.

    Raises:
        InputError: the text has another format, or an extent is 0.
    """
    height, star, width = text.partition("*")
    if star and height[-1:] == "x" and not width:
        return parse_size(height[:-1])[0], None
    if star and width[:1] == "x" and not height:
        return None, parse_size(width[1:])[0]
    extents = parse_size(text)
    if len(extents) != 2:
        raise InputError(f"resize must be written like 48, 48x64, 48x* or *x64, got '{text:.100}'")
    return extents[0], extents[1]


def format_size(extents: Sequence[int | None]) -> str:
    """Format a size: format_size((8, 12)) is "8x12", and format_size((8, None)) "8x*"."""
    return "x".join("*" if extent is None else str(extent) for extent in extents)
