"""Reading CTC outputs, held against all paths written out."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest

from mdlstm_tk._util.text_order import as_searched, reorder
from mdlstm_tk.errors import InputError
from mdlstm_tk.text import CharacterModel, Decoding, ctc
from mdlstm_tk.text.ctc import Scorer, log_softmax, posteriors, read_logits, search

LETTERS = {None: "abc", "ltr": "abc", "rtl": "\u05d0\u05d1\u05d2"}
LM_TEXTS = ["abba", "aab", "bacc", "cab"]
DECODING = Decoding(lm_weight=0.7, character_bonus=0.4)
UNLIMITED = 10**12

Text = tuple[int, ...]


def all_texts(log_probs: np.ndarray) -> tuple[dict[Text, float], dict[Text, Any]]:
    """The probability of every text, and the mean edges of its characters, by all paths."""
    texts: dict[Text, float] = defaultdict(float)
    edges: dict[Text, Any] = defaultdict(float)
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        weight = float(np.exp(sum(log_probs[t, k] for t, k in enumerate(path))))
        padded = (0, *path, 0)
        starts = [t for t, k in enumerate(path) if k and k != padded[t]]
        ends = [t + 1 for t, k in enumerate(path) if k and k != padded[t + 2]]
        text = tuple(path[t] for t in starts)
        texts[text] += weight
        edges[text] += weight * np.array([starts, ends]).reshape(2, -1).T
    return texts, {text: edges[text] / max(weight, 1e-300) for text, weight in texts.items()}


def random_logits(seed: int) -> np.ndarray:
    """Logits (T ≤ 5, up to 3 characters), flat or peaked; a third have outputs that are impossible."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rng.integers(6), rng.integers(2, 5))) * rng.choice([0.5, 2, 5])
    if seed % 3 == 0:
        logits[rng.random(logits.shape) < 0.2] = -np.inf
        logits[:, rng.integers(logits.shape[1])] = 0
    return logits


def alternatives(text: Text, i: int, outputs: int) -> list[Text]:
    """The text without its i-th character, and with each character in its place."""
    return [text[:i] + text[i + 1 :], *((*text[:i], k, *text[i + 1 :]) for k in range(1, outputs))]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("direction", LETTERS)
@pytest.mark.parametrize("has_lm", [False, True])
def test_texts_and_confidences_are_those_of_all_paths(seed: int, direction: Any, has_lm: bool) -> None:
    """The order of all texts that a search without limits finds, and what is read with it."""
    logits, decoding = random_logits(seed), Decoding((1.0, 0.8, 1.5)[seed % 3], 0.7, 0.4, 1.3)
    outputs = logits.shape[1]
    classes = LETTERS[direction][: outputs - 1]
    table = str.maketrans("abc", LETTERS[direction])
    lm = CharacterModel.fit([text.translate(table) for text in LM_TEXTS], 3) if has_lm else None
    exact, edges = all_texts(log_probs := log_softmax(logits, decoding.temperature))

    def weight(text: Text) -> float:
        """The probability of a text, times that by the language model."""
        read = "".join(classes[k - 1] for k in (text[::-1] if direction == "rtl" else text))
        return exact.get(text, 0.0) * float(np.exp(0.7 * lm.log_prob(read) + 0.4 * len(text) if lm else 0))

    found, log_ctc = search(log_probs, Scorer(lm, classes, decoding, direction), UNLIMITED)
    texts = [tuple(text.tolist()) for text in found]
    assert len(texts) == len({*texts})
    assert weight(texts[0]) == pytest.approx(max(map(weight, exact)), rel=1e-9)
    np.testing.assert_allclose(np.exp(log_ctc), [exact[text] for text in texts], atol=1e-12)
    weights = [weight(text) for text in texts if exact[text] > 1e-200]
    np.testing.assert_allclose(weights, sorted(weights, reverse=True))

    line = read_logits(logits, classes, decoding, direction, beam=UNLIMITED, lm=lm, step=10, end=48)
    shown = sorted(line.characters, key=lambda c: c.left)
    assert [*line.characters] == (shown[::-1] if direction == "rtl" else shown)
    assert "".join(c.character for c in line.characters) == line.text
    assert tuple(classes.index(c.character) + 1 for c in shown) == texts[0]
    np.testing.assert_allclose(
        np.reshape([c[1:3] for c in shown], (-1, 2)), np.minimum(10 * edges[texts[0]], 48)
    )
    for i, character in enumerate(shown):
        ratios = [weight(other) / weight(texts[0]) for other in alternatives(texts[0], i, outputs)]
        expected = 1 / np.sum(np.array(ratios) ** (1 / 1.3 if lm else 1))
        assert character.confidence == pytest.approx(expected, abs=0.05 if lm else 1e-7)
    confidences = [c.confidence for c in shown] or [exact[()]]
    assert line.confidence == pytest.approx(np.mean(confidences))


@pytest.mark.parametrize("seed", range(40))
def test_posteriors_are_sums_over_all_paths(seed: int) -> None:
    exact, edges = all_texts(log_probs := log_softmax(random_logits(seed)))
    for text, probability in exact.items():
        if probability < 1e-200:
            continue
        log_prob, ratios, places = posteriors(log_probs, np.array(text, int))
        assert np.exp(log_prob) == pytest.approx(probability, abs=1e-12)
        np.testing.assert_allclose(places, edges[text], atol=1e-6)
        for i, row in enumerate(ratios):
            expected = [exact.get(other, 0.0) for other in alternatives(text, i, log_probs.shape[1])]
            np.testing.assert_allclose(row, np.array(expected) / probability, rtol=1e-7, atol=1e-8)


def test_a_language_model_scores_what_it_has_learned() -> None:
    """Also of texts from right to left with vowels, numbers and brackets."""
    visual = reorder("\u05d0\u05b8\u05d1 (12) \u05d2\u05b6", "rtl")
    classes = sorted({*visual})
    lm = CharacterModel.fit_sequences([as_searched(visual, "rtl")], order=3)
    scorer = Scorer(lm, classes, DECODING, "rtl")
    state, score = scorer.start, 0.0
    for output in [*(classes.index(c) + 1 for c in visual[::-1]), 0]:
        scores, states = scorer.after(state)
        score, state = score + scores[output], states[output]
    expected = DECODING.lm_weight * lm.log_prob_of(as_searched(visual, "rtl"))
    assert score == pytest.approx(expected + DECODING.character_bonus * len(visual))


def test_beams_threads_and_few_rows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text is the best path; several add up paths; with a language model there are 64 by default. What
    threads read, and with few rows kept, is the same."""
    two = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blanks 0.36, "a" 0.64
    assert read_logits(two, "a").text == "" and read_logits(two, "a", beam=2).text == "a"
    texts = ["le chat est là", "la chatte dort", "tout ce que je possède", "à ma femme"]
    classes, rng = sorted({*"".join(texts)}), np.random.default_rng(0)
    lines = [rng.normal(0, 3, (40, 1 + len(classes))) for _ in range(24)]
    model = CharacterModel.fit(texts, order=4)

    def read(line: Any, beam: int | None = 16) -> Any:
        return read_logits(line, classes, DECODING, beam=beam, lm=model)

    alone = [*map(read, lines)]
    assert [read(line, None) for line in lines] == [read(line, 64) for line in lines] != alone
    ctc.scorer_of.cache_clear()
    monkeypatch.setattr(ctc, "MAX_SCORES", 20 * len(classes))
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(read, lines)] == alone
    assert len(ctc.scorer_of(model, tuple(classes), DECODING, None)._rows) <= 21 + 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_mean_nothing_are_refused(bad: float) -> None:
    logits = np.zeros((3, 4))
    logits[1, 2] = bad
    with pytest.raises(InputError, match="NaN"):
        read_logits(logits, "abc")
