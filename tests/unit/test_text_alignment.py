"""The alignment of a predicted text with the true one."""

from __future__ import annotations

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from mdlstm_tk.report.text_alignment import align


@pytest.mark.parametrize(
    ("predicted", "truth", "edits"),
    [
        ("", "", []),
        ("", "ab", [("", "a"), ("", "b")]),
        ("ab", "", [("a", ""), ("b", "")]),
        ("cat", "cut", [("c", "c"), ("a", "u"), ("t", "t")]),
        ("abc", "bc", [("a", ""), ("b", "b"), ("c", "c")]),
        ("ab", "acb", [("a", "a"), ("", "c"), ("b", "b")]),
    ],
)
def test_alignment_of_short_texts(predicted: str, truth: str, edits: list[tuple[str, str]]) -> None:
    assert align(predicted, truth) == edits


def test_an_alignment_spells_both_texts_with_the_fewest_errors() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        predicted, truth = ("".join(rng.choice(list("ab c"), rng.integers(0, 7))) for _ in range(2))
        edits = align(predicted, truth)
        assert "".join(edit.predicted for edit in edits) == predicted
        assert "".join(edit.truth for edit in edits) == truth
        assert sum(edit.is_error for edit in edits) == Levenshtein.distance(predicted, truth)
