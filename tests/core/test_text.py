"""Text from outside cannot forge output, and machine-readable output gives back the exact text; texts that
name the sizes of grids."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlstm_tk._util.sizes import for_axes, format_size, parse_free_size, parse_resize, parse_size
from mdlstm_tk._util.text import is_plain_text, printable, to_json
from mdlstm_tk.errors import InputError

ESCAPES = {
    "\x1b[2J": r"\x1b[2J",
    "a\nb\r\tc": r"a\nb\r\tc",
    "\x00\x7f\x9b": r"\x00\x7f\x9b",
    "\u2066\u2069\u200f\u061c\u202e": r"\u2066\u2069\u200f\u061c\u202e",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    os.fsdecode(b"caf\xe9"): r"caf\udce9",
}
ORDINARY = ["", "Größe 3", "שלום", "👩\u200d🔬", "نمی\u200cخواهم", "C:\\scans\\1", "a\u00a0b\u3000c"]

texts = st.text(st.characters() | st.sampled_from("\\\t\n\r\x1b\u202e\udce9nrtxu0"))


@pytest.mark.parametrize("text", [*ESCAPES, *ORDINARY])
def test_unsafe_characters_become_escapes_and_others_stay(text: str) -> None:
    assert printable(text) == ESCAPES.get(text, text)
    assert is_plain_text(text) == (text not in ESCAPES)


@given(texts)
def test_json_is_plain_text_and_gives_back_what_it_was(text: str) -> None:
    encoded = to_json({text: [text]})
    assert is_plain_text(encoded)
    assert json.loads(encoded.encode()) == {text: [text]}
    assert json.loads(to_json([text], indent=2)) == [text]
    assert json.loads(to_json({"a": math.nan, "b": [(math.inf, 1.5)]})) == {"a": None, "b": [[None, 1.5]]}


@pytest.mark.parametrize("extents", [(9,), (8, 8), (8, 12), (4, 8, 8)])
def test_a_size_is_read_as_it_was_written(extents: tuple[int, ...]) -> None:
    assert parse_size(format_size(extents)) == parse_free_size(format_size(extents)) == extents


def test_sizes_that_are_refused() -> None:
    assert for_axes(parse_size("8"), 3) == (8, 8, 8) and for_axes(parse_free_size("*"), 2) == (None, None)
    assert (parse_resize("48"), parse_resize("48x*")) == ((48, 48), (48, None))
    for text in ("0", "8x", "-8", "8.5", "٨", "8x*"):
        with pytest.raises(InputError):
            parse_size(text)
    for text in ("*", "*x*", "4x4x4"):
        with pytest.raises(InputError):
            parse_resize(text)
