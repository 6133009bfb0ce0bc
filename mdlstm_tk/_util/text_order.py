"""The order of the characters in a line of text that runs from right to left, or holds words that do.

An image shows a line in visual order, from left to right. Files and programs store the logical order, in
which the line is read. `reorder` turns one into the other: the Unicode bidirectional algorithm (UAX 9) for
one line without embeddings, isolates and brackets in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from unicodedata import bidirectional, category

Direction = Literal["ltr", "rtl"]

_OPEN, _CLOSE = "([{<«‹≤", ")]}>»›≥"
MIRRORED = str.maketrans(_OPEN + _CLOSE, _CLOSE + _OPEN)
_STRONG = {"L": "L", "R": "R", "AL": "R"}


def is_right_to_left(text: str) -> bool:
    """Return True if more letters of the text run from right to left than from left to right."""
    kinds = [bidirectional(character) for character in text]
    return kinds.count("R") + kinds.count("AL") > kinds.count("L")


def reorder(text: str, direction: Direction) -> str:
    """Turn the logical order of a line into the visual one, or the visual one into the logical one.

    A text without characters that run from right to left stays as it is. Where several texts look the same,
    as a number and a Latin word side by side may, the result has them in the order of an LTR text.

    Args:
        text: one line.
        direction: of the page that the line is on.
    """
    return "".join(character for character, _ in reordered(text, direction))


def as_searched(visual: str, direction: Direction | None) -> str:
    """A line, in visual order, as a search reads it and a language model scores it: from the right if most
    texts run from there. Numbers, and accents with their letters, are in reverse then."""
    return visual[::-1].translate(MIRRORED) if direction == "rtl" else visual


def reordered(characters: Sequence[str], direction: Direction) -> list[tuple[str, int]]:
    """Return the characters in the order of `reorder`, each with its index in `characters`."""
    clusters: list[list[int]] = []  # indices of characters with their accents, which follow in both orders
    for index, character in enumerate(characters):
        if clusters and category(character[0]).startswith("M"):
            clusters[-1].append(index)
        else:
            clusters.append([index])
    levels = _levels([bidirectional(characters[cluster[0]][0]) for cluster in clusters], direction)
    runs = list(zip(clusters, levels, strict=True))
    for level in range(max(levels, default=0), 0, -1):
        start = 0
        while start < len(runs):
            end = start
            while end < len(runs) and runs[end][1] >= level:
                end += 1
            runs[start:end] = runs[start:end][::-1]
            start = end + 1
    return [
        (characters[index].translate(MIRRORED) if level % 2 else characters[index], index)
        for cluster, level in runs
        for index in cluster
    ]


def _levels(kinds: list[str], direction: Direction) -> list[int]:
    """Return the embedding level of each character: odd ones run from right to left."""
    base = "R" if direction == "rtl" else "L"
    last = base
    for k, kind in enumerate(kinds):  # W2, W3
        if kind in _STRONG:
            last = kind
        elif kind == "EN" and last == "AL":
            kinds[k] = "AN"
    for k, kind in enumerate(kinds):  # W4: one separator between two numbers of the same kind
        neighbours = kinds[k - 1 : k] + kinds[k + 1 : k + 2]
        if neighbours == ["EN", "EN"] and kind in ("ES", "CS"):
            kinds[k] = "EN"
        elif neighbours == ["AN", "AN"] and kind == "CS":
            kinds[k] = "AN"
    for order in (range(len(kinds)), range(len(kinds) - 1, -1, -1)):  # W5: signs such as % and €
        previous = ""
        for k in order:
            kinds[k] = "EN" if kinds[k] == "ET" and previous == "EN" else kinds[k]
            previous = kinds[k]
    last = base
    for k, kind in enumerate(kinds):  # W7
        last = _STRONG.get(kind, last)
        kinds[k] = "L" if kind == "EN" and last == "L" else _STRONG.get(kind, kind)
    sides = {"L": "L", "R": "R", "EN": "R", "AN": "R"}
    after, sides_after = base, []  # N1, N2: spaces and punctuation take the direction of both sides
    for kind in reversed(kinds):
        after = sides.get(kind, after)
        sides_after.append(after)
    before = base
    for k, (kind, after) in enumerate(zip(kinds, reversed(sides_after), strict=True)):
        if kind in sides:
            before = sides[kind]
        else:
            kinds[k] = before if before == after else base
    if direction == "rtl":
        return [1 if kind == "R" else 2 for kind in kinds]
    return [{"L": 0, "R": 1}.get(kind, 2) for kind in kinds]
