"""Reading protobuf messages field by field: no copies, no objects, no schema.

https://protobuf.dev/programming-guides/encoding. Stricter than protobuf itself: what it would skip
or mend is refused here, so that nothing can mean one thing to this reader and another to ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdlstm_tk.errors import InputError

VARINT, BYTES = 0, 2
STARTS_WITH_VARINT = (BYTES, VARINT)
FIXED_BYTES = {1: 8, 5: 4}
MAX_FIELDS = 5_000_000  # 128×128 written out in four directions has some 300 000

Field = tuple[int, int, int, int]


class Reader:
    """Fields of messages in `data`.

    Args:
        data: the whole file.
        shown: what messages call it.
    """

    def __init__(self, data: bytes, shown: str) -> None:
        self.data = data
        self.shown = shown
        self._left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message in data[start:end].

        Yields:
            (number, wire type, a, b): data[a:b] is the value where that is BYTES; a is the value
            where it is VARINT; a fixed value is data[a:b], too.

        Raises:
            InputError: it is damaged, or there are more than `MAX_FIELDS` in all.
        """
        data, position = self.data, start
        while position < end:
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = self.varint(position - 1, end)
            kind = tag & 7
            if kind in STARTS_WITH_VARINT:
                if position >= end:
                    raise self.damaged(position)
                value = data[position]
                position += 1
                if value > 127:
                    value, position = self.varint(position - 1, end)
                if kind == BYTES:
                    a, b = position, position + value
                    position = b
                else:
                    a = b = value
            elif kind in FIXED_BYTES:
                a, b = position, position + FIXED_BYTES[kind]
                position = b
            else:  # groups, which ONNX has none of
                raise self.damaged(position)
            if position > end or not 8 <= tag < 2**32:
                raise self.damaged(start)
            self._left -= 1
            if self._left < 0:
                raise InputError(
                    f"{self.shown} has more than {MAX_FIELDS} fields, which no exported model has"
                )
            yield tag >> 3, kind, a, b

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """The unsigned number at `position`, and where it ends.

        Raises:
            InputError: it is cut off, or has more than 64 bits.
        """
        value = shift = 0
        for place in range(position, min(end, position + 10)):
            byte = self.data[place]
            value |= (byte & 127) << shift
            if byte < 128:
                if value >= 2**64:
                    break
                return value, place + 1
            shift += 7
        raise self.damaged(position)

    def packed(self, start: int, end: int) -> Iterator[int]:
        """The numbers in a packed repeated field."""
        while start < end:
            value, start = self.varint(start, end)
            yield value

    def damaged(self, position: int) -> InputError:
        """What to raise where a message makes no sense."""
        return InputError(
            f"{self.shown} is not a model that ONNX Runtime can load: it makes no sense at byte {position}"
        )
