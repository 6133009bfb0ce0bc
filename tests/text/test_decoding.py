"""Reading CTC outputs, held against all paths written out; and character models, held against the formulas
of Chen and Goodman."""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from functools import cache
from itertools import product
from math import exp, log, log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdlstm_tk._util.text_order import MIRRORED, as_searched
from mdlstm_tk.errors import InputError
from mdlstm_tk.text import CharacterModel, Decoding, ctc
from mdlstm_tk.text.character_model import BEGIN, DISCOUNTS, END, UNKNOWN
from mdlstm_tk.text.ctc import Scorer, log_softmax, posteriors, read_logits, search

LETTERS = {None: "abc", "ltr": "abc", "rtl": "\u05d0\u05d1("}  # as images show them
LM_TEXTS = ["abba", "aab", "bacc", "cab"]
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


def kneser_ney(texts: list[str], order: int) -> Any:
    """log P of a text by interpolated modified Kneser-Ney, slowly."""
    lines = [(BEGIN, *text, END) for text in texts]
    raw = Counter(x[k : k + n] for n in range(1, order + 1) for x in lines for k in range(len(x) - n + 1))
    before = Counter(gram[1:] for gram in raw)
    vocabulary = {token for line in lines for token in line[1:]} | {UNKNOWN}
    kept = {g: c if len(g) == order or g[0] == BEGIN else before[g] for g, c in raw.items()}
    del kept[(BEGIN,)]

    @cache
    def discounts(n: int) -> tuple[float, ...]:
        counts = Counter(count for gram, count in kept.items() if len(gram) == n)
        n1, n2, n3, n4 = (counts[k] for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        estimated = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return estimated if min(estimated[1:]) > 0 else DISCOUNTS

    @cache
    def probability(context: tuple[str, ...], token: str) -> float:
        following = {g[-1]: c for g, c in kept.items() if g[:-1] == context}
        shorter = probability(context[1:], token) if context else 1 / len(vocabulary)
        if not following:
            return shorter
        discount, count = discounts(len(context) + 1), following.get(token, 0)
        left = sum(discount[min(c, 3)] for c in following.values())
        return (count - discount[min(count, 3)] + left * shorter) / sum(following.values())

    def log_prob(text: str) -> float:
        tokens = (BEGIN, *(c if c in vocabulary else UNKNOWN for c in text), END)
        starts = ((max(0, k - order + 1), k) for k in range(1, len(tokens)))
        return sum(log(probability(tokens[start:k], tokens[k])) for start, k in starts)

    return log_prob


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("direction", LETTERS)
@pytest.mark.parametrize("has_lm", [False, True])
def test_texts_and_confidences_are_those_of_all_paths(seed: int, direction: Any, has_lm: bool) -> None:
    """The order of all texts that a search without limits finds, and what is read with it; brackets are in
    a mirror where texts run from the right."""
    logits, decoding = random_logits(seed), Decoding((1.0, 0.8, 1.5)[seed % 3], 0.7, 0.4, 1.3)
    outputs = logits.shape[1]
    classes = LETTERS[direction][: outputs - 1]
    searched = str.maketrans("abc", LETTERS[direction].translate(MIRRORED))
    lm = CharacterModel.fit([[*text.translate(searched)] for text in LM_TEXTS], 3) if has_lm else None
    exact, edges = all_texts(log_probs := log_softmax(logits, decoding.temperature))

    def weight(text: Text) -> float:
        """The probability of a text, times that by the language model."""
        read = as_searched("".join(classes[k - 1] for k in text), direction)
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
    visual = [c.character.translate(MIRRORED if direction == "rtl" else {}) for c in shown]
    assert [*line.characters] == (shown[::-1] if direction == "rtl" else shown)
    assert "".join(c.character for c in line.characters) == line.text
    assert tuple(classes.index(c) + 1 for c in visual) == texts[0]
    places = np.reshape([c[1:3] for c in shown], (-1, 2))
    np.testing.assert_allclose(places, np.minimum(10 * edges[texts[0]], 48))
    for text in [text for text, p in exact.items() if p > 1e-200 and not has_lm]:
        log_prob, found_ratios, places = posteriors(log_probs, np.array(text, int))
        assert np.exp(log_prob) == pytest.approx(exact[text], abs=1e-12)
        np.testing.assert_allclose(places, edges[text], atol=1e-6)
        for i, row in enumerate(found_ratios):
            expected = [exact.get(other, 0.0) / exact[text] for other in alternatives(text, i, outputs)]
            np.testing.assert_allclose(row, expected, rtol=1e-7, atol=1e-8)
    for i, character in enumerate(shown):
        ratios = [weight(other) / weight(texts[0]) for other in alternatives(texts[0], i, outputs)]
        expected = 1 / np.sum(np.array(ratios) ** (1 / 1.3 if lm else 1))
        assert character.confidence == pytest.approx(expected, abs=0.05 if lm else 1e-7)
    assert line.confidence == pytest.approx(np.mean([c.confidence for c in shown] or [exact[()]]))


def test_beams_and_few_rows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text is the best path; several add up paths; with a language model there are 64 by default."""
    two = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))  # blanks 0.36, "a" 0.64
    assert read_logits(two, "a").text == "" and read_logits(two, "a", beam=2).text == "a"
    classes, rng, model = "abc", np.random.default_rng(0), CharacterModel.fit(LM_TEXTS * 9, order=4)
    lines = [rng.normal(0, 3, (40, 4)) for _ in range(24)]
    few, usual, many = ([read_logits(x, classes, beam=b, lm=model) for x in lines] for b in (3, None, 64))
    assert few != usual == many
    ctc.scorer_of.cache_clear()
    monkeypatch.setattr(ctc, "MAX_SCORES", 5 * len(classes))
    assert [read_logits(x, classes, beam=3, lm=model) for x in lines] == few
    assert len(ctc.scorer_of(model, tuple(classes), Decoding(), None)._rows) <= 6 + 4
    for bad in (np.nan, np.inf):
        lines[0][1, 2] = bad
        with pytest.raises(InputError):
            read_logits(lines[0], classes)


TEXTS = ["the cat sat", "a hat", "that chat", "the heat at the seat", "a tea", "teach the cat", "", "he"]
TEXTS += ["eat the meat", "a cheat", "she ate the tea that the cat had"]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6, 50])
@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS, "a|b"], ["a|b\u00a0", "b|"]])
def test_probabilities_are_those_of_the_formulas_and_files_hold_them(
    order: int, texts: list[str], tmp_path: Path
) -> None:
    """A bar often stands for a blank in files, but not in these texts."""
    model, others = CharacterModel.fit(texts, order), (*texts, "tac eht", "zebra", "q", "aaaaaaaa")
    if " " in "".join(texts):  # else the model has a space beyond the formulas
        assert [*map(model.log_prob, others)] == pytest.approx([*map(kneser_ney(texts, order), others)])
    for state in model.ngrams:
        following = (model.after(state, token)[0] for token in model.ngrams[""] if token != BEGIN)
        assert sum(map(exp, following)) == pytest.approx(1, abs=1e-9)
    total, count = sum(map(model.log_prob, texts)), sum(len(text) + 1 for text in texts)
    assert model.perplexity(texts) == pytest.approx(exp(-total / count))
    for name in ("m.arpa", "m.arpa.gz"):
        model.save(tmp_path / name)
        loaded = CharacterModel.load(tmp_path / name)
        assert loaded.tokens == model.tokens
        assert [*map(loaded.log_prob, others)] == pytest.approx([*map(model.log_prob, others)], abs=1e-4)


@pytest.mark.parametrize("space", ["<space>", "▁", "|"])
@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("unknown", [UNKNOWN, "<UNK>", ""])
def test_files_of_other_programs(tmp_path: Path, space: str, separator: str, unknown: str) -> None:
    """Without <unk>, other characters are as likely as the rarest one."""
    unigrams = {BEGIN: (1e-99, 0.5), END: (0.2, 1), "a": (0.3, 0.4), "b": (0.2, 0.8), space: (0.1, 0.9)}
    bigrams = {f"{BEGIN} a": (0.6, 1), f"a {space}": (0.5, 1), f"{space} b": (0.7, 1)}
    sections = [unigrams | ({unknown: (0.1, 1)} if unknown else {}), bigrams]
    lines = ["a comment", "", "\\data\\", *(f"ngram {n}={len(s)}" for n, s in enumerate(sections, 1)), ""]
    for n, section in enumerate(sections, 1):
        rows = ((f"{log10(p)}", gram, f"{log10(backoff)}") for gram, (p, backoff) in section.items())
        lines += [f"\\{n}-grams:", *map(separator.join, rows), ""]
    (tmp_path / "m.arpa").write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")
    model = CharacterModel.load(tmp_path / "m.arpa")
    expected = 0.6 * 0.5 * 0.7 * (0.8 * 0.3) * (0.4 * 0.1) * 0.2
    assert exp(model.log_prob("a ba?")) == pytest.approx(expected)
    assert exp(model.log_prob("b?")) == pytest.approx(0.5 * 0.2 * (0.8 * 0.1) * 0.2)


WHOLE = "\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-1 a\n-1 b\n\n\\2-grams:\n-1 a b\n\n\\end\\\n"
LINES = WHOLE.splitlines(keepends=True)
DAMAGED = [WHOLE[:k] for k in range(len(WHOLE) - 1)]  # it ends early, or a line is missing, twice, or wrong
DAMAGED += ["".join([*LINES[:k], *LINES[k + 1 :]]) for k in range(1, len(LINES)) if LINES[k].strip()]
DAMAGED += ["".join([*LINES[:k], LINES[k], *LINES[k:]]) for k in (5, 6, 9)]
ROWS = ("3 b", "nan b", "-1 b inf", "-1", "x b", "-1 b x")
DAMAGED += [WHOLE.replace("-1 b\n", f"{row}\n") for row in ROWS] + [WHOLE.replace("-1 a b", "-1 b")]


def test_texts_are_composed_and_damaged_files_and_no_texts_are_refused(tmp_path: Path) -> None:
    model = CharacterModel.fit(["e\u0301\ta"], 2)
    assert sorted(model.tokens) == [" ", "a", "é"] and model.log_prob("é a") == model.log_prob("e\u0301\na")
    for nothing in ([], "a text"):
        with pytest.raises(InputError):
            CharacterModel.fit(nothing)
    path, packed = tmp_path / "lm.arpa", gzip.compress(WHOLE.encode())
    path.write_text(WHOLE)
    assert CharacterModel.load(path).log_prob("a") < 0
    for data in (*(text.encode() for text in DAMAGED), packed[:-20], packed[:4], b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(InputError):
            CharacterModel.load(path)
