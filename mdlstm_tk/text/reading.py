"""Read the lines of a split, and measure the readings: intervals, pages, confusions, calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from torch import nn

from mdlstm_tk.data.task import Split, Task
from mdlstm_tk.text.character_model import CharacterModel
from mdlstm_tk.text.ctc import Transcription, transcribe_logits
from mdlstm_tk.text.ctc_loss import line_steps
from mdlstm_tk.text.decoding import Decoding
from mdlstm_tk.text.encoding import normalise
from mdlstm_tk.text.measures import TextEdits, count_edits, right_characters, target_texts
from mdlstm_tk.training.evaluation import predictor

DRAWS = 4000  # of groups, for an interval
COVERAGE = 0.95  # of an interval
BINS = 10  # of confidences
MAX_CONFUSIONS = 30  # that `describe_lines` lists


class Edit(NamedTuple):
    """One step from the text that was read to the true one.

    Attributes:
        read: a character of the reading; "" if one is missing.
        truth: the character of the true text there; "" if the reading has one too many.
    """

    read: str
    truth: str

    @property
    def is_error(self) -> bool:
        return self.read != self.truth


@dataclass(frozen=True)
class Line:
    """A line of a split, and how it was read.

    Attributes:
        name: name of the sample.
        group: its page or file; see `Task.groups`.
        truth: the true text.
        transcription: what was read.
    """

    name: str
    group: str
    truth: str
    transcription: Transcription

    @cached_property
    def counts(self) -> TextEdits:
        return count_edits(self.transcription.text, self.truth)

    @property
    def character_error(self) -> float:
        return self.counts.character_edits / max(self.counts.characters, 1)

    @property
    def edits(self) -> list[Edit]:
        """The alignment of reading and truth."""
        return align(normalise(self.transcription.text), normalise(self.truth))


def align(reading: str, truth: str) -> list[Edit]:
    """Align two texts with as few errors (insertions, deletions, replacements) as possible."""
    return [
        Edit(read, true)
        for op in Levenshtein.opcodes(reading, truth)
        for read, true in zip_longest(
            reading[op.src_start : op.src_end], truth[op.dest_start : op.dest_end], fillvalue=""
        )
    ]


def evaluate_lines(
    network: nn.Module,
    task: Task,
    split: Split,
    *,
    seed: int = 0,
    beam: int = 1,
    lm: CharacterModel | None = None,
) -> list[Line]:
    """How a network reads each line of a split.

    Args:
        network: is switched to eval mode.
        task: of kind "transcribe", whose spec has the decoding.
        split: which split.
        seed: of lines that are generated.
        beam: texts that are kept at each step; 1 takes the most likely output.
        lm: language model for the beam search.
    """
    spec, names, groups = task.spec, task.names.get(split), task.groups.get(split)
    decoding, direction = Decoding.among(spec.decoding), spec.decoding.get("text_direction")
    columns, lines = spec.decoding.get("columns_per_step"), list[Line]()
    for prediction, batch in map(predictor(network), task.evaluation_batches(split, seed)):
        counts = line_steps(batch, prediction.shape[1], columns).tolist()
        for y, count, truth in zip(prediction.numpy(), counts, target_texts(batch.y, spec), strict=True):
            read = transcribe_logits(
                y[:count], spec.classes, decoding=decoding, direction=direction, beam=beam, lm=lm
            )
            name = names[len(lines)] if names else f"line {len(lines)}"
            lines.append(Line(name, groups[len(lines)] if groups else name, truth, read))
    return lines


def error_interval(
    edits: Sequence[int], lengths: Sequence[int], groups: Sequence[str]
) -> tuple[float, float] | None:
    """Return the 95 % interval of an error rate by bootstrap over groups (Bisani & Ney 2004).

    Groups are drawn with replacement, since lines of one writer err alike; the rate of a draw is the sum of
    its edits divided by the sum of its lengths. Equal arguments give equal intervals.

    Args:
        edits: (N,) of each sample.
        lengths: (N,) characters or words of each true text.
        groups: (N,) the group of each sample.

    Returns:
        The lower and the upper end; None if there are fewer than two groups with a text.
    """
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.stack([np.bincount(index, edits), np.bincount(index, lengths)], axis=1)  # (groups, 2)
    sums = sums[sums[:, 1] > 0]
    if len(sums) < 2:
        return None
    rng, shares = np.random.default_rng(0), np.full(len(sums), 1 / len(sums))
    # One draw at a time: together they would take 32 kB for each group.
    totals = np.stack([rng.multinomial(len(sums), shares) @ sums for _ in range(DRAWS)])  # (DRAWS, 2)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def page_errors(lines: Iterable[Line]) -> dict[str, tuple[float, int]]:
    """Return the character error and the number of lines of each page, the worst page first."""
    pages: dict[str, list[Line]] = {}
    for line in lines:
        pages.setdefault(line.group, []).append(line)
    errors = {
        page: sum(line.counts.character_edits for line in page_lines)
        / max(sum(line.counts.characters for line in page_lines), 1)
        for page, page_lines in pages.items()
    }
    return {page: (errors[page], len(pages[page])) for page in sorted(errors, key=errors.__getitem__)[::-1]}


def confusions(lines: Iterable[Line]) -> Counter[tuple[str, str]]:
    """Count how often each true character was read as another one; "" stands for none."""
    edits = (edit for line in lines for edit in line.edits)
    return Counter((edit.truth, edit.read) for edit in edits if edit.is_error)


def reliability(lines: Iterable[Line]) -> list[tuple[float, float, int]]:
    """Compare the confidences of all characters that were read with the true texts.

    A character is right if the alignment of reading and truth leaves it as it is. Blanks at both ends are
    left out.

    Returns:
        For each of ten equally wide bins of the confidence that is not empty: the mean confidence of its
        characters, the share of them that is right, and their number.
    """
    confidences: list[float] = []
    is_right: list[bool] = []
    for line in lines:
        reading = "".join(c.character for c in line.transcription.characters)
        inner = slice(len(reading) - len(reading.lstrip()), len(reading.rstrip()))
        reading = reading.strip()
        confidences += [c.confidence for c in line.transcription.characters[inner]]
        is_right += right_characters(reading, normalise(line.truth)).tolist()
    values, right = np.asarray(confidences, float), np.asarray(is_right, float)
    bins = np.minimum((values * BINS).astype(int), BINS - 1)
    table = zip(*(np.bincount(bins, weights, BINS) for weights in (values, right, None)), strict=True)
    return [(float(value / n), float(hits / n), int(n)) for value, hits, n in table if n]


def calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """Return the expected calibration error (Naeini et al. 2015) of what `reliability` returns.

    It is the distance between confidence and share of right characters, averaged over all characters.
    """
    distances = sum(abs(confidence - accuracy) * count for confidence, accuracy, count in bins)
    return distances / max(sum(count for *_, count in bins), 1)


def describe_lines(lines: Sequence[Line]) -> dict[str, Any]:
    """Describe the readings of a split.

    Returns:
        "intervals" of 95 % by error; "groups", the number of pages or files that they were drawn from;
        "edits", the number of wrong characters; "confusions", the most frequent ones as true character,
        character read, and how often; "pages", of each the name, the character error and the number of
        lines, if lines are on pages; "reliability" of the confidences and "calibration_error".
    """
    if not lines:
        return {}
    edits, characters, word_edits, words = zip(*(line.counts for line in lines), strict=True)
    groups, pages, bins = [line.group for line in lines], page_errors(lines), reliability(lines)
    return {
        "intervals": {
            "character_error": error_interval(edits, characters, groups),
            "word_error": error_interval(word_edits, words, groups),
        },
        "groups": len(set(groups)),
        "edits": sum(edits),
        "confusions": [[*pair, count] for pair, count in confusions(lines).most_common(MAX_CONFUSIONS)],
        "pages": [[page, *values] for page, values in pages.items()] if len(pages) < len(lines) else [],
        "reliability": bins,
        "calibration_error": calibration_error(bins),
    }
