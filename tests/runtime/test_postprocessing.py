"""Decoding the outputs of networks: labels, probabilities and texts."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from mdlstm_tk.runtime.postprocessing import labels, probabilities, transcripts


def test_the_best_path_joins_repeats_and_drops_blanks() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 30, 5)).astype(np.float32)
    for row, text in zip(logits, transcripts(logits, "wxyz"), strict=True):
        path = [key for key, _ in groupby(row.argmax(-1).tolist())]
        assert text == "".join("wxyz"[k - 1] for k in path if k > 0)


def test_labels_and_probabilities() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [1000.0, -1000.0, 0.0]], dtype=np.float32)
    assert labels(logits).tolist() == [1, 0]
    assert labels(logits[None, :, None]).shape == (1, 2, 1)
    result = probabilities(logits)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(result[0, 1] / result[0, 2], np.e, rtol=1e-5)
    assert result[1].tolist() == [1, 0, 0]
