"""Language models of characters: n-grams with modified Kneser-Ney smoothing, in ARPA files.

>>> model = CharacterModel.fit(["le chat", "le chien"], order=4)
>>> model.save("fr.arpa.gz")
>>> CharacterModel.load("fr.arpa.gz").perplexity(["le chat"])
1.3...

An ARPA file separates the characters of an n-gram by spaces, so the space itself has a name: "<space>", as
PyLaia, SRILM's and KenLM's users write it. Files that call it "▁" or "|" are read, too.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import composed
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import open_output

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPACES = ("<space>", "▁", "|")  # names of the space, the one that is written first
GZIP = b"\x1f\x8b"
LOG_10 = log(10)
ROUNDING = 1e-3  # by which the logarithm of a probability in a file may exceed 0
COUNT = re.compile(r"ngram\s+\d+\s*=\s*(\d+)")  # of n-grams, in the header of a file
SURROGATES = re.compile("[\ud800-\udfff]")
LOG_ZERO = -99 * LOG_10  # as ARPA files write the logarithm of 0
UNKNOWN_LOG_PROB = -100 * LOG_10  # where a file has no <unk>, as KenLM reads it
MAX_CACHED = 2**23  # entries of rows of `after` in memory, some 100 MB
DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # by count, where an order has too few n-grams to estimate them


class NGrams(NamedTuple):
    """All n-grams of a model, sorted by order, context and character.

    n-gram 0 is the empty one, and the following ones are the vocabulary.

    Attributes:
        context: (G,) the n-gram without its last character.
        character: (G,) its last character, as an index of the vocabulary.
        suffix: (G,) the longest shorter n-gram of the model that it ends with.
        log_prob: (G,) natural logarithm of P(character | context).
        backoff: (G,) is added to log P(character | suffix) for a character that the model does not have
            after this n-gram.
    """

    context: Integers
    character: Integers
    suffix: Integers
    log_prob: Floats
    backoff: Floats


class CharacterModel:
    """P(text), character by character, from the characters before.

    A state is an integer that stands for the characters before, as far as the model knows them. Instances
    do not change; several threads can use one.

    Args:
        vocabulary: "<unk>", "<s>", "</s>" and the characters.
        ngrams: the n-grams.
        starts: index of the first n-gram of each order, from order 0 on, and the number of all n-grams.

    Attributes:
        vocabulary: the characters, after "<unk>" for all others, "<s>" and "</s>".
        index: the index of each of them in the vocabulary.
        start: the state at the beginning of a text.
    """

    def __init__(self, vocabulary: Sequence[str], ngrams: NGrams, starts: Sequence[int]) -> None:
        self.vocabulary = tuple(vocabulary)
        self.index = {character: k for k, character in enumerate(self.vocabulary)}
        self.start = 1 + self.index[BEGIN]
        self._ngrams, self._starts = ngrams, list(starts)
        # n-grams after the same context are neighbours.
        self._children = np.searchsorted(ngrams.context[1:], np.arange(len(ngrams.context) + 1)) + 1
        self._next = np.arange(len(ngrams.context))
        if self.order > 0:  # n-grams of the highest order are no contexts
            self._next[self._starts[-2] :] = ngrams.suffix[self._starts[-2] :]
        self._rows: dict[int, tuple[Floats, Integers]] = {}

    @property
    def order(self) -> int:
        """The number of characters in the longest n-grams."""
        return len(self._starts) - 2

    @classmethod
    @checked
    def fit(cls, texts: Iterable[str], order: int = 6) -> CharacterModel:
        """Estimate a model by interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998).

        As in KenLM's `lmplz --discount_fallback`, n-grams that begin with "<s>" keep their counts, the
        lowest order is interpolated with equal probabilities of the vocabulary, "<unk>" included, and an
        order with too few n-grams for estimates has the discounts 0.5, 1 and 1.5.

        Args:
            texts: lines of text in the order of reading. They are composed (NFC); tabs and other blanks
                count as spaces.
            order: number of characters in the longest n-grams.

        Raises:
            InputError: there is no text, or `order` is below 1.
        """
        if isinstance(texts, str) or not (lines := _lines(texts)):
            raise InputError("a character model needs texts to be fitted to; give a list of lines")
        if order < 1:
            raise InputError(f"order must be 1 or more, got {order}; 6 fits most texts")
        return cls.fit_sequences(lines, order)

    @classmethod
    def fit_sequences(cls, lines: Sequence[Sequence[str]], order: int) -> CharacterModel:
        """As `fit`, to characters as they are: composed, in the order in which a search reads them, see
        `as_searched`."""
        characters = {character for line in lines for character in line}
        if not characters.isdisjoint(SPACES):  # without a space, `load` would take them for its name
            characters.add(" ")
        vocabulary = (UNKNOWN, BEGIN, END, *sorted(characters))
        index = {character: k for k, character in enumerate(vocabulary)}
        tokens = np.array([k for line in lines for k in (1, *map(index.__getitem__, line), 2)])
        lengths = np.array([len(line) + 2 for line in lines])
        ends = np.repeat(np.cumsum(lengths), lengths)
        levels = [_unigrams(tokens, len(vocabulary))]
        ids = tokens
        for n in range(2, order + 1):
            positions = np.flatnonzero(np.arange(len(tokens)) + n <= ends)
            if not len(positions):
                break
            key = ids[positions] * len(vocabulary) + tokens[positions + n - 1]
            unique, first, inverse, counts = np.unique(
                key, return_index=True, return_inverse=True, return_counts=True
            )
            context, character = np.divmod(unique, len(vocabulary))
            begins = levels[-1].begins[context]
            levels.append(_Level(context, character, ids[positions[first] + 1], counts, begins))
            ids = np.zeros_like(tokens)
            ids[positions] = inverse
        return cls(vocabulary, *_smoothed(levels))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> CharacterModel:
        """Read an ARPA file of characters, compressed with gzip or not, from any program.

        Raises:
            InputError: there is no such file, it is no ARPA file, or its n-grams are of words.
        """
        advice = "write one with CharacterModel.fit(texts).save('lm.arpa.gz'), or with lmplz"
        incomplete = InputError(f"{path} is no complete ARPA file; {advice}")
        try:
            data = Path(path).read_bytes()
            data = gzip.decompress(data) if data.startswith(GZIP) else data
            sections = _parse(data.decode())
        except OSError as error:
            raise InputError(f"cannot read the language model {path}: {error.strerror or error}") from None
        except (ValueError, LookupError, EOFError, zlib.error):
            raise incomplete from None
        words = [token for token in sections[0] if len(token) > 1 and not token.startswith("<")]
        if 2 * len(words) > len(sections[0]):
            raise InputError(
                f"{path} is a model of words such as {words[0]!a:.40}, expected one of characters; {advice}"
            )
        try:
            return cls(*_linked(sections))
        except (ValueError, LookupError, RecursionError):
            raise incomplete from None

    def save(self, path: str | Path) -> None:
        """Write the model as an ARPA file, atomically.

        Args:
            path: a name that ends in `.arpa`, or in `.arpa.gz` for a compressed file.

        Raises:
            InputError: the name ends otherwise.
            MDLSTMError: the file cannot be written.
        """
        if not str(path).endswith((".arpa", ".arpa.gz")):
            raise InputError(f"{path} does not end in .arpa or .arpa.gz, as a language model must")
        names = [SPACES[0] if token == " " else token for token in self.vocabulary]
        grams, texts = self._ngrams, [""]
        lines = ["\\data\\"]
        bounds = list(zip(self._starts[1:-1], self._starts[2:], strict=True))
        lines += [f"ngram {n}={end - start}" for n, (start, end) in enumerate(bounds, 1)]
        characters, contexts = grams.character.tolist(), grams.context.tolist()
        log_probs = np.maximum(grams.log_prob / LOG_10, -99).tolist()
        backoffs = (grams.backoff / LOG_10).tolist()
        for n, (start, end) in enumerate(bounds, 1):
            lines += ["", f"\\{n}-grams:"]
            for k in range(start, end):
                name, before = names[characters[k]], texts[contexts[k]]
                texts.append(f"{before} {name}" if before else name)
                line = f"{log_probs[k]:.7g}\t{texts[k]}"
                lines.append(line if n == self.order else f"{line}\t{backoffs[k]:.7g}")
        data = "\n".join([*lines, "", "\\end\\", ""]).encode()
        with open_output(path) as file:
            file.write(gzip.compress(data, 6, mtime=0) if str(path).endswith(".gz") else data)

    def after(self, state: int) -> tuple[Floats, Integers]:
        """The probabilities of all characters after a state.

        Returns:
            (V,) log P of each entry of the vocabulary, natural logarithms; and (V,) the state after it. Do
            not change them.

        Raises:
            InputError: the model has no such state.
        """
        row = self._rows.get(state)
        if row is None:
            grams = self._ngrams
            if not isinstance(state, int | np.integer) or not 0 <= state < len(grams.suffix):
                raise InputError(f"state must be from 0 to {len(grams.suffix) - 1}, got {state!r:.40}")
            if state == 0:
                log_probs = np.zeros(len(self.vocabulary))
                states = np.zeros(len(self.vocabulary), np.int64)
            else:
                shorter, states = self.after(int(grams.suffix[state]))
                log_probs, states = shorter + grams.backoff[state], states.copy()
            children = slice(self._children[state], self._children[state + 1])
            log_probs[grams.character[children]] = grams.log_prob[children]
            states[grams.character[children]] = self._next[children]
            row = log_probs, states
            if len(self._rows) * len(self.vocabulary) > MAX_CACHED:
                self._rows.clear()
            self._rows[state] = row
        return row

    @checked
    def log_prob(self, text: str) -> float:
        """log P(text), natural logarithm, its end included."""
        return self.log_prob_of(_normal(text))

    def log_prob_of(self, characters: Sequence[str]) -> float:
        """As `log_prob`, of characters as they are; see `fit_sequences`."""
        state, total = self.start, 0.0
        for character in [*characters, END]:
            log_probs, states = self.after(state)
            k = self.index.get(character, 0)
            total, state = total + float(log_probs[k]), int(states[k])
        return total

    @checked
    def perplexity(self, texts: Iterable[str]) -> float:
        """The perplexity for each character, counting the end of each text as one: exp(-mean log P).

        Raises:
            InputError: there is no text.
        """
        lines = _lines([texts] if isinstance(texts, str) else texts)
        if not lines:
            raise InputError("a perplexity needs texts; give a list of lines")
        return exp(-sum(map(self.log_prob, lines)) / sum(len(line) + 1 for line in lines))


class _Level(NamedTuple):
    """The n-grams of one order in texts; `context` and `suffix` count within the order below."""

    context: Integers
    character: Integers
    suffix: Integers
    counts: Integers
    begins: npt.NDArray[np.bool_]  # with <s>, so that nothing stands before it


def _unigrams(tokens: Integers, size: int) -> _Level:
    """The whole vocabulary as n-grams of order 1."""
    nothing = np.zeros(size, np.int64)
    counts = np.bincount(tokens, minlength=size)
    counts[1] = 0  # <s> is given, never predicted
    return _Level(nothing, np.arange(size), nothing, counts, np.arange(size) == 1)


def _smoothed(levels: Sequence[_Level]) -> tuple[NGrams, list[int]]:
    """The probabilities of all n-grams, interpolated with lower orders."""
    starts = np.cumsum([0, 1, *(len(level.counts) for level in levels)]).tolist()
    backoffs, log_probs = [np.zeros(1)], [np.zeros(1)]
    # The lowest order is interpolated with equal probabilities of all that may follow, <s> excepted.
    shorter = np.full(1, 1 / (len(levels[0].counts) - 1))
    for n, level in enumerate(levels, 1):
        counts = level.counts
        if n < len(levels):  # continuation counts: how many different characters precede an n-gram
            continuations = np.bincount(levels[n].suffix, minlength=len(counts))
            counts = np.where(level.begins, counts, continuations)
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        size = len(backoffs[-1])
        total = np.bincount(level.context, counts, size)
        occurs = total > 0
        reserved = np.bincount(level.context, discounts, size)[occurs] / total[occurs]
        backoffs[-1][occurs] = np.log(reserved) if n > 1 else 0.0
        weight = np.zeros(size)
        weight[occurs] = reserved
        probs = (counts - discounts) / total[level.context] + weight[level.context] * shorter[level.suffix]
        if n == 1:
            probs[1] = exp(LOG_ZERO)
        log_probs.append(np.log(probs))
        backoffs.append(np.zeros(len(counts)))
        shorter = probs
    offset = [np.zeros(1, np.int64)]
    context = offset + [level.context + starts[n - 1] for n, level in enumerate(levels, 1)]
    suffix = offset + [level.suffix + starts[n - 1] for n, level in enumerate(levels, 1)]
    character = offset + [level.character for level in levels]
    return NGrams(*map(np.concatenate, (context, character, suffix, log_probs, backoffs))), starts


def _discounts(counts: Integers) -> Floats:
    """The discounts of n-grams with the counts 0, 1, 2, and 3 or more (Chen and Goodman 1998, p. 27)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        estimates = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (estimates[1:] > 0).all():
            return estimates
    return np.array(DISCOUNTS)


def _lines(texts: Iterable[str]) -> list[str]:
    """Texts as `_normal` has them.

    Raises:
        InputError: one of them is no text.
    """
    lines = []
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts[{k}] must be a text, got {text!r:.80}")
        if not text.isascii() and SURROGATES.search(text):
            raise InputError(f"texts[{k}] holds half of a surrogate pair: {text!r:.80}")
        lines.append(_normal(text))
    return lines


def _normal(text: str) -> str:
    """A text in Unicode's composed form, with spaces for tabs and ends of lines."""
    return re.sub(r"[\t\n\v\f\r]", " ", composed(text))


Section = dict[str, tuple[float, float]]
"""log10 P and log10 of the backoff weight of each n-gram of one order, as the file writes it."""


def _parse(text: str) -> list[Section]:
    """The sections of an ARPA file.

    Raises:
        ValueError, IndexError: it is not a complete one.
    """
    sections: list[Section] = []
    counts: list[int] = []
    is_complete = False
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if not sections and (count := COUNT.fullmatch(line.strip())):
            counts.append(int(count[1]))
        elif line.startswith("\\"):
            is_complete = line.strip() == "\\end\\"
            if line.rstrip().endswith("-grams:"):
                sections.append({})
                if line.strip() != f"\\{len(sections)}-grams:":
                    raise ValueError(line)
        elif sections and line and not is_complete:
            fields = line.replace("\t", " ").split(" ")
            n = len(sections)
            backoff = float(fields[n + 1]) if len(fields) > n + 1 and fields[n + 1] else 0.0
            sections[-1][" ".join(fields[1 : n + 1])] = float(fields[0]), backoff
            if len(fields) <= n:
                raise ValueError(line)
    if not is_complete or not sections or not sections[0]:
        raise ValueError("the file ends early")
    if counts != [*map(len, sections)]:
        raise ValueError("it has not as many n-grams as its header says")
    return sections


def _linked(sections: list[Section]) -> tuple[Sequence[str], NGrams, list[int]]:
    """The vocabulary, the n-grams and the starts of the orders from the sections of a file.

    Raises:
        ValueError, KeyError: an n-gram has a character that is none of order 1, or a number is not finite.
    """
    if "<UNK>" in sections[0] and UNKNOWN not in sections[0]:  # KenLM reads both
        sections = [
            {name.replace("<UNK>", UNKNOWN): row for name, row in section.items()} for section in sections
        ]
    for token, log_prob in ((UNKNOWN, UNKNOWN_LOG_PROB), (BEGIN, LOG_ZERO), (END, LOG_ZERO)):
        sections[0].setdefault(token, (log_prob / LOG_10, 0.0))
    names = [UNKNOWN, BEGIN, END, *sorted(sections[0].keys() - {UNKNOWN, BEGIN, END})]
    space = next((name for name in SPACES if name in sections[0]), None)
    vocabulary = [" " if name == space else name for name in names]
    _add_contexts(sections)
    index = {name: k for k, name in enumerate(names)}
    ids: dict[str, int] = {"": 0}
    parts: list[list[Any]] = [[0], [0], [0], [0.0], [0.0]]
    starts = [0, 1]
    for section in sections:
        rows = []
        for name, (log_prob, backoff) in section.items():
            context, _, character = name.rpartition(" ")
            suffix = name.partition(" ")[2]
            while suffix not in ids:
                suffix = suffix.partition(" ")[2]
            rows.append((ids[context], index[character], ids[suffix], log_prob, backoff, name))
        rows.sort(key=lambda row: row[:2])
        ids |= {row[-1]: k for k, row in enumerate(rows, starts[-1])}
        for part, column in zip(parts, zip(*rows, strict=True), strict=False):
            part += column
        starts.append(len(ids))
    integers = [np.array(part, np.int64) for part in parts[:3]]
    floats = [np.maximum(np.array(part) * LOG_10, UNKNOWN_LOG_PROB) for part in parts[3:]]
    if not all(np.isfinite(values).all() for values in floats):
        raise ValueError("a probability or backoff weight is NaN or infinite")
    if (floats[0] > ROUNDING).any():
        raise ValueError("a probability is larger than 1")
    return vocabulary, NGrams._make([*integers, *floats]), starts


def _add_contexts(sections: list[Section]) -> None:
    """Add the contexts that a program has pruned without the longer n-grams that begin with them."""

    def log_prob(name: str) -> float:
        section = sections[name.count(" ")]
        if name in section:
            return section[name][0]
        context, shorter = name.rpartition(" ")[0], name.partition(" ")[2]
        if not context:
            raise ValueError(name)
        return sections[context.count(" ")].get(context, (0.0, 0.0))[1] + log_prob(shorter)

    for n in range(len(sections) - 1, 0, -1):
        shorter = sections[n - 1]
        missing = {context for name in sections[n] if (context := name.rpartition(" ")[0]) not in shorter}
        shorter |= {context: (log_prob(context), 0.0) for context in missing}
