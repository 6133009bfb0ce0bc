"""Parse what users write for sizes of grids, such as 8, 8x12 or 48x*, and for devices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from mdlstm_tk.errors import InputError

E = TypeVar("E", int, int | None)


def parse_free_size(text: str) -> tuple[int | None, ...]:
    """Parse a size whose extents may be free: parse_free_size("48x*") is (48, None).

    Raises:
        InputError: the text is not one extent for all axes, or one for each, separated by "x"; or one is 0.
    """
    if not re.fullmatch(r"([1-9]\d{0,8}|\*)(x([1-9]\d{0,8}|\*))*", text.lower(), re.ASCII):
        raise InputError(
            f"size must be written like 8 or 8x12, with extents of at least 1, got '{text:.100}'"
        )
    return tuple(None if part == "*" else int(part) for part in text.lower().split("x"))


def for_axes(extents: tuple[E, ...], ndim: int) -> tuple[E, ...]:
    """Repeat a single extent for each of `ndim` axes; several extents stay as they are."""
    return extents * ndim if len(extents) == 1 else extents


def parse_size(text: str) -> tuple[int, ...]:
    """Parse a size: parse_size("8x12") is (8, 12). It raises what `parse_free_size` raises, also if an
    extent is free."""
    if "*" in text:
        raise InputError(f"size must be written like 8 or 8x12, got '{text:.100}'")
    extents: Any = parse_free_size(text)
    return extents  # type: ignore[no-any-return]


def parse_resize(text: str) -> tuple[int | None, int | None]:
    """Parse the extents (H, W) that images are resized to, one of which may be free.

    parse_resize("48x*") is (48, None): the width follows from the height and the aspect of each image.

    Raises:
        InputError: as `parse_free_size`, or there are not two extents, or both are free.
    """
    extents = for_axes(parse_free_size(text), 2)
    if len(extents) != 2 or extents == (None, None):
        raise InputError(f"resize must be written like 48, 48x64, 48x* or *x64, got '{text:.100}'")
    return extents[0], extents[1]


def format_size(extents: Sequence[int | None]) -> str:
    """Format a size: format_size((8, 12)) is "8x12", and format_size((8, None)) "8x*"."""
    return "x".join("*" if extent is None else str(extent) for extent in extents)


def parse_device(text: str) -> tuple[str, int]:
    """Parse the name of a device: "cuda:1" is ("cuda", 1), and "auto" is ("auto", 0).

    Raises:
        InputError: it is another text.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)|cuda:(0|[1-9][0-9]{0,2})", text)
    if match is None:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {text!r}")
    return match[1] or "cuda", int(match[2] or 0)
