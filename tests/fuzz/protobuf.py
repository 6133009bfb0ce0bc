"""Mutate the structure of protobuf messages, valid or not; only the nesting of messages is known."""

from __future__ import annotations

import random
from typing import Any

from fuzz.mutate import INTEGERS, TEXTS, mutate_bytes, mutate_number

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
FIXED = {FIXED64: 8, FIXED32: 4}

Field = tuple[int, int, Any]
"""Number, wire type, and value: an integer for VARINT, else bytes."""


def encode_varint(value: int, padding: int = 0) -> bytes:
    """A varint; with padding, in more bytes than it needs."""
    value %= 2**64
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    if padding:
        encoded[-1] |= 128
        encoded += b"\x80" * (padding - 1) + b"\0"
    return bytes(encoded)


def decode(data: bytes) -> list[Field]:
    """The fields of a message.

    Raises:
        ValueError: it is malformed.
    """
    fields: list[Field] = []
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            if position >= len(data) or shift > 63:
                raise ValueError
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while position < len(data):
        tag = varint()
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            fields.append((number, wire_type, varint()))
            continue
        if wire_type not in (BYTES, *FIXED):
            raise ValueError
        size = varint() if wire_type == BYTES else FIXED[wire_type]
        if position + size > len(data):
            raise ValueError
        fields.append((number, wire_type, data[position : position + size]))
        position += size
    return fields


def encode(fields: list[Field], padding: int = 0) -> bytes:
    """The message of these fields, whatever they are."""
    parts = []
    for number, wire_type, value in fields:
        parts.append(encode_varint(number << 3 | wire_type, padding))
        if wire_type == VARINT:
            parts.append(encode_varint(value, padding))
        elif wire_type == BYTES:
            parts += [encode_varint(len(value), padding), value]
        else:
            parts.append(value)
    return b"".join(parts)


def mutate_message(rng: random.Random, data: bytes, descriptor: Any, donor: bytes = b"") -> bytes:
    """Change one message in a tree of messages, at any depth.

    Args:
        rng: source of chance.
        data: an encoded message.
        descriptor: its protobuf descriptor.
        donor: another message of the same type, from which fields are taken.
    """
    try:
        fields = decode(data)
        donor_fields = decode(donor) if donor else fields
    except ValueError:
        return mutate_bytes(rng, data, donor)
    inner = [k for k, field in enumerate(fields) if _message_type(descriptor, field) is not None]
    if inner and rng.random() < 0.75:
        by_number: dict[int, list[int]] = {}
        for k in inner:  # rare fields as often as the many nodes
            by_number.setdefault(fields[k][0], []).append(k)
        k = rng.choice(by_number[rng.choice(sorted(by_number))])
        number, wire_type, value = fields[k]
        others = [f[2] for f in donor_fields if f[0] == number and f[1] == wire_type]
        child = _message_type(descriptor, fields[k])
        fields[k] = (number, wire_type, mutate_message(rng, value, child, rng.choice(others or [b""])))
        return encode(fields)
    return _change_fields(rng, fields, donor_fields)


def _message_type(descriptor: Any, field: Field) -> Any:
    known = descriptor.fields_by_number.get(field[0])
    return known.message_type if known is not None and field[1] == BYTES else None


def _change_fields(rng: random.Random, fields: list[Field], donor: list[Field]) -> bytes:
    """Change, add, remove or move fields of one message."""
    if not fields:
        return encode([_random_field(rng)])
    k = rng.randrange(len(fields))
    number, wire_type, value = fields[k]
    action = rng.randrange(14)
    if action == 0:
        del fields[k]
    elif action == 1:
        fields[k:k] = [fields[k]] * rng.choice((1, 2, 300))
    elif action == 2:
        fields.insert(rng.randrange(len(fields)), fields.pop(k))
    elif action == 3:
        fields[k] = (
            rng.choice((0, number + 1, number - 1, rng.randrange(1, 30), 2**29 - 1)) % 2**29,
            wire_type,
            value,
        )
    elif action == 4:
        fields[k] = (number, *_as_other_type(rng, value))
    elif action == 5 and donor:
        fields.insert(k, rng.choice(donor))
    elif action == 6 and donor:
        same = [field for field in donor if field[0] == number]
        fields[k] = rng.choice(same or donor)
    elif action == 7:
        fields.insert(k, _random_field(rng))
    elif action == 8:
        return encode(fields, padding=rng.choice((1, 2, 9)))
    elif action == 9:  # a length that is wrong
        encoded = encode(fields)
        start = len(encode(fields[:k]))
        return encoded[:start] + encode_varint(number << 3 | BYTES) + encode_varint(rng.choice(INTEGERS))
    elif action == 10:
        group = encode_varint(number << 3 | GROUP) + encode(fields) + encode_varint(number << 3 | END_GROUP)
        return encode(fields) + group
    elif isinstance(value, int):
        fields[k] = (number, wire_type, mutate_number(rng, value) % 2**64)
    elif action == 11:
        fields[k] = (number, wire_type, rng.choice(TEXTS).encode("utf-8", "surrogatepass"))
    else:
        fields[k] = (number, wire_type, _fit(mutate_bytes(rng, value), wire_type))
    return encode(fields)


def _as_other_type(rng: random.Random, value: Any) -> tuple[int, Any]:
    data = encode_varint(value) if isinstance(value, int) else value
    wire_type = rng.choice((VARINT, FIXED64, BYTES, FIXED32))
    return wire_type, rng.choice(INTEGERS) if wire_type == VARINT else _fit(data, wire_type)


def _random_field(rng: random.Random) -> Field:
    number = rng.choice((*range(1, 30), 1000, 2**29 - 1))
    return (number, *_as_other_type(rng, rng.randbytes(rng.choice((0, 1, 8, 40)))))


def _fit(data: bytes, wire_type: int) -> bytes:
    size = FIXED.get(wire_type)
    return data if size is None else data[:size].ljust(size, b"\0")
