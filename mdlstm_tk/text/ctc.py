"""Read texts from the outputs of a recogniser: CTC (Graves et al. 2006) with NumPy alone.

>>> line = read_logits(logits, classes, beam=16, lm=CharacterModel.load("fr.arpa.gz"))
>>> line.text, line.confidence
('le chat', 0.87)

Logits have the shape (T, 1 + characters); output 0 is the blank, and output k + 1 is classes[k]. A path
takes one output at each of the T steps, and spells the text that is left when repeated outputs are merged
and blanks dropped. The probability of a text is the sum over its paths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.text_order import MIRRORED, Direction, reordered
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Floats
from mdlstm_tk.text.character_model import END, UNKNOWN, CharacterModel, longer, shortened

Integers = npt.NDArray[np.int64]
Order = Direction | None  # None: that in which the image shows the characters
Row = tuple[Floats, list[str]]

BEAM = 64  # texts that a search with a language model keeps at each step, if nothing else is asked for
LOWEST = -1e4  # log-probability of an impossible output: e^LOWEST is 0, and sums of it are finite
MIN_PROBABILITY = 0.01  # divided by the beam: a search does not try less likely characters at a step
MIN_RATIO = 0.01  # to the character itself, of alternatives that are weighed by a language model
NEGLIGIBLE = 1e-9  # posterior of steps that the sums of alternatives leave out
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
MAX_SCORES = 2**23  # by a language model that are kept, with the states some 150 MB


@dataclass(frozen=True)
class Decoding:
    """The numbers that decide how texts are read; training chooses them on the validation data.

    Attributes:
        temperature: above 0; divides the logits to calibrate the confidences: of the characters read at
            0.9, nine in ten are right.
        lm_weight: weight of log P(text) by a language model, beside log P(text | image).
        character_bonus: added to the score (in nats) for each character if there is a language model, to
            offset its preference for short texts.
        lm_temperature: above 0; calibrates the confidences of texts that were read with a language model.
    """

    temperature: float = 1.0
    lm_weight: float = 0.6
    character_bonus: float = 1.0
    lm_temperature: float = 1.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Decoding:
        """The numbers among others: the `decoding` of a `TaskSpec`, or `more` of the metadata of a file."""
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})


class Character(NamedTuple):
    """A character of a line, with its edges in pixels of the image, which are often narrower than its ink:
    CTC marks it where it becomes certain; and the probability that it is right if the rest of the line is,
    by the image and the language model, if there is one."""

    character: str
    left: float
    right: float
    confidence: float


class ReadLine(NamedTuple):
    """The text of a line in the order of reading; the mean confidence of its characters, the share of them
    that is likely to be right, or of an empty text its probability; and its characters."""

    text: str
    confidence: float
    characters: tuple[Character, ...]


def read_logits(
    logits: Floats,
    classes: Sequence[str],
    decoding: Decoding = Decoding(),
    direction: Order = None,
    *,
    beam: int | None = None,
    lm: CharacterModel | None = None,
    step: float = 1.0,
    end: float = inf,
) -> ReadLine:
    """Read the text of one line, with confidences and places.

    Args:
        logits: (T, 1 + characters).
        classes: the characters.
        decoding: temperatures, and weights of the language model.
        direction: in which most texts run.
        beam: 1 takes the best path, without a language model. Else the number of texts that prefix beam
            search keeps at each step. None: 64 with a language model, else 1.
        lm: a model of texts in the order of reading.
        step: the width of a step in pixels, in which edges are.
        end: where the image ends, if the last step reaches beyond it.

    Raises:
        InputError: logits hold NaN.
    """
    beam = beam or (1 if lm is None else BEAM)
    log_probs = log_softmax(logits, decoding.temperature)
    scorer = scorer_of(lm, tuple(classes), decoding, direction)
    labels = best_path(logits) if beam == 1 and lm is None else search(log_probs, scorer, beam)[0][0]
    log_prob, alternatives, edges = posteriors(log_probs, labels)
    if lm is not None:
        scorer.weigh(labels, alternatives)
        alternatives **= 1 / decoding.lm_temperature
    confidences = 1 / alternatives.sum(axis=1)
    edges = np.minimum(edges * step, end)
    visual = [classes[k - 1] for k in labels]
    ordered = reordered(visual, direction) if direction else [(c, k) for k, c in enumerate(visual)]
    of_visual = [*zip(*edges.T.tolist(), confidences.tolist(), strict=True)]  # left, right, confidence
    characters = tuple(Character(character, *of_visual[k]) for character, k in ordered)
    confidence = confidences.mean() if len(confidences) else np.exp(log_prob)
    return ReadLine("".join(c.character for c in characters), float(confidence), characters)


def log_softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Log-probabilities (T, 1 + characters) in float64.

    Raises:
        InputError: logits hold NaN, or no finite number at a step.
    """
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():  # the maximum of a row with NaN is NaN
        raise InputError("logits hold NaN or infinity; the model diverged")
    scaled = (logits - largest) / temperature
    log_probs: Floats = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return np.maximum(log_probs, LOWEST)


def best_path(logits: Floats) -> Integers:
    """The outputs of the characters on the most likely path."""
    path = logits.argmax(axis=1)
    labels: Integers = path[(path > 0) & (np.diff(path, prepend=0) != 0)]
    return labels


class Scorer:
    """The share of a language model in the scores of texts; None adds nothing.

    Attributes:
        start: the state before the first character.
        is_reversed: texts begin on the right.
    """

    def __init__(
        self, lm: CharacterModel | None, classes: Sequence[str], decoding: Decoding, direction: Order
    ) -> None:
        self._lm, self._decoding, self._size = lm, decoding, 1 + len(classes)
        self.start, self.is_reversed = lm.start if lm else "", direction == "rtl"
        self._rows: dict[str, Row] = {}
        self._outputs = defaultdict[str, list[int]](list)  # by token
        tokens = {} if lm is None else lm.tokens
        for k, name in enumerate(names_in_model(classes, direction), 1):
            self._outputs[tokens.get(name, UNKNOWN)].append(k)
        self._outputs[END] = [0]

    def after(self, state: str) -> Row:
        """The scores (1 + characters,) of each output after a state, output 0 standing for the end of the
        text; and the states after them."""
        row = self._rows.get(state)
        if row is None:
            if len(self._rows) * self._size > MAX_SCORES:
                self._rows = {}
            row = self._rows[state] = self._computed(state)
        return row

    def _computed(self, state: str) -> Row:
        """The row of the shorter context, but for the tokens that the model has after this one."""
        if self._lm is None:
            return np.zeros(self._size), [""] * self._size
        weight, bonus = self._decoding.lm_weight, self._decoding.character_bonus
        scores, states = (
            self.after(shortened(state)) if state else (np.zeros(self._size), [""] * self._size)
        )
        scores, states = scores + weight * self._lm.backoffs.get(state, 0.0), [*states]
        for token, log_prob in self._lm.ngrams.get(state, {}).items():
            following = longer(state, token)
            for k in self._outputs.get(token, ()):
                scores[k] = weight * log_prob + (bonus if k else 0.0)
                if following in self._lm.ngrams:
                    states[k] = following
        return scores, states

    def weigh(self, labels: Integers, alternatives: Floats) -> None:
        """Multiply the likely alternatives that `posteriors` returns by e^(score of the alternative text −
        score of the text), both by the language model."""
        if self.is_reversed:
            labels, alternatives = labels[::-1], alternatives[::-1]
        outputs, states, text_scores = [*labels.tolist(), 0], [self.start], []  # 0: the end of the text
        for output in outputs:
            scores, following = self.after(states[-1])
            text_scores.append(scores[output])
            states.append(following[output])
        for i, k in np.argwhere(alternatives > MIN_RATIO).tolist():
            if k == outputs[i]:
                continue
            gain, state = -text_scores[i], states[i]
            if k > 0:
                scores, following = self.after(state)
                gain, state = gain + scores[k], following[k]
            for j in range(i + 1, len(outputs)):
                if state == states[j]:  # from here on both texts are equally likely
                    break
                scores, following = self.after(state)
                gain, state = gain + scores[outputs[j]] - text_scores[j], following[outputs[j]]
            alternatives[i, k] *= np.exp(gain)


scorer_of = lru_cache(maxsize=2)(Scorer)  # the lines of pages have many states in common


def names_in_model(classes: Sequence[str], direction: Order) -> Sequence[str]:
    """The characters as a language model has them: of a text that is searched from the right, brackets are
    in a mirror, see `as_searched`."""
    return [name.translate(MIRRORED) for name in classes] if direction == "rtl" else classes


def search(log_probs: Floats, scorer: Scorer, beam: int) -> tuple[list[Integers], Floats]:
    """The texts of the highest score by prefix beam search (Hannun et al. 2014, arXiv:1408.2873).

    The score is log P(text | image) + lm_weight · log P(text) + character_bonus · length, the latter two if
    there is a language model. At each step `beam` texts are kept; up to `beam` characters can follow,
    unless their probability is below 0.01 / beam. Texts that run from right to left are searched from
    their beginning on the right, and the language model scores them in that order, see `as_searched`.

    Returns:
        Up to `beam` texts, the best one first, as the outputs of their characters from left to right; and
        their log P(text | image), of the paths that were not dropped.
    """
    log_probs = log_probs[::-1] if scorer.is_reversed else log_probs
    candidates = np.argsort(-log_probs[:, 1:], axis=1, kind="stable")[:, :beam] + 1
    counts = (np.take_along_axis(log_probs, candidates, 1) > np.log(MIN_PROBABILITY / beam)).sum(axis=1)
    # Of each text: the log-probability of its paths that end with the blank, and with its last character;
    # a hash of it, and of the text without its last character; that character; the language model's score.
    ends_blank, ends_label = np.zeros(1), np.full(1, -inf)
    hashes, shorter = np.ones(1, np.uint64), np.zeros(1, np.uint64)
    last, lm_scores = np.zeros(1, np.int64), np.zeros(1)
    rows = [scorer.after(scorer.start)]
    sources, outputs = [], []
    for log_p, likely, count in zip(log_probs, candidates, counts.tolist(), strict=True):
        total = np.logaddexp(ends_blank, ends_label)
        stay_blank, stay_label = total + log_p[0], ends_label + log_p[last]
        if count == 0:
            ends_blank, ends_label = stay_blank, stay_label
            continue
        likely = likely[:count]
        longer = np.where(likely == last[:, None], ends_blank[:, None], total[:, None]) + log_p[likely]
        child, parent = (shorter[:, None] == hashes).nonzero()
        if len(child):  # texts that become others in the beam
            label = last[child]
            before = np.where(label == last[parent], ends_blank[parent], total[parent])
            stay_label[child] = np.logaddexp(stay_label[child], before + log_p[label])
            pair, column = np.nonzero(label[:, None] == likely)
            longer[parent[pair], column] = -inf
        stay = np.logaddexp(stay_blank, stay_label) + lm_scores
        scores_after = np.concatenate([scores for scores, _ in rows]).reshape(len(rows), -1)[:, likely]
        scores = np.concatenate([stay, (longer + lm_scores[:, None] + scores_after).ravel()])
        best = np.argpartition(-scores, beam - 1)[:beam] if len(scores) > beam else np.arange(len(scores))
        best = best[scores[best] > -inf]
        is_longer = best >= len(stay)
        row, column = np.divmod(best - len(stay), count)
        source, label = np.where(is_longer, row, best), np.where(is_longer, likely[column], 0)
        sources.append(source)
        outputs.append(label)
        ends_blank = np.where(is_longer, -inf, stay_blank[source])
        ends_label = np.where(is_longer, longer[source, column], stay_label[source])
        lm_scores = lm_scores[source] + np.where(is_longer, scores_after[source, column], 0.0)
        shorter = np.where(is_longer, hashes[source], shorter[source])
        grown = hashes[source] * HASH_FACTOR + label.astype(np.uint64)
        hashes = np.where(is_longer, grown, hashes[source])
        last = np.where(is_longer, label, last[source])
        pairs = zip(source.tolist(), label.tolist(), strict=True)
        rows = [scorer.after(rows[k][1][each]) if each else rows[k] for k, each in pairs]
    log_ctc = np.logaddexp(ends_blank, ends_label)
    ends = np.array([scores[0] for scores, _ in rows])
    order = np.argsort(-(log_ctc + lm_scores + ends), kind="stable")
    source, path = order, np.zeros((len(sources), len(order)), np.int64)
    for t in range(len(sources) - 1, -1, -1):
        path[t], source = outputs[t][source], sources[t][source]
    path = path[::-1] if scorer.is_reversed else path
    return [text[text > 0] for text in path.T], log_ctc[order]


def posteriors(log_probs: Floats, labels: Integers) -> tuple[float, Floats, Floats]:
    """The probability of a text, the outputs (L,) `labels`, and of texts that differ in one character, by
    forward-backward.

    Returns:
        log P(text); (L, 1 + characters) P(text with output k in place of character i) / P(text), which is 1
        for the character itself, and where k = 0 deletes it; and the edges (L, 2) of each character: the
        mean numbers of steps before it begins and before it has ended, over all paths.
    """
    steps, size = len(log_probs), len(labels)
    # The lattice: blank, first character, blank, …, last character, blank.
    lattice = np.zeros(2 * size + 1, np.int64)
    lattice[1::2] = labels
    emission = log_probs[:, lattice]
    # Forward and, from the end, backward; both sums contain the output of their step.
    emissions = np.stack([emission, emission[::-1, ::-1]])
    skips = np.full((2, 2 * size + 1), -np.inf)
    repeats = labels[1:] == labels[:-1]
    skips[0, 3::2] = np.where(repeats, -np.inf, 0.0)
    skips[1] = np.roll(skips[0, ::-1], 2)
    sums = np.full(emissions.shape, -np.inf)
    sums[:, :1, :2] = emissions[:, :1, :2]
    for t in range(1, steps):
        before, now = sums[:, t - 1], sums[:, t]
        np.logaddexp(before[:, 1:], before[:, :-1], out=now[:, 1:])
        now[:, 0] = before[:, 0]
        np.logaddexp(now[:, 2:], before[:, :-2] + skips[:, 2:], out=now[:, 2:])
        now += emissions[:, t]
    forward, backward = sums[0], sums[1, ::-1, ::-1]
    log_prob = float(np.logaddexp.reduce(forward[-1, -2:])) if steps else 0.0
    occupancy = np.exp(forward + backward - emission - log_prob)
    ends = np.cumsum(occupancy.sum(axis=0))
    edges = np.stack([ends[:-1:2], ends[1::2]], axis=1)
    return log_prob, _alternatives(log_probs, labels, forward, backward, occupancy), edges


def _alternatives(
    log_probs: Floats, labels: Integers, forward: Floats, backward: Floats, occupancy: Floats
) -> Floats:
    """The alternatives of each character; see `posteriors`. At each step and place of the lattice,
    (T, 2L + 1), `forward` and `backward` are log sums over the paths up to and from it, its output
    included, and `occupancy` is the share of the paths that are there."""
    steps, size = len(log_probs), len(labels)
    if not size:
        return np.zeros((0, log_probs.shape[1]))
    # Virtual characters before the first step and after the last one, unlike all others, begin and end.
    start, end = np.full((steps + 1, 2 * size + 2), -np.inf), np.full((steps + 1, 2 * size + 2), -np.inf)
    start[1:, 1:], end[:-1, :-1] = forward, backward
    start[0, 0] = end[-1, -1] = 0.0
    before, after = np.append(-1, labels[:-1]), np.append(labels[1:], -1)
    # An alternative needs the steps between the beginning of the character before and the end of the one
    # after it; (steps of the longest such window + 1, L) are gathered.
    reached = np.cumsum(occupancy, axis=1)
    first = np.append(0, (reached[:, : 2 * size - 2 : 2] >= 1 - NEGLIGIBLE).sum(axis=0))
    last = (reached[:, np.minimum(2 * np.arange(size) + 3, 2 * size)] > NEGLIGIBLE).sum(axis=0)
    last, indices = np.maximum(last, first + 1), np.arange(size)
    offsets = np.arange((last - first).max() + 1)[:, None]
    times, inside = np.minimum(first + offsets, steps), offsets <= last - first
    # Paths that are at the character before, or at the blank after it; and that go on from the blank before
    # the character after, or from that itself.
    from_label, from_blank, to_blank, to_label = (
        np.where(inside, values[times, indices], -np.inf)
        for values in (start[:, :-2:2], start[:, 1:-1:2], end[:, 2::2], end[:, 3::2])
    )
    joins = np.where(before == after, -np.inf, from_label)  # equal neighbours would merge
    deletion = np.logaddexp.reduce(np.logaddexp(from_blank, joins) + to_label, axis=0)
    enter, leave = np.logaddexp(from_label, from_blank), np.logaddexp(to_label, to_blank)
    enter_scale, leave_scale = (np.maximum(x.max(axis=0), LOWEST * steps) for x in (enter, leave))
    entering, entering_blank = np.exp(enter - enter_scale), np.exp(from_blank - enter_scale)
    leaving, leaving_blank = np.exp(leave - leave_scale), np.exp(to_blank - leave_scale)
    probs = np.exp(log_probs)
    probs[:, 0] = 0.0  # column 0, the blank, takes what is written for the virtual characters
    current = np.zeros((size, probs.shape[1]))
    sums, sums_after = np.zeros_like(current), np.zeros(size)
    before, after = np.maximum(before, 0), np.maximum(after, 0)
    for k in range(len(offsets) - 1):
        arrivals = current + entering[k, :, None]
        arrivals[indices, before] = current[indices, before] + entering_blank[k]
        current = arrivals * probs[np.minimum(times[k], steps - 1)]
        sums += current * leaving[k + 1, :, None]
        sums_after += current[indices, after] * leaving_blank[k + 1]
    sums[indices, after] = sums_after
    sums[:, 0] = np.exp(np.minimum(deletion - enter_scale - leave_scale, 700))
    reference = sums[indices, labels][:, None]
    return np.divide(sums, reference, out=np.full_like(sums, np.inf), where=reference > 0)
