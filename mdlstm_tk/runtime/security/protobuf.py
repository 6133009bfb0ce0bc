"""Read protobuf messages field by field, without copies or objects.

Encoding: https://protobuf.dev/programming-guides/encoding. This reader is stricter than protobuf
itself: it refuses what protobuf would skip or repair, so that no file means one thing here and another to
ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdlstm_tk.runtime.security.refusal import Refusal, malformed

VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types; BYTES holds strings, messages and packed numbers
STARTS_WITH_VARINT = (BYTES, VARINT)
FIXED_SIZES = {1: 8, FIXED32: 4}  # size in bytes of the fixed wire types
MAX_FIELDS = 5_000_000  # a 128×128 grid, unrolled in four directions, has some 30 000 outside its nodes

Field = tuple[int, int, int, int]


class Reader:
    """Read the fields of messages in a file.

    Args:
        data: content of the whole file.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._fields_left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Read the fields of the message in data[start:end].

        Yields:
            Tuples (number, wire_type, a, b). For BYTES and fixed types, the value is data[a:b]; for
            VARINT, the value is a.

        Raises:
            Refusal: the message is malformed, or the file has more than `MAX_FIELDS` fields.
        """
        data, position = self.data, start
        while position < end:
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = read_varint(data, position - 1, end)
            wire_type = tag & 7
            if wire_type in STARTS_WITH_VARINT:
                if position >= end:
                    raise malformed(position)
                value = data[position]
                position += 1
                if value > 127:
                    value, position = read_varint(data, position - 1, end)
                if wire_type == BYTES:
                    a, b = position, position + value
                    position = b
                else:
                    a = b = value
            elif wire_type in FIXED_SIZES:
                a, b = position, position + FIXED_SIZES[wire_type]
                position = b
            else:  # groups, which ONNX does not use
                raise malformed(position)
            if position > end or not 8 <= tag < 2**32:
                raise malformed(start)
            self._fields_left -= 1
            if self._fields_left < 0:
                raise Refusal(
                    f"has more than {MAX_FIELDS} fields; expected a model that `mdlstm export` wrote"
                )
            yield tag >> 3, wire_type, a, b

    def leading(self, tag: int, start: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """Read the fields of one number with which the message in data[start:end] begins, for speed.

        Args:
            tag: number and wire type of the field, which is BYTES, in one byte.
            start, end: where the message lies.

        Returns:
            Where the values of these fields lie, and where the other fields begin.
        """
        data, position = self.data, start
        spans = []
        while position < end - 1 and data[position] == tag:
            size = data[position + 1]
            if size > 127:
                size, value = read_varint(data, position + 1, end)
            else:
                value = position + 2
            if value + size > end:
                raise malformed(position)
            position = value + size
            spans.append((value, position))
        self._fields_left -= len(spans)
        return spans, position


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Read the unsigned number at `position`, which ends before `end`.

    Returns:
        The number and the position after it.

    Raises:
        Refusal: the number is cut off or has more than 64 bits.
    """
    value = shift = 0
    for index in range(position, min(end, position + 10)):
        byte = data[index]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 2**64:
                break
            return value, index + 1
        shift += 7
    raise malformed(position)


def signed(value: int) -> int:
    """The signed number that a varint of an int64 field stands for."""
    return value - 2**64 if value >= 2**63 else value
