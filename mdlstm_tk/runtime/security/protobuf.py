"""Read protobuf messages field by field, without copies, objects or a schema.

Encoding: https://protobuf.dev/programming-guides/encoding. This reader is stricter than protobuf
itself: it refuses what protobuf would skip or repair, so that no file means one thing here and another to
ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdlstm_tk.errors import InputError

VARINT, BYTES = 0, 2  # wire types; BYTES holds strings, messages and packed numbers
STARTS_WITH_VARINT = (BYTES, VARINT)
FIXED_SIZES = {1: 8, 5: 4}  # size in bytes of the fixed wire types
MAX_FIELDS = 5_000_000  # a 128×128 grid, unrolled in four directions, has some 300 000

Field = tuple[int, int, int, int]


class Reader:
    """Read the fields of messages in a file.

    Args:
        data: content of the whole file.
        label: what error messages call the file.
    """

    def __init__(self, data: bytes, label: str) -> None:
        self.data = data
        self.label = label
        self._fields_left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Read the fields of the message in data[start:end].

        Yields:
            Tuples (number, wire_type, a, b). For BYTES and fixed types, the value is data[a:b]; for
            VARINT, the value is a.

        Raises:
            InputError: the message is malformed, or the file has more than `MAX_FIELDS` fields.
        """
        data, position = self.data, start
        while position < end:
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = self.varint(position - 1, end)
            wire_type = tag & 7
            if wire_type in STARTS_WITH_VARINT:
                if position >= end:
                    raise self.malformed(position)
                value = data[position]
                position += 1
                if value > 127:
                    value, position = self.varint(position - 1, end)
                if wire_type == BYTES:
                    a, b = position, position + value
                    position = b
                else:
                    a = b = value
            elif wire_type in FIXED_SIZES:
                a, b = position, position + FIXED_SIZES[wire_type]
                position = b
            else:  # groups, which ONNX does not use
                raise self.malformed(position)
            if position > end or not 8 <= tag < 2**32:
                raise self.malformed(start)
            self._fields_left -= 1
            if self._fields_left < 0:
                raise InputError(
                    f"{self.label} has more than {MAX_FIELDS} fields; "
                    "expected a model that `mdlstm export` wrote"
                )
            yield tag >> 3, wire_type, a, b

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Read the unsigned number at `position`.

        Returns:
            The number and the position after it.

        Raises:
            InputError: the number is cut off or has more than 64 bits.
        """
        value = shift = 0
        for index in range(position, min(end, position + 10)):
            byte = self.data[index]
            value |= (byte & 127) << shift
            if byte < 128:
                if value >= 2**64:
                    break
                return value, index + 1
            shift += 7
        raise self.malformed(position)

    def packed(self, start: int, end: int) -> Iterator[int]:
        """Read the numbers of the packed repeated field in data[start:end]."""
        while start < end:
            value, start = self.varint(start, end)
            yield value

    def malformed(self, position: int) -> InputError:
        """The error to raise for a malformed message."""
        return InputError(
            f"{self.label} is not a model that ONNX Runtime can load: it is malformed at byte {position}"
        )
