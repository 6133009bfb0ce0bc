"""Character models, held against the formulas of Chen and Goodman computed from counted n-grams."""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from math import exp, log, log10
from pathlib import Path

import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.text import CharacterModel
from mdlstm_tk.text.character_model import BEGIN, DISCOUNTS, END, UNKNOWN

TEXTS = [
    "the cat sat",
    "a hat",
    "that chat",
    "the heat at the seat",
    "a tea",
    "teach the cat",
    "eat the meat",
    "",
    "he",
    "a cheat",
]
TEXTS += ["she ate the tea that the cat had"]


class Reference:
    """Interpolated modified Kneser-Ney, slowly."""

    def __init__(self, texts: list[str], order: int) -> None:
        self.order = order
        raw: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            tokens = (BEGIN, *text, END)
            for n in range(1, order + 1):
                raw.update(tokens[k : k + n] for k in range(len(tokens) - n + 1))
        before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.counts = {
            gram: count if len(gram) == order or gram[0] == BEGIN else len(before[gram])
            for gram, count in raw.items()
            if gram != (BEGIN,)
        }
        self.vocabulary = {gram[0] for gram in raw if len(gram) == 1} - {BEGIN} | {UNKNOWN}
        self.discounts = {n: self.estimate(n) for n in range(1, order + 1)}

    def estimate(self, n: int) -> tuple[float, ...]:
        counts = Counter(count for gram, count in self.counts.items() if len(gram) == n)
        n1, n2, n3, n4 = (counts[k] for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        estimated = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return estimated if min(estimated[1:]) > 0 else DISCOUNTS

    def probability(self, context: tuple[str, ...], token: str) -> float:
        n = len(context) + 1
        following = {g: c for g, c in self.counts.items() if len(g) == n and g[:-1] == context}
        shorter = self.probability(context[1:], token) if context else 1 / len(self.vocabulary)
        if not following:
            return shorter
        total, discounts = sum(following.values()), self.discounts[n]
        left = sum(discounts[min(c, 3)] for c in following.values()) / total
        count = following.get((*context, token), 0)
        return (count - discounts[min(count, 3)]) / total + left * shorter

    def log_prob(self, text: str) -> float:
        tokens = [BEGIN, *(c if c in self.vocabulary else UNKNOWN for c in text), END]
        context = [tuple(tokens[max(0, k - self.order + 1) : k]) for k in range(len(tokens))]
        return sum(log(self.probability(context[k], tokens[k])) for k in range(1, len(tokens)))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6, 50])
@pytest.mark.parametrize(
    "texts", [TEXTS, [*TEXTS, "a|b"], ["a|b\u00a0", "b|"]], ids=["", "bar", "no space"]
)
def test_probabilities_are_those_of_the_formulas_and_files_hold_them(
    order: int, texts: list[str], tmp_path: Path
) -> None:
    """A bar often stands for a blank in files, but not in these texts."""
    model, others = CharacterModel.fit(texts, order), (*texts, "tac eht", "zebra", "q", "aaaaaaaa")
    if " " in "".join(texts):  # else the model has a space beyond the formulas
        reference = Reference(texts, order)
        for text in others:
            assert model.log_prob(text) == pytest.approx(reference.log_prob(text), abs=1e-9)
    for state in model.ngrams:
        following = (model.after(state, token)[0] for token in model.ngrams[""] if token != BEGIN)
        assert sum(map(exp, following)) == pytest.approx(1, abs=1e-9)
    for name in ("m.arpa", "m.arpa.gz"):
        model.save(tmp_path / name)
        loaded = CharacterModel.load(tmp_path / name)
        assert loaded.tokens == model.tokens
        for text in others:
            assert loaded.log_prob(text) == pytest.approx(model.log_prob(text), abs=1e-4)


def write_arpa(path: Path, *sections: dict[str, tuple[float, float]], separator: str = "\t") -> Path:
    """Write an ARPA file of probabilities and backoff weights."""
    lines = ["a comment", "", "\\data\\", *(f"ngram {n}={len(s)}" for n, s in enumerate(sections, 1)), ""]
    for n, section in enumerate(sections, 1):
        rows = ((f"{log10(p)}", gram, f"{log10(backoff)}") for gram, (p, backoff) in section.items())
        lines += [f"\\{n}-grams:", *map(separator.join, rows), ""]
    path.write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")
    return path


UNIGRAMS = {UNKNOWN: (0.1, 1), BEGIN: (1e-99, 0.5), END: (0.2, 1), "a": (0.3, 0.4), "b": (0.2, 0.8)}


@pytest.mark.parametrize("space", ["<space>", "▁", "|"])
@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("unknown", [UNKNOWN, "<UNK>"])
def test_files_of_other_programs(tmp_path: Path, space: str, separator: str, unknown: str) -> None:
    grams = {f"{BEGIN} a": 0.6, f"a {space}": 0.5, f"{space} b": 0.7, f"b {unknown}": 0.3}
    unigrams = {unknown if name == UNKNOWN else name: row for name, row in UNIGRAMS.items()}
    bigrams = {gram: (p, 1.0) for gram, p in grams.items()}
    path = write_arpa(tmp_path / "m.arpa", unigrams | {space: (0.2, 0.9)}, bigrams, separator=separator)
    model = CharacterModel.load(path)
    expected = 0.6 * 0.5 * 0.7 * 0.8 * 0.3 * (0.4 * 0.1) * (1 * 0.2)
    assert exp(model.log_prob("a ba?")) == pytest.approx(expected)
    assert exp(model.log_prob("b?")) == pytest.approx(0.5 * 0.2 * 0.3 * 1 * 0.2)


def test_contexts_that_a_program_pruned_and_files_without_special_tokens(tmp_path: Path) -> None:
    trigrams = {f"{BEGIN} a b": (0.9, 1)}  # without its context "<s> a" and its suffix "a b"
    model = CharacterModel.load(write_arpa(tmp_path / "m.arpa", UNIGRAMS, {"b a": (0.6, 1)}, trigrams))
    assert exp(model.log_prob("ab")) == pytest.approx(0.5 * 0.3 * 0.9 * 0.8 * 0.2)
    assert exp(model.log_prob("aa")) == pytest.approx(0.5 * 0.3 * 0.4 * 0.3 * 0.4 * 0.2)
    model = CharacterModel.load(write_arpa(tmp_path / "n.arpa", {"a": (0.6, 1), "b": (0.4, 1)}))
    assert model.log_prob("ab") - model.log_prob("a") == pytest.approx(log(0.4))
    assert model.log_prob("a?") - model.log_prob("a") == pytest.approx(-100 * log(10))


def test_texts_are_composed_blanks_are_spaces_and_a_perplexity_counts_ends() -> None:
    model = CharacterModel.fit(["e\u0301\ta"], 2)
    assert sorted(model.tokens) == [" ", "a", "é"]
    texts = ["é a", "e\u0301"]
    assert model.log_prob(texts[0]) == model.log_prob("e\u0301\na")
    assert model.perplexity(texts) == pytest.approx(exp(-sum(map(model.log_prob, texts)) / 6))
    for nothing in ([], "a text"):
        with pytest.raises(InputError):
            CharacterModel.fit(nothing)


WHOLE = "\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-1 a\n-1 b\n\n\\2-grams:\n-1 a b\n\n\\end\\\n"
LINES = WHOLE.splitlines(keepends=True)
DAMAGED = [WHOLE[:k] for k in range(len(WHOLE) - 1)]  # it ends early, or a line is missing, twice, or wrong
DAMAGED += ["".join([*LINES[:k], *LINES[k + 1 :]]) for k in range(1, len(LINES)) if LINES[k].strip()]
DAMAGED += ["".join([*LINES[:k], LINES[k], *LINES[k:]]) for k in (5, 6, 9)]
DAMAGED += [
    WHOLE.replace("-1 b\n", f"{row}\n") for row in ("3 b", "nan b", "-1 b inf", "-1", "x b", "-1 b x")
]
DAMAGED += [WHOLE.replace("-1 a b", "-1 b"), WHOLE.replace("\\1-grams", "\\3-grams")]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path, packed = tmp_path / "lm.arpa", gzip.compress(WHOLE.encode())
    path.write_text(WHOLE)
    assert CharacterModel.load(path).log_prob("a") < 0
    for data in (*(text.encode() for text in DAMAGED), packed[:-20], packed[:4], b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="no complete ARPA file"):
            CharacterModel.load(path)
