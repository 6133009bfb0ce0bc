"""Docstrings on the site: docs/_extensions/docstrings.py."""

from __future__ import annotations

import sys

import pytest
from helpers.checkout import ROOT

sys.path.insert(0, str(ROOT / "docs/_extensions"))
from docstrings import _shorten_types, convert


@pytest.mark.parametrize(
    ("docstring", "converted"),
    [
        ("See `x` and (N, *grid, C).", "See ``x`` and (N, \\*grid, C)."),
        ("`docs/exporting.md` is a guide.", ":doc:`/exporting` is a guide."),
        ("It is bounded (docs/tasks/index.md).", "It is bounded (:doc:`/tasks/index`)."),
        ("Args:\n    channels: C. None: any.", "Args:\n    channels: C\\. None: any."),
        ('Returns:\n    "grid": a list.', 'Returns:\n    : "grid": a list.'),
        ("Shapes:\n    y (N), if `bias`", "Shapes::\n\n    y (N), if bias"),
    ],
)
def test_a_docstring_becomes_restructuredtext(docstring: str, converted: str) -> None:
    assert convert(docstring) == converted


def test_types_of_attributes_are_short() -> None:
    array = "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.int64]]"
    lines = [f":vartype x: dict[pathlib.Path, {array}] | None", ":ivar x: a.b.c"]
    _shorten_types(None, "class", "", None, None, lines)
    short = "dict[~pathlib.Path, ~numpy.typing.NDArray[~numpy.int64]] | None"
    assert lines == [f":vartype x: {short}", ":ivar x: a.b.c"]
