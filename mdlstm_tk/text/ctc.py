"""Read texts from the outputs of a recogniser: CTC (Graves et al. 2006) with NumPy alone.

>>> line = transcribe_logits(logits, classes, beam=16, lm=CharacterModel.load("fr.arpa.gz"), width=800)
>>> line.text, line.confidence
('le chat', 0.87)

Logits have the shape (T, 1 + characters); output 0 is the blank, and output k + 1 is classes[k]. A path
takes one output at each of the T steps, and spells the text that is left when repeated outputs are merged
and blanks dropped. The probability of a text is the sum over its paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from mdlstm_tk._util.text import counted
from mdlstm_tk._util.text_order import MIRRORED, Direction, reordered
from mdlstm_tk.errors import InputError
from mdlstm_tk.text.character_model import END, SPACES, UNKNOWN, UNKNOWN_LOG_PROB, CharacterModel
from mdlstm_tk.text.decoding import BEAM, Decoding
from mdlstm_tk.text.posteriors import LOWEST, Floats, Integers, posteriors

HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
MIN_PROBABILITY = 0.01  # divided by the beam: a search does not try less likely characters at a step
MAX_CACHED = 2**22  # scores by a language model that are kept for the next line, some 64 MB with states
MIN_RATIO = 0.01  # to the character itself, of alternatives that are weighed by a language model


class Character(NamedTuple):
    """A character of a line.

    Attributes:
        character: the character.
        left, right: its edges, in pixels of the image. CTC marks a character where it becomes certain, so
            that its edges are often narrower than its ink.
        confidence: the probability that it is right if the rest of the line is, by the image and the
            language model, if there is one.
    """

    character: str
    left: float
    right: float
    confidence: float


class Transcription(NamedTuple):
    """The text of a line, in the order of reading.

    Attributes:
        text: the text.
        confidence: the mean of those of its characters, the share of them that is likely to be right; of an
            empty text, its probability.
        characters: one entry for each character of the text.
    """

    text: str
    confidence: float
    characters: tuple[Character, ...]


def transcribe_logits(
    logits: Floats,
    classes: Sequence[str],
    *,
    decoding: Decoding = Decoding(),  # noqa: B008
    direction: Direction | None = None,
    beam: int | None = None,
    lm: CharacterModel | None = None,
    width: float | None = None,
    end: float | None = None,
) -> Transcription:
    """Read the text of one line, with confidences and places.

    Args:
        logits: (T, 1 + characters); output 0 is the blank.
        classes: the characters.
        decoding: temperature, and weights of the language model.
        direction: in which most texts run; the result is in the order of reading. None: in the order in
            which the image shows them.
        beam: 1 takes the best path, without a language model. Else the number of texts that prefix beam
            search keeps at each step. None: 64 with a language model, else 1.
        lm: a model of texts in the order of reading.
        width: pixels of the image that the T steps cover. None: edges are in steps.
        end: where the image ends, if the last step reaches beyond it.

    Raises:
        InputError: logits have another shape, or hold NaN; or as `check_search`.
    """
    check_search(beam, lm, classes, direction)
    beam = (1 if lm is None else BEAM) if beam is None else beam
    log_probs = scaled_log_probs(logits, classes, decoding.temperature)
    if beam == 1 and lm is None:
        labels = best_path(logits)
    else:
        fusion = _fusion(lm, tuple(classes), decoding, direction)
        if fusion.scores.size > MAX_CACHED:
            _fusion.cache_clear()
        labels = search(log_probs, fusion, beam)[0][0]
    log_prob, alternatives, edges = posteriors(log_probs, labels)
    if lm is not None:
        fusion.weigh(labels, alternatives)
        alternatives **= 1 / decoding.lm_temperature
    confidences = 1 / alternatives.sum(axis=1)
    edges *= 1.0 if width is None else width / max(len(logits), 1)
    edges = edges if end is None else np.minimum(edges, end)
    visual = [classes[k - 1] for k in labels]
    ordered = reordered(visual, direction) if direction else [(c, k) for k, c in enumerate(visual)]
    characters = tuple(
        Character(character, float(edges[k, 0]), float(edges[k, 1]), float(confidences[k]))
        for character, k in ordered
    )
    confidence = confidences.mean() if len(confidences) else np.exp(log_prob)
    return Transcription("".join(c.character for c in characters), float(confidence), characters)


def check_search(
    beam: int | None, lm: CharacterModel | None, classes: Sequence[str], direction: Direction | None
) -> None:
    """Check the arguments of a search, and that the language model knows the characters; it may lack some
    but the space, see `warn_of_lacking`.

    Raises:
        InputError: beam is below 1, lm is no `CharacterModel`, or one of other characters or without space.
    """
    if beam is not None and beam < 1:
        raise InputError(f"beam must be 1 or more, got {beam}; 16 is usual")
    if lm is None:
        return
    if not isinstance(lm, CharacterModel):
        raise InputError(
            f"lm must be a CharacterModel, got {type(lm).__name__}; read one with CharacterModel.load(path)"
        )
    classes = names_in_model(classes, direction)
    if lm.index.keys().isdisjoint(classes):
        known = "".join(lm.vocabulary[3:])
        raise InputError(
            f"lm knows none of the characters that the model reads: it has {known!r:.40}, and the model "
            f"{''.join(classes)!r:.40}"
        )
    if " " in classes and " " not in lm.index:
        raise InputError(
            "lm has no space, but the model reads spaces, so words would run together; fit it to lines of "
            f"several words, or call the space {SPACES[0]} in its ARPA file"
        )


def warn_of_lacking(lm: CharacterModel | None, classes: Sequence[str], direction: Direction | None) -> None:
    """Warn if a language model lacks characters of a recogniser, and has no probability for others."""
    if lm is None:
        return
    lacking = [name for name in names_in_model(classes, direction) if name not in lm.index]
    of_others = float(lm.after(0)[0][lm.index[UNKNOWN]])
    if lacking and of_others < UNKNOWN_LOG_PROB / 2:  # as of files without <unk>
        warnings.warn(
            f"lm lacks {counted(len(lacking), 'character')} that the model reads, which it keeps out of "
            f"texts: {''.join(lacking):.40}",
            stacklevel=2,
        )


def names_in_model(classes: Sequence[str], direction: Direction | None) -> Sequence[str]:
    """The characters as a language model has them: of a text that is searched from the right, brackets are
    in a mirror, see `as_searched`."""
    return [name.translate(MIRRORED) for name in classes] if direction == "rtl" else classes


def scaled_log_probs(logits: Floats, classes: Sequence[str], temperature: float) -> Floats:
    """The log-probabilities (T, 1 + characters) of the outputs at each step.

    Raises:
        InputError: logits have another shape, or hold NaN or no finite number at a step.
    """
    if logits.ndim != 2 or logits.shape[1] != len(classes) + 1:
        raise InputError(
            f"logits have the shape {logits.shape}, expected (T, {len(classes) + 1}) for "
            f"{counted(len(classes), 'character')} and the blank"
        )
    logits = logits.astype(np.float64)  # a model may return integers
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():  # the maximum of a row with NaN is NaN
        raise InputError("logits hold NaN, +inf, or -inf for all outputs of a step; the model diverged")
    scaled = (logits - largest) / temperature
    log_probs: Floats = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return np.maximum(log_probs, LOWEST)


def best_path(logits: Floats) -> Integers:
    """The outputs of the characters on the most likely path."""
    path: Integers = logits.argmax(axis=1)
    changed = np.ones(len(path), bool)
    changed[1:] = path[1:] != path[:-1]
    return path[changed & (path > 0)]


class Fusion:
    """The share of a language model in the scores of texts. Several threads can use one.

    Args:
        lm: the model; None adds nothing.
        classes, decoding, direction: as for `transcribe_logits`.

    Attributes:
        start: the state before the first character.
        is_reversed: texts begin on the right.
        scores: (R, 1 + characters) scores of each output after a state; entry 0 stands for the end of the
            text. `rows` says which row is that of a state.
        states: (R, 1 + characters) the states after it.
    """

    def __init__(
        self,
        lm: CharacterModel | None,
        classes: Sequence[str],
        decoding: Decoding,
        direction: Direction | None,
    ) -> None:
        self._lm, self._decoding = lm, decoding
        self.is_reversed = direction == "rtl"
        self.scores = np.zeros((1, len(classes) + 1))
        self.states = np.zeros((1, len(classes) + 1), np.int64)
        self._row_of: dict[int, int] = {}
        self._lock = Lock()
        if lm is None:
            self._row_of[0] = self.start = 0
            return
        names = names_in_model(classes, direction)
        self._index = np.array([lm.index[END], *(lm.index.get(name, 0) for name in names)])
        self.start = lm.start

    def rows(self, states: Sequence[int]) -> Integers:
        """The rows of `scores` and `states` for some states."""
        row_of = self._row_of
        if any(state not in row_of for state in states):
            with self._lock:
                self._add([*dict.fromkeys(state for state in states if state not in row_of)])
        return np.array([row_of[state] for state in states], np.int64)

    def _add(self, states: Sequence[int]) -> None:
        """Add the rows of states that have none."""
        assert self._lm is not None
        first, end = len(self._row_of), len(self._row_of) + len(states)
        if end > len(self.scores):
            larger = np.zeros((2 * end, len(self._index)))
            self.scores = np.concatenate([self.scores[:first], larger])
            self.states = np.concatenate([self.states[:first], larger.astype(np.int64)])
        for row, state in enumerate(states, first):
            log_probs, following = self._lm.after(state)
            self.scores[row] = self._decoding.lm_weight * log_probs[self._index]
            self.scores[row, 1:] += self._decoding.character_bonus
            self.states[row] = following[self._index]
            self._row_of[state] = row

    def after(self, state: int) -> tuple[Floats, Integers]:
        """The `scores` and the `states` of one state, (1 + characters,) each."""
        row = self._row_of.get(state)
        if row is None:
            row = int(self.rows([state])[0])
        return self.scores[row], self.states[row]

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


_fusion = lru_cache(maxsize=2)(Fusion)  # the lines of a page have many states in common


def search(log_probs: Floats, fusion: Fusion, beam: int) -> tuple[list[Integers], Floats]:
    """The texts of the highest score by prefix beam search (Hannun et al. 2014, arXiv:1408.2873).

    The score is log P(text | image) + lm_weight · log P(text) + character_bonus · length, the latter two if
    there is a language model. At each step `beam` texts are kept; up to `beam` characters can follow,
    unless their probability is below 0.01 / beam. Texts that run from right to left are searched from
    their beginning on the right, and the language model scores them in that order, see `as_searched`.

    Returns:
        Up to `beam` texts, the best one first, as the outputs of their characters from left to right; and
        their log P(text | image), of the paths that were not dropped.
    """
    if fusion.is_reversed:
        log_probs = log_probs[::-1]
    candidates = np.argsort(-log_probs[:, 1:], axis=1, kind="stable")[:, :beam] + 1
    counts = (np.take_along_axis(log_probs, candidates, 1) > np.log(MIN_PROBABILITY / beam)).sum(axis=1)
    # Of each text: the log-probability of its paths that end with the blank, and with its last character;
    # a hash of it, and of the text without its last character; that character; the language model's score.
    ends_blank, ends_label = np.zeros(1), np.full(1, -np.inf)
    hashes, shorter = np.ones(1, np.uint64), np.zeros(1, np.uint64)
    last, lm_scores = np.zeros(1, np.int64), np.zeros(1)
    rows = fusion.rows([fusion.start])  # of the language model's states
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
            longer[parent[pair], column] = -np.inf
        stay = np.logaddexp(stay_blank, stay_label) + lm_scores
        scores_after = fusion.scores[rows[:, None], likely]
        scores = np.concatenate([stay, (longer + lm_scores[:, None] + scores_after).ravel()])
        best = _highest(scores, beam)
        (grown,) = (best >= len(stay)).nonzero()
        row, column = np.divmod(best[grown] - len(stay), count)
        label = likely[column]
        source, output = best.copy(), np.zeros(len(best), np.int64)
        source[grown], output[grown] = row, label
        sources.append(source)
        outputs.append(output)
        ends_blank, ends_label = stay_blank[source], stay_label[source]
        ends_blank[grown], ends_label[grown] = -np.inf, longer[row, column]
        following = fusion.states[rows[row], label]
        lm_scores, hashes, shorter, last = lm_scores[source], hashes[source], shorter[source], last[source]
        lm_scores[grown] += scores_after[row, column]
        shorter[grown] = hashes[grown]
        hashes[grown] = hashes[grown] * HASH_FACTOR + label.astype(np.uint64)
        last[grown] = label
        rows = rows[source]
        rows[grown] = fusion.rows(following.tolist())
    log_ctc = np.logaddexp(ends_blank, ends_label)
    order = np.argsort(-(log_ctc + lm_scores + fusion.scores[rows, 0]), kind="stable")
    source, path = order, np.zeros((len(sources), len(order)), np.int64)
    for t in range(len(sources) - 1, -1, -1):
        path[t], source = outputs[t][source], sources[t][source]
    path = path[::-1] if fusion.is_reversed else path
    return [text[text > 0] for text in path.T], log_ctc[order]


def _highest(scores: Floats, count: int) -> Integers:
    """The indices of the highest scores, the highest first, without those that are -inf."""
    if len(scores) > 2 * count:  # a sort of all takes longer
        chosen = np.sort(np.argpartition(-scores, count - 1)[:count])
    else:
        chosen = np.arange(len(scores))
    best: Integers = chosen[(-scores[chosen]).argsort(kind="stable")[:count]]
    return best[scores[best] > -np.inf]
