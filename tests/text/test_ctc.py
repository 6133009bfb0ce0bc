"""Reading CTC outputs, held against all paths written out."""

from __future__ import annotations

import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdlstm_tk._util.text_order import as_searched, reorder
from mdlstm_tk.errors import InputError
from mdlstm_tk.text import CharacterModel, Decoding
from mdlstm_tk.text.ctc import Fusion, scaled_log_probs, search, transcribe_logits, warn_of_lacking
from mdlstm_tk.text.posteriors import posteriors

CLASSES = "abc"
DECODING = Decoding(temperature=1.0, lm_weight=0.7, character_bonus=0.4)
LM_TEXTS = ["abba", "aab", "bacc", "cab"]
LM = CharacterModel.fit(LM_TEXTS, order=3)
UNLIMITED = 10**12

Text = tuple[int, ...]


def spelled(path: Text) -> Text:
    """The text of a path: repeats merged, blanks dropped."""
    return tuple(k for k, before in zip(path, (0, *path), strict=False) if k and k != before)


def all_texts(log_probs: np.ndarray) -> dict[Text, float]:
    """The probability of every text, by all paths."""
    texts: dict[Text, float] = defaultdict(float)
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        texts[spelled(path)] += float(np.exp(sum(log_probs[t, k] for t, k in enumerate(path))))
    return texts


def random_logits(seed: int) -> np.ndarray:
    """Logits (T ≤ 5, up to 3 characters), flat or peaked; a third have outputs that are impossible."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rng.integers(1, 6), rng.integers(2, 5))) * rng.choice([0.5, 2, 5])
    if seed % 3 == 0:
        logits[rng.random(logits.shape) < 0.2] = -np.inf
        logits[:, rng.integers(logits.shape[1])] = 0
    return logits


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("lm", [None, LM], ids=["alone", "lm"])
def test_unlimited_search_finds_the_text_of_the_highest_score(seed: int, lm: CharacterModel | None) -> None:
    logits = random_logits(seed)
    classes = CLASSES[: logits.shape[1] - 1]
    log_probs = scaled_log_probs(logits, classes, 1.0)
    exact = all_texts(log_probs)

    def score(text: Text) -> float:
        value = float(np.log(max(exact[text], 1e-300)))
        if lm is not None:
            value += 0.7 * lm.log_prob("".join(classes[k - 1] for k in text)) + 0.4 * len(text)
        return value

    texts, log_ctc = search(log_probs, Fusion(lm, classes, DECODING, None), UNLIMITED)
    results = [tuple(text.tolist()) for text in texts]
    assert score(results[0]) == pytest.approx(max(map(score, exact)), abs=1e-9)
    assert len(results) == len(set(results))
    np.testing.assert_allclose(np.exp(log_ctc), [exact[text] for text in results], atol=1e-12)
    scores = [score(text) for text in results if exact[text] > 1e-200]
    np.testing.assert_allclose(scores, sorted(scores, reverse=True))


@pytest.mark.parametrize("seed", range(40))
def test_posteriors_are_sums_over_all_paths(seed: int) -> None:
    log_probs = scaled_log_probs(logits := random_logits(seed), CLASSES[: logits.shape[1] - 1], 1.0)
    exact = all_texts(log_probs)
    for text, probability in exact.items():
        if probability < 1e-200:
            continue
        log_prob, posterior_rows, edges = posteriors(log_probs, np.array(text, int))
        assert np.exp(log_prob) == pytest.approx(probability, abs=1e-12)
        for i, row in enumerate(posterior_rows):
            others = alternatives(text, i, log_probs.shape[1])
            expected = np.array([exact.get(other, 0.0) for other in others])
            np.testing.assert_allclose(row, expected / probability, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(edges, expected_edges(log_probs, text), atol=1e-6)


def alternatives(text: Text, i: int, outputs: int) -> list[Text]:
    """The text without its i-th character, and with each character in its place."""
    return [text[:i] + text[i + 1 :], *((*text[:i], k, *text[i + 1 :]) for k in range(1, outputs))]


@pytest.mark.parametrize("direction", [None, "rtl"])
@pytest.mark.parametrize("seed", range(20))
def test_the_language_model_weighs_the_alternatives(seed: int, direction: Any) -> None:
    classes = "\u05d0\u05d1\u05d2" if direction else CLASSES
    lm = CharacterModel.fit([t.translate(str.maketrans(CLASSES, classes)) for t in LM_TEXTS], order=3)
    logits = np.random.default_rng(seed).normal(size=(5, 4))
    line = transcribe_logits(logits, classes, decoding=DECODING, direction=direction, beam=64, lm=lm)
    exact = all_texts(scaled_log_probs(logits, classes, 1.0))

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
    text = "\u05d0\u05b8\u05d1 (12) \u05d2\u05b6"
    visual = reorder(text, "rtl")
    classes = sorted(set(visual))
    lm = CharacterModel.fit([as_searched(visual, "rtl")], order=3)
    fusion = Fusion(lm, classes, DECODING, "rtl")
    state, score = fusion.start, 0.0
    for output in [*(classes.index(c) + 1 for c in visual[::-1]), 0]:
        scores, states = fusion.after(state)
        score, state = score + scores[output], states[output]
    expected = DECODING.lm_weight * lm.log_prob(as_searched(visual, "rtl"))
    assert score == pytest.approx(expected + DECODING.character_bonus * len(visual))


def expected_edges(log_probs: np.ndarray, text: Text) -> np.ndarray:
    """The mean first step of each character, and the mean step after its last one."""
    edges, total = np.zeros((len(text), 2)), 0.0
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if spelled(path) != text:
            continue
        weight = float(np.exp(sum(log_probs[t, k] for t, k in enumerate(path))))
        starts = [
            t for t, (k, before) in enumerate(zip(path, (0, *path), strict=False)) if k and k != before
        ]
        ends = [
            next((t for t in range(start, len(path)) if path[t] != path[start]), len(path))
            for start in starts
        ]
        edges += weight * np.array([starts, ends]).reshape(2, -1).T
        total += weight
    return edges / total


def test_a_narrow_beam_is_exact_where_the_text_is_clear() -> None:
    path = [0, 1, 1, 0, 1, 2, 0, 3, 3]
    logits = 9 * np.eye(4)[path]
    for beam in (1, 2, 16):
        assert transcribe_logits(logits, CLASSES, beam=beam).text == "aabc"
    assert transcribe_logits(logits, CLASSES, beam=2, lm=LM).text == "aabc"


def test_paths_of_a_text_add_up() -> None:
    logits = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blanks 0.36, "a" 0.64
    assert transcribe_logits(logits, "a").text == ""
    line = transcribe_logits(logits, "a", beam=2)
    assert line.text == "a"
    assert line.confidence == pytest.approx(0.64)
    assert line.characters[0].confidence == pytest.approx(0.64)


def test_certain_outputs_and_steps_without_logits() -> None:
    logits = np.full((4, 4), -np.inf)
    logits[[0, 1, 2, 3], [1, 0, 1, 2]] = 3.0
    for beam in (1, 8):
        line = transcribe_logits(logits, CLASSES, beam=beam, width=40)
        assert (line.text, line.confidence) == ("aab", 1.0)
        edges = [(c.left, c.right) for c in line.characters]
        np.testing.assert_allclose(edges, [(0, 10), (20, 30), (30, 40)])
    empty = transcribe_logits(np.zeros((0, 4)), CLASSES)
    assert (empty.text, empty.confidence, empty.characters) == ("", 1.0, ())


def test_a_very_long_line() -> None:
    rng = np.random.default_rng(0)
    path = np.repeat(rng.integers(1, 4, 1500), 2)
    path[1::2] = 0
    logits = 8 * np.eye(4)[path] + rng.normal(size=(3000, 4))
    line = transcribe_logits(logits, CLASSES, beam=4)
    assert len(line.text) == 1500
    assert line.confidence == pytest.approx(np.mean([c.confidence for c in line.characters]))
    assert all(0 < c.confidence <= 1 and c.left < c.right for c in line.characters)
    lefts = [c.left for c in line.characters]
    assert lefts == sorted(lefts)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_mean_nothing_are_refused(bad: float) -> None:
    logits = np.zeros((3, 4))
    logits[1, 2] = bad
    with pytest.raises(InputError, match="NaN"):
        transcribe_logits(logits, CLASSES)
    with pytest.raises(InputError, match=r"shape \(3, 4\), expected \(T, 3\)"):
        transcribe_logits(np.zeros((3, 4)), "ab")


def test_a_search_with_a_language_model_keeps_64_texts_unless_told() -> None:
    rng, lm = np.random.default_rng(0), CharacterModel.fit(["abba", "cab"])
    different = 0
    for logits in rng.normal(0, 2, (9, 20, 4)):
        by_default = transcribe_logits(logits, "abc", lm=lm)
        assert by_default == transcribe_logits(logits, "abc", beam=64, lm=lm)
        different += by_default != transcribe_logits(logits, "abc", beam=1, lm=lm)
        assert transcribe_logits(logits, "abc") == transcribe_logits(logits, "abc", beam=1)
    assert different


def test_characters_that_a_language_model_lacks_are_named(tmp_path: Path) -> None:
    """Without the space it would let words run together. Other characters are named where the file has no
    <unk> for them."""
    lm = CharacterModel.fit(["ab)", "ba"], order=1)
    with warnings.catch_warnings(action="error"):
        warn_of_lacking(lm, "abc(d", "ltr")
    lm.save(tmp_path / "lm.arpa")
    lines = (tmp_path / "lm.arpa").read_text().replace("ngram 1=6", "ngram 1=5").splitlines()
    (tmp_path / "lm.arpa").write_text("\n".join(line for line in lines if "<unk>" not in line))
    lm = CharacterModel.load(tmp_path / "lm.arpa")
    with pytest.warns(UserWarning, match=r"lm lacks 3 characters that the model reads.*: c\(d$"):
        warn_of_lacking(lm, "abc(d", "ltr")
    with pytest.warns(UserWarning, match=r"lm lacks 2 characters that the model reads.*: cd$"):
        warn_of_lacking(lm, "abc(d", "rtl")  # brackets are in a mirror
    with pytest.raises(InputError, match="lm has no space"):
        transcribe_logits(np.zeros((9, 4)), "ab ", lm=lm)
    with warnings.catch_warnings(action="error"):
        warn_of_lacking(lm, "ab", "ltr")
        transcribe_logits(np.zeros((9, 4)), "abc", lm=lm)  # it is warned of once, not for each line


def test_threads_share_what_a_language_model_has_scored() -> None:
    texts = ["le chat est là", "la chatte dort", "tout ce que je possède", "à ma femme"]
    lm = CharacterModel.fit(texts, order=4)
    classes, rng = sorted(set("".join(texts))), np.random.default_rng(0)
    lines = [rng.normal(0, 3, (40, 1 + len(classes))) for _ in range(24)]

    def read(line: Any, lm: CharacterModel = lm) -> Any:
        return transcribe_logits(line, classes, decoding=Decoding(1.0, 0.8, 1.0), beam=16, lm=lm)

    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(read, lines)]
    assert together == [read(line, CharacterModel.fit(texts, order=4)) for line in lines]
