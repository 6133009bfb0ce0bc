"""Decode the outputs of networks into labels, masks and texts, with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def labels(logits: Floats) -> npt.NDArray[np.int64]:
    """Indices of the most likely class.

    Args:
        logits: (N, K) of a classifier, or (N, *grid, K) of a segmenter.

    Returns:
        (N,) or (N, *grid).
    """
    best: npt.NDArray[np.int64] = logits.argmax(axis=-1)
    return best


def probabilities(logits: Floats) -> Floats:
    """Softmax over the last axis; the shape stays the same."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def decode(logits: Floats, kind: str, classes: Sequence[str]) -> npt.NDArray[np.str_ | np.uint8]:
    """Decode the output of a network by the kind of its task.

    Args:
        logits: (K,) or (N, K) for "classify"; (T, 1 + characters) or (N, T, 1 + characters) for
            "transcribe"; (…, H, W, K) for "segment".
        kind: "classify", "transcribe" or "segment".
        classes: names of the K classes, or the characters.

    Returns:
        Labels or texts of shape (N,), or a mask of class indices of shape (…, H, W).
    """
    if kind == "segment":
        return labels(logits).astype(np.uint8)
    if kind == "classify":
        return np.array([classes[k] for k in labels(np.atleast_2d(logits))], dtype=np.str_)
    lines = logits if logits.ndim == 3 else logits[None]
    return np.array(transcripts(lines, classes), dtype=np.str_)


def transcripts(logits: Floats, alphabet: Sequence[str]) -> list[str]:
    """Decode texts by the best path of CTC (Graves et al. 2006): take the most likely output of each
    step, merge repeats, and drop blanks.

    Args:
        logits: (N, T, 1 + characters) of a recogniser; output 0 is the blank.
        alphabet: the characters; output k + 1 stands for alphabet[k].

    Returns:
        N texts.
    """
    path = labels(logits)
    changed = np.ones(path.shape, dtype=bool)
    changed[:, 1:] = path[:, 1:] != path[:, :-1]
    return [
        "".join(alphabet[k - 1] for k in row[emitted])
        for row, emitted in zip(path, changed & (path > 0), strict=True)
    ]
