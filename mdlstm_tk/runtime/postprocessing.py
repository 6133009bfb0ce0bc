"""From what a network puts out to what a person wants: labels, masks and texts. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def labels(logits: Floats) -> npt.NDArray[np.int64]:
    """The likeliest class: (N, K) → (N,) of a classifier, (N, *grid, K) → (N, *grid) of a segmenter."""
    best: npt.NDArray[np.int64] = logits.argmax(axis=-1)
    return best


def probabilities(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = shares / shares.sum(axis=-1, keepdims=True)
    return result


def decode(logits: Floats, kind: str, classes: Sequence[str]) -> npt.NDArray[np.str_ | np.uint8]:
    """What a person wants to know: labels (N,) or texts (N,), or the classes of a mask (…, H, W) as bytes.

    Args:
        logits: of a classifier (K,) or (N, K); of a recogniser (T, 1 + characters), or N of them; of a
            segmenter (…, H, W, K).
        kind: "classify", "transcribe" or "segment".
        classes: names of the classes, or the characters.
    """
    if kind == "segment":
        return labels(logits).astype(np.uint8)
    if kind == "classify":
        return np.array([classes[k] for k in labels(np.atleast_2d(logits))], dtype=np.str_)
    lines = logits if logits.ndim == 3 else logits[None]
    return np.array(transcripts(lines, classes), dtype=np.str_)


def transcripts(logits: Floats, alphabet: Sequence[str]) -> list[str]:
    """Texts by best path: the likeliest output of each step, repeats once, blanks left out.

    Args:
        logits: (N, T, 1 + characters) of a recogniser; output 0 is the blank.
        alphabet: the characters, output k + 1 stands for alphabet[k].
    """
    path = labels(logits)
    changed = np.ones(path.shape, dtype=bool)
    changed[:, 1:] = path[:, 1:] != path[:, :-1]
    return [
        "".join(alphabet[k - 1] for k in row[kept])
        for row, kept in zip(path, changed & (path > 0), strict=True)
    ]
