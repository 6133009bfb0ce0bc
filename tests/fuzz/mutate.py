"""Mutations of bytes, numbers, texts and JSON values."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1000, 2**15, 2**16 - 1, 2**16, 10**6, 2**24),
    *(2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1),
)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-45, 1e38, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "x",
        "y",
        "0",
        "-1",
        "NaN",
        "None",
        "-",
        "-o",
        "--help",
        "any",
        "sizes",
        "all",
        "scan",
    ),
    *("x" * 300, "x" * 20_000, "é" * 100, "日本", "a b", "a\tb", "a\nb", "a\r\nb", "a\\b", "a'b\"c"),
    *(
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x9b31m",
        "\u202egnp.exe",
        "\u2028",
        "\u200b",
        "\ufeff",
        "\x7f",
        "\x85",
    ),
    *(
        "<script>alert(1)</script>",
        "</style>",
        "[red]x[/red]",
        "[/y]",
        "{{ 7*7 }}",
        "%s%n",
        "${HOME}",
        "$(id)",
    ),
    *("../../private/secret.png", "../private/secret.png", "/etc/passwd", "/dev/zero", "C:\\x", "~/x", "."),
    *(
        "..",
        "evil.py:md",
        "evil:md",
        "./evil.py:md",
        "os:system",
        "__proto__",
        "__class__",
        "=1+1",
        "\ud800",
    ),
    *(
        "99999999999999999999",
        "1e999",
        "8x8",
        "0x0",
        "1x1x1x1",
        "99999x99999",
        "²",
        "٣",
        "true",
        "[]",
        "{}",
    ),
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [None], *INTEGERS, *FLOATS, *TEXTS)


def mutate_bytes(rng: random.Random, data: bytes, donor: bytes = b"") -> bytes:
    """Flip, overwrite, insert, delete, duplicate or splice bytes in a few places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
        action = rng.randrange(8)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            changed[at:end] = rng.randbytes(end - at)
        elif action == 2:
            changed[at:at] = rng.randbytes(rng.choice((1, 1, 2, 8, 100)))
        elif action == 3:
            del changed[at:end]
        elif action == 4:
            changed[at:at] = changed[at:end] * rng.choice((1, 1, 2, 50))
        elif action == 5:
            other = donor or data
            start = rng.randrange(len(other) + 1)
            changed[at:end] = other[start : start + rng.choice((1, 8, 100, 10_000))]
        elif action == 6:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTEGERS) % 2 ** (8 * width)
            changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        else:
            del changed[at:]
    return bytes(changed)


def mutate_number(rng: random.Random, number: int) -> int:
    """Another number: a special one, or one near the given one."""
    near = (number + 1, number - 1, -number, 2 * number, number << 32, number + rng.randrange(100))
    return rng.choice((*near, *rng.choices(INTEGERS, k=6)))


def mutate_text(rng: random.Random, text: str) -> str:
    """Another text: a special one, or a changed one."""
    at = rng.randrange(len(text) + 1)
    action = rng.randrange(6)
    if action == 0:
        return text[:at]
    if action == 1:
        return text + text
    if action == 2:
        return text[:at] + rng.choice(TEXTS) + text[at:]
    if action == 3 and text:
        at = rng.randrange(len(text))
        return text[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) + text[at + 1 :]
    return rng.choice(TEXTS)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value that differs in one place."""
    root = [copy.deepcopy(value)]
    places: list[tuple[Any, Any]] = []
    _collect(root, places)
    container, key = rng.choice(places)
    container[key] = _replacement(rng, container[key], rng.choice(places))
    if isinstance(container, dict):
        action = rng.randrange(8)
        if action == 0:
            del container[key]
        elif action == 1:
            container[rng.choice(TEXTS)] = rng.choice(VALUES)
        elif action == 2:
            container[mutate_text(rng, key)] = container.pop(key)
    return root[0]


def mutate_json_text(rng: random.Random, text: str) -> str:
    """A JSON text that differs in one place, or is damaged as a text."""
    action = rng.randrange(12)
    if action == 0:
        return mutate_text(rng, text)
    if action == 1:
        return rng.choice(
            ("[" * 100_000, '{"a":' * 5000, "1" * 5000, "1" * 100_000, "1e400", '"\\ud800"', text * 2)
        )
    try:
        return json.dumps(mutate_json(rng, json.loads(text)), ensure_ascii=rng.random() < 0.7)
    except ValueError:
        return mutate_text(rng, text)


def _collect(container: Any, places: list[tuple[Any, Any]]) -> None:
    for key in range(len(container)) if isinstance(container, list) else list(container):
        places.append((container, key))
        if isinstance(container[key], list | dict) and container[key]:
            _collect(container[key], places)


def _replacement(rng: random.Random, value: Any, other: tuple[Any, Any]) -> Any:
    action = rng.randrange(10)
    if action == 0:
        return [value]
    if action == 1:
        return {"a": value}
    if action == 2:
        return copy.deepcopy(other[0][other[1]])
    if action == 3:
        many = 100 if isinstance(value, list | dict) else 20_000
        return rng.choice(([value] * 100, [value] * many, str(value), json.dumps(value)))
    if action == 4 and isinstance(value, list) and value:
        shuffled = [*value, rng.choice(value)]
        rng.shuffle(shuffled)
        return shuffled[: rng.randrange(len(shuffled) + 1)]
    if action < 7 and isinstance(value, str):
        return mutate_text(rng, value)
    if action < 7 and type(value) is int:
        return mutate_number(rng, value)
    return rng.choice(VALUES)
