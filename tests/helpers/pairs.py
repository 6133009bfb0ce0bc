"""Few combinations of options in which any two values of different options meet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from random import Random
from typing import Any


def all_pairs(seed: int = 0, /, **options: Sequence[Any]) -> list[dict[str, Any]]:
    """Combinations of one value of each option, such that each pair of values is in one of them.

    Args:
        seed: of the choice among combinations that are equally good.
        options: by name, their values. Most of the combinations have as many rows as the two longest need.
    """
    random, names = Random(seed), list(options)
    missing = {
        ((one, i), (other, j))
        for one, other in combinations(names, 2)
        for i, j in product(range(len(options[one])), range(len(options[other])))
    }
    rows = []
    while missing:
        (first, i), (second, j) = min(missing, key=lambda pair: (str(pair), random.random()))
        row = {first: i, second: j}
        for name in sorted(names, key=lambda _: random.random()):
            if name not in row:
                values = sorted(range(len(options[name])), key=lambda _: random.random())
                row[name] = max(values, key=lambda k: len(_pairs(names, {**row, name: k}) & missing))
        missing -= _pairs(names, row)
        rows.append({name: options[name][row[name]] for name in names})
    return rows


def _pairs(names: Sequence[str], row: dict[str, int]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    chosen = [(name, row[name]) for name in names if name in row]
    return set(combinations(chosen, 2))
