"""Read the lines of a split, and what the report of a run tells of them: intervals, confusions, and how
honest confidences are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from torch import nn

from mdlstm_tk._util.text import printable
from mdlstm_tk.data.task import SPLITS, Split, Task
from mdlstm_tk.text.ctc import Decoding, ReadLine, read_logits
from mdlstm_tk.text.transcribe_training import count_edits, line_steps, normalise, target_texts
from mdlstm_tk.training.evaluation import predictor

DRAWS = 4000  # of groups, for an interval
COVERAGE = 0.95  # of an interval
BINS = 10  # of confidences
MOST_ROWS = 15  # of a table in a report


def right_characters(reading: Sequence[str], truth: Sequence[str]) -> npt.NDArray[np.bool_]:
    """True for each character of a reading that its alignment with the truth leaves as it is, (L,)."""
    is_right = np.zeros(len(reading), bool)
    for op in Levenshtein.opcodes(reading, truth):
        is_right[op.src_start : op.src_end] = op.tag == "equal"
    return is_right


@dataclass(frozen=True)
class Line:
    """A line of a split: its page or file (see `Task.groups`), its true text, and how it was read."""

    group: str
    truth: str
    read: ReadLine


def evaluate_lines(network: nn.Module, task: Task, split: Split) -> list[Line]:
    """How a network, which is switched to eval mode, reads each line of a split of a task of kind
    "transcribe", whose spec has the decoding."""
    spec, groups = task.spec, task.groups.get(split)
    decoding, direction = Decoding.of(spec.decoding), spec.decoding.get("text_direction")
    columns, lines = spec.decoding.get("columns_per_step"), list[Line]()
    for prediction, batch in map(predictor(network), task.evaluation_batches(split, 0)):
        counts = line_steps(batch, prediction.shape[1], columns).tolist()
        for y, count, truth in zip(prediction.numpy(), counts, target_texts(batch.y, spec), strict=True):
            read = read_logits(y[:count], spec.classes, decoding, direction)
            lines.append(Line(groups[len(lines)] if groups else f"line {len(lines)}", truth, read))
    return lines


def error_interval(
    edits: Sequence[int], lengths: Sequence[int], groups: Sequence[str]
) -> tuple[float, float] | None:
    """The 95 % interval of an error rate by bootstrap over groups (Bisani & Ney 2004): they are drawn with
    replacement, since lines of one writer err alike. Arguments are edits, length of the true text, and
    group of each sample; equal ones give equal intervals. None if fewer than two groups have a text."""
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


def confusions(lines: Iterable[Line]) -> Counter[tuple[str, str]]:
    """How often each true character was read as another one; "" stands for none."""
    counts = Counter[tuple[str, str]]()
    for line in lines:
        read, truth = normalise(line.read.text), normalise(line.truth)
        for op in Levenshtein.opcodes(read, truth):
            if op.tag != "equal":
                ends = truth[op.dest_start : op.dest_end], read[op.src_start : op.src_end]
                counts.update(zip_longest(*ends, fillvalue=""))
    return counts


def reliability(lines: Iterable[Line]) -> list[tuple[float, float, int]]:
    """Of each of ten equally wide bins of confidence that holds characters that were read: their mean
    confidence, the share of them that is right, and their number. Blanks at both ends are left out."""
    values, right = [np.zeros(0)], [np.zeros(0, bool)]
    for line in lines:
        read = "".join(c.character for c in line.read.characters)
        inner = slice(len(read) - len(read.lstrip()), len(read.rstrip()))
        values.append(np.array([c.confidence for c in line.read.characters[inner]]))
        right.append(right_characters(read.strip(), normalise(line.truth)))
    confidences = np.concatenate(values)
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    weights = confidences, np.concatenate(right), None
    table = zip(*(np.bincount(bins, each, BINS) for each in weights), strict=True)
    return [(float(value / n), float(hits / n), int(n)) for value, hits, n in table if n]


def calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """The expected calibration error (Naeini et al. 2015) of what `reliability` returns: the distance
    between confidence and share of right characters, averaged over all characters."""
    distances = sum(abs(confidence - accuracy) * count for confidence, accuracy, count in bins)
    return distances / max(sum(count for *_, count in bins), 1)


def text_sections(network: nn.Module, task: Task) -> str:
    """HTML about how a network reads the data that influenced it least; "" if none are held out."""
    split = next((each for each in reversed(SPLITS) if each != "train" and task.count(each)), None)
    if split is None:
        return ""
    lines = evaluate_lines(network, task, split)
    bins, groups = reliability(lines), [line.group for line in lines]
    counts = (count_edits(line.read.text, line.truth) for line in lines)
    edits, characters, word_edits, words = zip(*counts, strict=True)
    pairs = {"character error": (edits, characters), "word error": (word_edits, words)}
    ends = {name: error_interval(*pair, groups) for name, pair in pairs.items()}
    intervals = ((name, *both) for name, both in ends.items() if both)
    confused = ((*pair, count) for pair, count in confusions(lines).most_common(MOST_ROWS))
    error = f"calibration error, the mean distance between the two, {calibration_error(bins):.3f}"
    tables = [
        _table(f"95 % intervals over {len({*groups})} pages or lines", ("error", "from", "to"), intervals),
        _table("most frequent confusions", ("truth", "read as", "times"), confused),
        _table(f"confidences; {error}", ("mean confidence", "right", "characters"), bins),
    ]
    return f"<section id='texts'>\n<h2>Texts of the {split} data</h2>\n{''.join(tables)}</section>\n"


def _table(caption: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """HTML of a table, shares in per cent; "" without rows. Names and texts are the user's: they are
    escaped, and control characters in them spelt out."""

    def cell(value: Any) -> str:
        text = f"{100 * value:.1f} %" if isinstance(value, float) else printable(value)
        return f"<td>{escape({'': '∅', ' ': '␣'}.get(text, text))}</td>"

    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    return body and f"<table>\n<caption>{caption}</caption>\n<tr>{head}</tr>\n{body}</table>\n"
