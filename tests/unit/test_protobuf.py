"""The protobuf reader that models are checked with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.security import protobuf
from mdlstm_tk.runtime.security.model_check import check_model
from mdlstm_tk.runtime.security.protobuf import Reader


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.integers(0, 2**64 - 1) | st.binary(max_size=300))))
def test_fields_are_read_as_they_were_written(fields: list[tuple[int, int | bytes]]) -> None:
    written = b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )
    read = [
        (number, written[a:b] if wire_type == 2 else a)
        for number, wire_type, a, b in Reader(written, "m").fields(0, len(written))
    ]
    assert read == fields


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x0a",
        b"\x0a\x05abc",
        b"\x08" + b"\xff" * 11,
        b"\x08" + b"\xff" * 9 + b"\x7f",
        b"\x0b\x0c",
        b"\x09abc",
        b"\x02\x00",
        b"\x0a" + b"\xff" * 9 + b"\x01",
        b"\xf8\xff\xff\xff\xff\x01\x00",
    ],
    ids=repr,
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="at byte"):
        list(Reader(data, "m").fields(0, len(data)))


def test_the_number_of_fields_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)
    with pytest.raises(InputError, match="1000 fields"):
        check_model(b"\x08\x01" * 2000, "m")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        check_model(data, "m")
