"""The protobuf reader that models are checked with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.security import protobuf
from mdlstm_tk.runtime.security.model_check import check_model
from mdlstm_tk.runtime.security.protobuf import Reader, signed
from mdlstm_tk.runtime.security.refusal import Refusal


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
        for number, wire_type, a, b in Reader(written).fields(0, len(written))
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
    with pytest.raises(Refusal, match="at byte"):
        list(Reader(data).fields(0, len(data)))


def test_the_number_of_fields_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)
    with pytest.raises(Refusal, match="1000 fields"):
        list(Reader(b"\x08\x01" * 2000).fields(0, 4000))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        check_model(data, "m")


def test_numbers_are_signed_as_in_protobuf() -> None:
    assert [signed(value) for value in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 2**63 - 1, -(2**63), -1]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=9), st.binary(max_size=9))
def test_leading_fields_are_those_that_come_first(texts: list[bytes], rest: bytes) -> None:
    written = b"".join(b"\x0a" + varint(len(text)) + text for text in texts)
    data = written + b"\x10\x01" + rest
    spans, end = Reader(data).leading(0x0A, 0, len(data))
    assert [data[a:b] for a, b in spans] == texts
    assert end == len(written)
