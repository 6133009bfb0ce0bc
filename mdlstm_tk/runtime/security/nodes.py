"""Read nodes. Most bytes of an unrolled model are nodes, so this reader is written for speed."""

from __future__ import annotations

from collections.abc import Iterator

from mdlstm_tk.runtime.security.protobuf import BYTES, Reader, read_varint
from mdlstm_tk.runtime.security.refusal import holds, malformed
from mdlstm_tk.runtime.security.schema import MAX_NAME, NODE, Content, Span

MAX_NODE_BYTES = 2**22

# Field number and wire type of each field in one byte
INPUT, OUTPUT, NAME, OPERATOR, ATTRIBUTE, DOMAIN = (number << 3 | BYTES for number in (1, 2, 3, 4, 5, 7))

Node = tuple[bytes, bytes, list[bytes], list[bytes], tuple[bytes, ...], Span]
"""The domain and the name of its operator, its inputs (empty where an optional one is missing), its
outputs, the bytes of each attribute, and where the node lies in the file."""


def read_nodes(data: bytes, spans: list[Span]) -> Iterator[Node]:
    """Read nodes whose fields are in the order of their numbers, as protobuf writes them.

    Raises:
        Refusal: a node has other fields than exported nodes have, or is malformed.
    """
    for span in spans:
        position, end = span
        if end - position > MAX_NODE_BYTES:
            raise holds(f"a node of more than {MAX_NODE_BYTES} bytes")
        inputs: list[bytes] = []
        outputs: list[bytes] = []
        attributes: tuple[bytes, ...] = ()
        domain = b""
        try:
            while data[position] == INPUT:
                size = data[position + 1]
                position += 2
                if size > 127:
                    size, position = _long_size(data, position - 1, end)
                stop = position + size
                inputs.append(data[position:stop])
                position = stop
            while data[position] == OUTPUT:
                size = data[position + 1]
                position += 2
                if size > 127:
                    size, position = _long_size(data, position - 1, end)
                stop = position + size
                outputs.append(data[position:stop])
                position = stop
            if data[position] == NAME:
                size = data[position + 1]
                position += 2
                if size > 127:
                    size, position = _long_size(data, position - 1, end)
                position += size
            if data[position] != OPERATOR:
                raise _refusal(data, position, end)
            operator, position = _short_text(data, position)
            while position < end and data[position] == ATTRIBUTE:
                size = data[position + 1]
                position += 2
                if size > 127:
                    size, position = read_varint(data, position - 1, end)
                stop = position + size
                attributes += (data[position:stop],)
                position = stop
            if position < end and data[position] == DOMAIN:
                domain, position = _short_text(data, position)
        except IndexError:
            raise malformed(len(data)) from None
        if position != end:
            raise _refusal(data, position, end)
        yield domain, operator, inputs, outputs, attributes, span


def attribute_spans(reader: Reader, node: Node) -> list[Span]:
    """Where the attributes of a node lie in the file."""
    return Content(reader, NODE, *node[-1]).spans("attribute")


def _short_text(data: bytes, position: int) -> tuple[bytes, int]:
    """The text of the field at `position`, and the position after it."""
    size = data[position + 1]
    if size > 127:
        raise holds("an operator or domain whose name has more than 127 bytes")
    return data[position + 2 : position + 2 + size], position + 2 + size


def _long_size(data: bytes, position: int, end: int) -> tuple[int, int]:
    size, position = read_varint(data, position, end)
    if size > MAX_NAME:
        raise holds(f"a name of more than {MAX_NAME} bytes")
    return size, position


def _refusal(data: bytes, position: int, end: int) -> Exception:
    """The refusal of a field that is not where it should be."""
    if position >= end or data[position] & 7 != BYTES:
        return malformed(position)
    number = data[position] >> 3
    if number in NODE.fields:
        return holds("a node whose fields are not in the order that protobuf writes them in")
    return NODE.refusal(number)
