"""Language models of characters: n-grams with modified Kneser-Ney smoothing, in ARPA files.

>>> model = CharacterModel.fit(["le chat", "le chien"], order=4)
>>> model.save("fr.arpa.gz")
>>> CharacterModel.load("fr.arpa.gz").perplexity(["le chat"])
1.3...

In memory as in an ARPA file, an n-gram is a text of tokens with blanks between them. A token is a
character, "<unk>" for all others, "<s>" before a text or "</s>" at its end. The space itself is "<space>",
as PyLaia, SRILM's and KenLM's users write it; files that call it "▁" or "|" are read, too.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path

from mdlstm_tk._util.text import composed
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import open_output, read_bytes

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPACES = ("<space>", "▁", "|")  # names of the space, the one that is written first
GZIP = b"\x1f\x8b"
LOG_10 = log(10)
LOG_ZERO = -99 * LOG_10  # as ARPA files write the logarithm of 0
ROUNDING = 1e-3  # by which the logarithm of a probability in a file may exceed 0
DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # by count, where an order has too few n-grams to estimate them
HEADER, SECTION = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)"), re.compile(r"\\(\d+)-grams:")

NGrams = dict[str, dict[str, float]]
"""log P(token | context), natural logarithms, of the tokens that a model has after a context, by context;
"" is the context of n-grams of order 1."""


class CharacterModel:
    """P(text), character by character, from the characters before.

    A state is the longest end of the tokens before that the model has as a context.

    Args:
        ngrams: all n-grams.
        backoffs: by context, what is added to log P(token | shorter context) for all other tokens.

    Attributes:
        tokens: the token of each character that the model knows.
        start: the state at the beginning of a text.
    """

    def __init__(self, ngrams: NGrams, backoffs: Mapping[str, float]) -> None:
        self.ngrams, self.backoffs, self.start = ngrams, backoffs, BEGIN
        ngrams[""] = {UNKNOWN: LOG_ZERO, BEGIN: LOG_ZERO, END: LOG_ZERO, **ngrams[""]}
        if ngrams[""][UNKNOWN] <= LOG_ZERO:  # else no such character could be read
            ngrams[""][UNKNOWN] = min((p for p in ngrams[""].values() if p > LOG_ZERO), default=LOG_ZERO)
        space = next((name for name in SPACES if name in ngrams[""]), None)
        characters = (token for token in ngrams[""] if token not in (UNKNOWN, BEGIN, END))
        self.tokens = {" " if token == space else token: token for token in characters}
        for context in [context for context, backoff in backoffs.items() if backoff]:
            ngrams.setdefault(context, {})  # a state, although no n-gram is longer

    def after(self, state: str, token: str) -> tuple[float, str]:
        """log P(token | state), and the state after the token.

        Raises:
            LookupError: the model has no such token.
        """
        log_prob = 0.0
        while state and token not in self.ngrams.get(state, ()):
            log_prob += self.backoffs.get(state, 0.0)
            state = shortened(state)
        log_prob += self.ngrams[state][token]
        state = longer(state, token)
        while state and state not in self.ngrams:
            state = shortened(state)
        return log_prob, state

    def log_prob(self, text: Sequence[str]) -> float:
        """log P(text), natural logarithm, its end included; see `fit` for the text."""
        state, total = self.start, 0.0
        for token in [*(self.tokens.get(character, UNKNOWN) for character in _characters(text)), END]:
            log_prob, state = self.after(state, token)
            total += log_prob
        return total

    def perplexity(self, texts: Sequence[str]) -> float:
        """exp(-mean log P), for each character, counting the end of each text as one."""
        return exp(-sum(map(self.log_prob, texts)) / sum(len(_characters(text)) + 1 for text in texts))

    @classmethod
    def fit(cls, texts: Iterable[Sequence[str]], order: int = 6) -> CharacterModel:
        """Estimate a model by interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998).

        As in KenLM's `lmplz --discount_fallback`, n-grams that begin with "<s>" keep their counts, the
        lowest order is interpolated with equal probabilities of all tokens, "<unk>" included, and an order
        with too few n-grams for estimates has the discounts 0.5, 1 and 1.5.

        Args:
            texts: lines of text in the order of reading. They are composed (NFC); tabs and other blanks
                count as spaces. Lists of characters are taken as they are.
            order: number of characters in the longest n-grams.

        Raises:
            InputError: this is no list of lines, or an empty one.
        """
        if isinstance(texts, str) or not (lines := [*map(_characters, texts)]):
            raise InputError("a character model is fitted to texts; give a list of lines")
        tokens = [[BEGIN, *(SPACES[0] if c == " " else c for c in line), END] for line in lines]
        counts = [
            Counter(" ".join(line[k : k + n]) for line in tokens for k in range(len(line) - n + 1))
            for n in range(1, min(order, max(map(len, tokens))) + 1)
        ]
        for lower, higher in pairwise(counts):  # how many different tokens precede an n-gram
            continuations = Counter(map(shortened, higher))
            lower.update({g: continuations[g] - lower[g] for g in lower if not g.startswith(BEGIN)})
        counts[0][UNKNOWN] = counts[0][BEGIN] = 0  # "<s>" is given, never predicted
        if not counts[0].keys().isdisjoint(SPACES):  # one of which stands for the space, unless this does
            counts[0].setdefault(SPACES[0], 0)
        probs, backoffs = defaultdict[str, dict[str, float]](dict), dict[str, float]()
        for of_order in counts:
            discounts, totals, reserved = _discounts(of_order), Counter[str](), Counter[str]()
            for gram, count in of_order.items():
                context = gram.rpartition(" ")[0]
                totals[context] += count
                reserved[context] += discounts[min(count, 3)]  # type: ignore[assignment]
            for gram, count in of_order.items():
                context, _, token = gram.rpartition(" ")
                lower_prob = probs[shortened(context)][token] if context else 1 / (len(of_order) - 1)
                discounted = count - discounts[min(count, 3)]
                probs[context][token] = (discounted + reserved[context] * lower_prob) / totals[context]
            backoffs |= {context: log(reserved[context] / totals[context]) for context in totals if context}
        logs = {context: {token: log(p) for token, p in row.items()} for context, row in probs.items()}
        logs[""][BEGIN] = LOG_ZERO
        return cls(logs, backoffs)

    @classmethod
    def load(cls, path: str | Path) -> CharacterModel:
        """Read an ARPA file of characters, compressed with gzip or not, from any program.

        Raises:
            InputError: there is no such file, or it is no complete ARPA file.
        """
        data = read_bytes(path)
        try:
            return cls(*_parsed((gzip.decompress(data) if data.startswith(GZIP) else data).decode()))
        except (ValueError, LookupError, OSError, EOFError, zlib.error):
            advice = "write one with CharacterModel.fit(texts).save('lm.arpa.gz'), or with lmplz"
            raise InputError(f"{path} is no complete ARPA file; {advice}") from None

    def save(self, path: str | Path) -> None:
        """Write the model as an ARPA file, compressed if the name ends in .gz."""
        sections = defaultdict[int, list[str]](list)
        for context, row in self.ngrams.items():
            for token, log_prob in row.items():
                gram = longer(context, token)
                backoff = f"\t{self.backoffs[gram] / LOG_10:.7g}" if gram in self.backoffs else ""
                sections[gram.count(" ") + 1].append(f"{log_prob / LOG_10:.7g}\t{gram}{backoff}")
        lines = ["\\data\\", *(f"ngram {n}={len(sections[n])}" for n in sorted(sections))]
        for n in sorted(sections):
            lines += ["", f"\\{n}-grams:", *sections[n]]
        data = "\n".join([*lines, "", "\\end\\", ""]).encode()
        with open_output(path) as file:
            file.write(gzip.compress(data, 6, mtime=0) if str(path).endswith(".gz") else data)


def longer(context: str, token: str) -> str:
    """A context and a token as an n-gram."""
    return f"{context} {token}" if context else token


def shortened(context: str) -> str:
    """A context, or an n-gram, without its first token."""
    return context.partition(" ")[2]


def _characters(text: Sequence[str]) -> Sequence[str]:
    """The characters of a text in Unicode's composed form, with spaces for tabs and ends of lines."""
    return re.sub(r"[\t\n\v\f\r]", " ", composed(text)) if isinstance(text, str) else text


def _discounts(counts: Counter[str]) -> tuple[float, ...]:
    """The discounts of n-grams with the counts 0, 1, 2, and 3 or more (Chen and Goodman 1998, p. 27)."""
    of_counts = Counter(counts.values())
    n1, n2, n3, n4 = (of_counts[k] for k in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        estimates = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if min(estimates[1:]) > 0:
            return estimates
    return DISCOUNTS


def _parsed(text: str) -> tuple[NGrams, dict[str, float]]:
    """The n-grams and the backoffs of an ARPA file.

    Raises:
        ValueError, LookupError: it is incomplete, or a number is none of a model.
    """
    expected, found, order, is_complete = dict[int, int](), Counter[int](), 0, False
    ngrams, backoffs = defaultdict[str, dict[str, float]](dict), dict[str, float]()
    for line in text.split("\n"):
        line = line.rstrip(" \r\t")
        if section := SECTION.fullmatch(line):
            order = int(section[1])
        elif not order and (header := HEADER.fullmatch(line)):
            expected[int(header[1])] = int(header[2])
        elif order and line.startswith("\\"):
            is_complete = line == "\\end\\"
        elif order and line:
            first, *tokens = line.replace("\t", " ").replace("<UNK>", UNKNOWN).split(" ")
            log_prob, (backoff,) = float(first), map(float, tokens[order:] or ["0"])
            if not (log_prob < ROUNDING and backoff < inf and len(tokens) >= order):
                raise ValueError(line)
            ngrams[" ".join(tokens[: order - 1])][tokens[order - 1]] = max(log_prob * LOG_10, LOG_ZERO)
            if len(tokens) > order:
                backoffs[" ".join(tokens[:order])] = max(backoff * LOG_10, LOG_ZERO)
            found[order] += 1
    if not is_complete or expected != found:
        raise ValueError("the file ends early")
    return dict(ngrams), backoffs
