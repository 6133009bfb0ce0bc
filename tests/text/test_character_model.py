"""Character models, held against the formulas of Chen and Goodman computed from counted n-grams."""

from __future__ import annotations

import gzip
import pickle
from collections import Counter, defaultdict
from math import exp, log, log10
from pathlib import Path

import numpy as np
import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.text import CharacterModel
from mdlstm_tk.text.character_model import DISCOUNTS

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
    "she ate the tea that the cat had",
    "a cheat",
]
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"


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
        steps = range(1, len(tokens))
        return sum(
            log(self.probability(tuple(tokens[max(0, k - self.order + 1) : k]), tokens[k])) for k in steps
        )


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_probabilities_are_those_of_the_formulas(order: int) -> None:
    model, reference = CharacterModel.fit(TEXTS, order), Reference(TEXTS, order)
    for text in (*TEXTS, "tac eht", "zebra", "q", "aaaaaaaa"):
        assert model.log_prob(text) == pytest.approx(reference.log_prob(text), abs=1e-9)


@pytest.mark.parametrize("order", [1, 3, 6])
def test_probabilities_after_each_state_sum_to_one(order: int) -> None:
    model = CharacterModel.fit(TEXTS, order)
    states, reached = [0, model.start], {0, model.start}
    while states:
        log_probs, following = model.after(states.pop())
        predicted = np.delete(np.exp(log_probs), model.index[BEGIN])
        assert predicted.min() > 0
        assert predicted.sum() == pytest.approx(1, abs=1e-12)
        new = set(following.tolist()) - reached
        states += new
        reached |= new


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_files_hold_the_model(tmp_path: Path, name: str) -> None:
    texts = [*TEXTS, "a|b"]  # a bar often stands for a blank in files, but not in this text
    model = CharacterModel.fit(texts, 4)
    model.save(tmp_path / name)
    loaded = CharacterModel.load(tmp_path / name)
    assert loaded.vocabulary == model.vocabulary
    assert loaded.order == 4
    for text in (*texts, "zebra crossing"):
        assert loaded.log_prob(text) == pytest.approx(model.log_prob(text), abs=1e-4)
    again = tmp_path / f"again-{name}"
    loaded.save(again)
    assert again.read_bytes() == (tmp_path / name).read_bytes()


def write_arpa(path: Path, *sections: dict[str, tuple[float, float]], separator: str = "\t") -> Path:
    """Write an ARPA file of probabilities and backoff weights."""
    lines = ["a comment", "", "\\data\\", *(f"ngram {n}={len(s)}" for n, s in enumerate(sections, 1)), ""]
    for n, section in enumerate(sections, 1):
        lines.append(f"\\{n}-grams:")
        for gram, (probability, backoff) in section.items():
            lines.append(separator.join((f"{log10(probability)}", gram, f"{log10(backoff)}")))
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")
    return path


UNIGRAMS = {UNKNOWN: (0.1, 1), BEGIN: (1e-99, 0.5), END: (0.2, 1), "a": (0.3, 0.4), "b": (0.2, 0.8)}


@pytest.mark.parametrize("space", ["<space>", "▁", "|"])
@pytest.mark.parametrize("separator", ["\t", " "])
def test_files_of_other_programs(tmp_path: Path, space: str, separator: str) -> None:
    bigrams = {f"{BEGIN} a": (0.6, 1), f"a {space}": (0.5, 1), f"{space} b": (0.7, 1)}
    model = CharacterModel.load(
        write_arpa(tmp_path / "m.arpa", {**UNIGRAMS, space: (0.2, 0.9)}, bigrams, separator=separator)
    )
    expected = 0.6 * 0.5 * 0.7 * 0.8 * 0.3 * (0.4 * 0.1) * (1 * 0.2)
    assert exp(model.log_prob("a ba?")) == pytest.approx(expected)


def test_the_unknown_token_may_be_in_capitals(tmp_path: Path) -> None:
    unigrams = {"<UNK>" if name == UNKNOWN else name: row for name, row in UNIGRAMS.items()}
    model = CharacterModel.load(write_arpa(tmp_path / "m.arpa", unigrams, {"a <UNK>": (0.6, 1)}))
    assert exp(model.log_prob("a?b")) == pytest.approx(0.5 * 0.3 * 0.6 * 0.2 * 0.8 * 0.2)


def test_contexts_that_a_program_pruned(tmp_path: Path) -> None:
    trigrams = {f"{BEGIN} a b": (0.9, 1)}  # without its context "<s> a" and its suffix "a b"
    model = CharacterModel.load(write_arpa(tmp_path / "m.arpa", UNIGRAMS, {"b a": (0.6, 1)}, trigrams))
    assert exp(model.log_prob("ab")) == pytest.approx(0.5 * 0.3 * 0.9 * 0.8 * 0.2)
    assert exp(model.log_prob("aa")) == pytest.approx(0.5 * 0.3 * 0.4 * 0.3 * 0.4 * 0.2)


def test_files_without_special_tokens(tmp_path: Path) -> None:
    model = CharacterModel.load(write_arpa(tmp_path / "m.arpa", {"a": (0.6, 1), "b": (0.4, 1)}))
    assert model.log_prob("ab") - model.log_prob("a") == pytest.approx(log(0.4))
    assert model.log_prob("a?") - model.log_prob("a") == pytest.approx(-100 * log(10))


def test_perplexity_counts_the_end() -> None:
    model = CharacterModel.fit(TEXTS, 3)
    total = sum(map(model.log_prob, TEXTS))
    assert model.perplexity(TEXTS) == pytest.approx(exp(-total / sum(len(t) + 1 for t in TEXTS)))
    assert model.perplexity(["tttt"]) > model.perplexity(["the tea"])


def test_texts_are_composed_and_blanks_are_spaces() -> None:
    model = CharacterModel.fit(["e\u0301\ta"], 2)
    assert model.vocabulary[3:] == (" ", "a", "é")
    assert model.log_prob("é a") == model.log_prob("e\u0301\na")


def test_models_can_be_pickled() -> None:
    model = CharacterModel.fit(TEXTS)
    assert pickle.loads(pickle.dumps(model)).log_prob("the tea") == model.log_prob("the tea")


def test_errors_say_what_was_expected(tmp_path: Path) -> None:
    for texts, order, message in (
        ([], 6, "needs texts"),
        ("text", 6, "list of lines"),
        (["a"], 0, "got 0"),
        (["a"], 1.5, "order must be an integer"),
        (["a", 1], 6, r"texts\[1\] must be a text, got 1"),
        (["a", "b\ud800"], 6, r"texts\[1\] holds half of a surrogate pair"),
    ):
        with pytest.raises(InputError, match=message):
            CharacterModel.fit(texts, order)  # type: ignore[arg-type]
    model = CharacterModel.fit(TEXTS)
    for call in (model.log_prob, CharacterModel.load, lambda value: model.perplexity([value])):
        with pytest.raises(InputError, match=r"must be a (text|path)"):
            call(None)  # type: ignore[arg-type]
    for state in (10**9, -1, 1.5, "a"):
        with pytest.raises(InputError, match="state must be from 0 to"):
            model.after(state)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\.arpa"):
        model.save(tmp_path / "lm.bin")
    with pytest.raises(InputError, match="needs texts"):
        model.perplexity([])
    with pytest.raises(InputError, match="No such file"):
        CharacterModel.load(tmp_path / "none.arpa")
    model.save(tmp_path / "lm.arpa.gz")
    whole = (tmp_path / "lm.arpa.gz").read_bytes()
    text = gzip.decompress(whole)
    broken = (whole[:-20], text[: len(text) // 2], b"\xff\xfe", b"", b"\\data\\\n\\end\\\n")
    for k, data in enumerate(broken):
        path = tmp_path / f"{k}.arpa"
        path.write_bytes(data)
        with pytest.raises(InputError, match="no complete ARPA file"):
            CharacterModel.load(path)
    for bigram in ("a z", "z a"):
        path = write_arpa(tmp_path / "z.arpa", UNIGRAMS, {bigram: (0.5, 1)})
        with pytest.raises(InputError, match="no complete ARPA file"):
            CharacterModel.load(path)
    words = {"der": (0.5, 1.0), "Wald": (0.5, 1.0), "a": (0.1, 1.0)}
    with pytest.raises(InputError, match="a model of words such as 'der'"):
        CharacterModel.load(write_arpa(tmp_path / "words.arpa", words))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ngram 1=2", "ngram 1=40"),
        ("ngram 1=2\n", ""),
        ("1-grams", "2-grams"),
        ("-1 a", "3 a"),
        ("-1 b", "nan b"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text, path = "\\data\\\nngram 1=2\n\n\\1-grams:\n-1 a\n-1 b\n\n\\end\\\n", tmp_path / "lm.arpa"
    path.write_text(text)
    assert CharacterModel.load(path).log_prob("a") < 0
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match="no complete ARPA file"):
        CharacterModel.load(path)
