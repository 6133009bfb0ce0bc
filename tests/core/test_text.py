"""Text from outside cannot forge output, and machine-readable output gives back the exact text."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlstm_tk._util.text import (
    duration,
    is_plain_text,
    printable,
    shell_quoted,
    to_json,
)

ESCAPES = {
    "\x1b[2J": r"\x1b[2J",
    "a\nb\r\tc": r"a\nb\r\tc",
    "\x00\x7f\x9b": r"\x00\x7f\x9b",
    "\u2066\u2069\u200f\u061c\u202e": r"\u2066\u2069\u200f\u061c\u202e",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    os.fsdecode(b"caf\xe9"): r"caf\udce9",
}
ORDINARY = ["", "Größe 3", "שלום", "👩\u200d🔬", "نمی\u200cخواهم", "C:\\scans\\1", "a\u00a0b\u3000c"]
SHELL_NAMES = [
    *("two words", "it's", "a\nb", "$(id) `id` !", "\u202egpj", "\\\n'\\012", "-rf", "é\t"),
    os.fsdecode(b"caf\xe9\xff\n7"),
]

texts = st.text(st.characters() | st.sampled_from("\\\t\n\r\x1b\u202e\udce9nrtxu0"))


@pytest.mark.parametrize("text", ESCAPES)
def test_unsafe_characters_become_escapes(text: str) -> None:
    assert printable(text) == ESCAPES[text]
    assert not is_plain_text(text)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert is_plain_text(text)


@given(texts)
def test_json_is_plain_text_and_gives_back_what_it_was(text: str) -> None:
    encoded = to_json({text: [text]})
    assert is_plain_text(encoded)
    assert json.loads(encoded.encode()) == {text: [text]}
    assert json.loads(to_json([text], indent=2)) == [text]


def test_json_has_no_nan() -> None:
    values = {"a": math.nan, "b": [1.5, (math.inf, -math.inf)], "c": "NaN"}
    expected = {"a": None, "b": [1.5, [None, None]], "c": "NaN"}
    assert json.loads(to_json(values), parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("name", SHELL_NAMES)
def test_a_quoted_path_names_the_same_file_in_a_shell(name: str, tmp_path: Path) -> None:
    quoted = shell_quoted(name)
    assert is_plain_text(quoted)
    (tmp_path / name).write_text("found")
    done = subprocess.run(["bash", "-c", f"cat {quoted}"], cwd=tmp_path, capture_output=True, check=False)
    assert done.stdout == b"found"


@pytest.mark.parametrize("function", [printable, to_json, shell_quoted])
def test_every_function_escapes_every_unsafe_character(function: Callable[[str], str]) -> None:
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2067, 0xD800, 0xDFFF):
        assert chr(code) not in function(f"a{chr(code)}b"), hex(code)


def test_durations_are_spelled_as_people_say_them() -> None:
    seconds = 0.0, 0.004, 0.17, 0.96, 12.4, 59.6, 60, 75, 3600, 7530
    least = "less than 0.1 s"
    said = least, least, "0.2 s", "1 s", "12 s", "1 min", "1 min", "1 min 15 s", "1 h", "2 h 5 min"
    assert tuple(map(duration, seconds)) == said
