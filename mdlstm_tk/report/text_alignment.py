"""What has to be edited in one text to make another of it."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """A piece of both texts: equal, or a character of one for none or one of the other.

    Attributes:
        said: in the predicted text.
        truth: in the true one.
    """

    said: str
    truth: str


def align(said: str, truth: str) -> list[Edit]:
    """Both texts side by side, character by character, with as few edits as can be."""
    distance = [[0] * (len(truth) + 1) for _ in range(len(said) + 1)]  # of what is left of both
    for i in range(len(said), -1, -1):
        for j in range(len(truth), -1, -1):
            if i == len(said) or j == len(truth):
                distance[i][j] = len(said) - i + len(truth) - j
            else:
                swap = distance[i + 1][j + 1] + (said[i] != truth[j])
                distance[i][j] = min(swap, 1 + distance[i + 1][j], 1 + distance[i][j + 1])
    edits, i, j = [], 0, 0
    while i < len(said) or j < len(truth):
        both = i < len(said) and j < len(truth)
        if both and distance[i][j] == distance[i + 1][j + 1] + (said[i] != truth[j]):
            edits.append(Edit(said[i], truth[j]))
            i, j = i + 1, j + 1
        elif i < len(said) and distance[i][j] == 1 + distance[i + 1][j]:
            edits.append(Edit(said[i], ""))
            i += 1
        else:
            edits.append(Edit("", truth[j]))
            j += 1
    return edits
