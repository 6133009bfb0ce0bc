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

CLASSES, HEBREW = "abc", "\u05d0\u05d1\u05d2"
DECODING = Decoding(lm_weight=0.7, character_bonus=0.4)
LM_TEXTS = ["abba", "aab", "bacc", "cab"]
LM = CharacterModel.fit(LM_TEXTS, order=3)
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
    logits = rng.normal(size=(rng.integers(1, 6), rng.integers(2, 5))) * rng.choice([0.5, 2, 5])
    if seed % 3 == 0:
        logits[rng.random(logits.shape) < 0.2] = -np.inf
        logits[:, rng.integers(logits.shape[1])] = 0
    return logits


def alternatives(text: Text, i: int, outputs: int) -> list[Text]:
    """The text without its i-th character, and with each character in its place."""
    return [text[:i] + text[i + 1 :], *((*text[:i], k, *text[i + 1 :]) for k in range(1, outputs))]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("lm", [None, LM], ids=["alone", "lm"])
def test_unlimited_search_finds_the_texts_of_the_highest_scores(seed: int, lm: Any) -> None:
    logits = random_logits(seed)
    classes = CLASSES[: logits.shape[1] - 1]
    exact, _ = all_texts(log_probs := log_softmax(logits))

    def score(text: Text) -> float:
        read = "".join(classes[k - 1] for k in text)
        return np.log(max(exact[text], 1e-300)) + (0.7 * lm.log_prob(read) + 0.4 * len(text) if lm else 0)

    texts, log_ctc = search(log_probs, Scorer(lm, classes, DECODING, None), UNLIMITED)
    results = [tuple(text.tolist()) for text in texts]
    assert score(results[0]) == pytest.approx(max(map(score, exact)), abs=1e-9)
    assert len(results) == len({*results})
    np.testing.assert_allclose(np.exp(log_ctc), [exact[text] for text in results], atol=1e-12)
    scores = [score(text) for text in results if exact[text] > 1e-200]
    np.testing.assert_allclose(scores, sorted(scores, reverse=True))


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


@pytest.mark.parametrize("direction", [None, "rtl"])
@pytest.mark.parametrize("seed", range(20))
def test_the_language_model_weighs_the_alternatives(seed: int, direction: Any) -> None:
    classes = HEBREW if direction else CLASSES
    lm = CharacterModel.fit([t.translate(str.maketrans(CLASSES, classes)) for t in LM_TEXTS], order=3)
    logits = np.random.default_rng(seed).normal(size=(5, 4))
    line = read_logits(logits, classes, DECODING, direction, beam=64, lm=lm)
    exact, _ = all_texts(log_softmax(logits))

    def weight(text: Text) -> float:
        read = [classes[k - 1] for k in text]
        scored = 0.7 * lm.log_prob("".join(read[::-1] if direction else read)) + 0.4 * len(text)
        return exact.get(text, 0.0) * float(np.exp(scored))

    shown = sorted(line.characters, key=lambda c: c.left)
    text = tuple(classes.index(c.character) + 1 for c in shown)
    for i, character in enumerate(shown):
        total = sum(weight(other) for other in alternatives(text, i, 4))
        assert character.confidence == pytest.approx(weight(text) / total, abs=0.05)


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


def test_lines_are_read_alike_by_threads_and_with_few_rows_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["le chat est là", "la chatte dort", "tout ce que je possède", "à ma femme"]
    classes, rng = sorted({*"".join(texts)}), np.random.default_rng(0)
    lines = [rng.normal(0, 3, (40, 1 + len(classes))) for _ in range(24)]
    model = CharacterModel.fit(texts, order=4)

    def read(line: Any) -> Any:
        return read_logits(line, classes, DECODING, beam=16, lm=model)

    alone = [*map(read, lines)]
    ctc.scorer_of.cache_clear()
    monkeypatch.setattr(ctc, "MAX_SCORES", 20 * len(classes))
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(read, lines)] == alone
    scorer = ctc.scorer_of(model, tuple(classes), DECODING, None)
    assert len(scorer._rows) + len(scorer._older) <= 24


def test_beams() -> None:
    """One text is the best path; several add up paths; with a language model there are 64 by default."""
    logits = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blanks 0.36, "a" 0.64
    assert read_logits(logits, "a").text == ""
    line = read_logits(logits, "a", beam=2)
    assert line.text == "a" and line.confidence == line.characters[0].confidence == pytest.approx(0.64)
    clear = 9 * np.eye(4)[[0, 1, 1, 0, 1, 2, 0, 3, 3]]
    for beam in (1, 2, 16):
        assert {read_logits(clear, CLASSES, beam=beam, lm=lm).text for lm in (None, LM)} == {"aabc"}
    different = 0
    for logits in np.random.default_rng(0).normal(0, 2, (9, 20, 4)):
        by_default = read_logits(logits, CLASSES, lm=LM)
        assert by_default == read_logits(logits, CLASSES, beam=64, lm=LM)
        different += by_default != read_logits(logits, CLASSES, beam=1, lm=LM)
    assert different


def test_certain_outputs_and_lines_without_steps() -> None:
    logits = np.full((4, 4), -np.inf)
    logits[[0, 1, 2, 3], [1, 0, 1, 2]] = 3.0
    for beam in (1, 8):
        line = read_logits(logits, CLASSES, beam=beam, step=10, end=39)
        assert (line.text, line.confidence) == ("aab", 1.0)
        np.testing.assert_allclose([c[1:3] for c in line.characters], [(0, 10), (20, 30), (30, 39)])
    assert read_logits(np.zeros((0, 4)), CLASSES) == ("", 1.0, ())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_mean_nothing_are_refused(bad: float) -> None:
    logits = np.zeros((3, 4))
    logits[1, 2] = bad
    with pytest.raises(InputError, match="NaN"):
        read_logits(logits, CLASSES)
