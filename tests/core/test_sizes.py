"""Texts that name the sizes of grids."""

from __future__ import annotations

import pytest

from mdlstm_tk._util.sizes import for_axes, format_size, parse_free_size, parse_resize, parse_size
from mdlstm_tk.errors import InputError


@pytest.mark.parametrize("extents", [(9,), (8, 8), (8, 12), (4, 8, 8)])
def test_a_size_is_read_as_it_was_written(extents: tuple[int, ...]) -> None:
    assert parse_size(format_size(extents)) == parse_free_size(format_size(extents)) == extents


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_one_extent_stands_for_all_axes(ndim: int) -> None:
    assert parse_size("8", ndim) == for_axes(parse_size("8"), ndim) == (8,) * ndim
    assert parse_free_size("*", ndim) == for_axes(parse_free_size("*"), ndim) == (None,) * ndim
    for text in ("8x8x8x8", "0", "8x", "-8", "8.5", "٨"):
        with pytest.raises(InputError):
            parse_size(text, ndim)


def test_images_are_resized_along_two_axes() -> None:
    assert (parse_resize("48"), parse_resize("48x*")) == ((48, 48), (48, None))
    for text in ("*", "*x*", "4x4x4"):
        with pytest.raises(InputError, match="resize must be written like 48"):
            parse_resize(text)
