"""What tests of texts read and find, and what they should give, by the definitions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import product
from math import log
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mdlstm_tk.data import TaskSpec
from mdlstm_tk.text import Decoding, measures
from mdlstm_tk.text.calibration import LineLogits
from mdlstm_tk.text.character_model import BEGIN, DISCOUNTS, END, UNKNOWN
from mdlstm_tk.text.ctc import read_logits
from mdlstm_tk.text.line_finding import find_baselines
from mdlstm_tk.text.measures import Line
from mdlstm_tk.text.pages import PageLine

Text = tuple[int, ...]

WORDS = ("le", "chat", "chien", "et", "la", "tache", "cache", "niche", "latin", "chante")
CLASSES = tuple(sorted({*"".join(WORDS), " "}))
SPEC = TaskSpec("words", "transcribe", 1, 1 + len(CLASSES), (64, 64), CLASSES)
PAPER, INK, SIZE = 200, 40, 300
UPRIGHTS = (20, 60, 75, 140)  # columns of the marks in the line, which tell its order
LENGTH, ABOVE, BELOW = 160, 24, 8


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


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 4)) for _ in range(count)]


def noisy_lines(count: int, seed: int, signal: float, scale: float = 1.0) -> list[LineLogits]:
    """Lines whose logits, divided by `scale`, are the true posteriors of characters seen through noise: one
    step for each character, and a blank after it."""
    rng, lines = np.random.default_rng(seed), []
    for text in sentences(count, seed):
        logits = np.full((2 * len(text), len(CLASSES) + 1), -40.0)
        logits[1::2, 0] = 40.0
        seen = signal * np.eye(len(CLASSES))[[CLASSES.index(c) for c in text]]
        logits[::2, 1:] = signal * (seen + rng.normal(size=seen.shape))
        lines.append(LineLogits(scale * logits, text))
    return lines


def judged(lines: Sequence[LineLogits], decoding: Decoding, **options: Any) -> tuple[float, int]:
    """The expected calibration error of lines that are read with a decoding, and their character errors."""
    readings = [read_logits(each.logits, CLASSES, decoding, **options) for each in lines]
    pairs = [Line("", each.visual, reading) for each, reading in zip(lines, readings, strict=True)]
    error = measures.calibration_error(measures.reliability(pairs))
    return error, sum(pair.counts.character_edits for pair in pairs)


def line(left: float, y: float, right: float) -> np.ndarray:
    return np.array([[left, y], [right, y]], float)


def drawn_layout(rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Regions of a page of 400×400 in the order of reading: a heading above one to three columns of lines,
    perhaps bent, and a foot that goes on below the last one."""
    columns, spacing = int(rng.integers(1, 4)), float(rng.uniform(14, 40))
    width, top = 380 / columns, 20 + spacing
    regions = list[list[np.ndarray]]()
    for k in range(columns):
        count = min(int(rng.integers(2, 9)), int(280 / spacing))
        ends = 12 + k * width, 12 + (k + 1) * width - 24
        x, down = np.linspace(*ends, 20), rng.uniform(0, 6)
        bend = rng.uniform(0, 3) * np.sin(x / 40) + top + down
        rows = [bend + spacing * (1 + j) for j in range(count)]
        regions.append([np.stack([x - (j % 2) * (x - ends[0]) / 8, y], 1) for j, y in enumerate(rows)])
    if columns > 1:
        regions[0] = [line(12, top, 388)] * int(rng.integers(2)) + regions[0]
        regions[-1].append(line(12, max(each[:, 1].max() for r in regions for each in r) + spacing, 388))
    elif len(regions[0]) > 3 and rng.random() < 0.5:
        regions[0] = [each * (0.8, 1) + (70, 0) for each in regions[0]]
        regions.insert(0, [line(10, regions[0][2][0, 1], 55)])  # a note in the margin
    return regions


def page_line(baseline: Any = None, polygon: Any = None, reach: Any = None) -> PageLine:
    arrays = (None if points is None else np.array(points, float) for points in (baseline, polygon))
    return PageLine("l", "", *arrays, reach)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def turn(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, sine], [-sine, cosine]])


def drawn_line(degrees: float, radius: float = 1e6, start: Any = (150, 150)) -> tuple[np.ndarray, ...]:
    """Draw uprights on an arc around a place; returns pixels, baseline and outline."""
    image = Image.new("L", (SIZE, SIZE), PAPER)

    def at(distance: float, height: float) -> tuple[float, ...]:
        angle, inner = (distance - LENGTH / 2) / radius, radius + height
        return tuple((inner * np.sin(angle), radius - inner * np.cos(angle)) @ turn(degrees) + start)

    for column in UPRIGHTS:
        ImageDraw.Draw(image).line([at(column, 0), at(column, 18)], INK, 4)
    ends = np.linspace(0, LENGTH, 9)
    outline = [at(s, ABOVE) for s in ends] + [at(s, -BELOW) for s in ends[::-1]]
    return np.array(image), np.array([at(s, 0) for s in ends]), np.array(outline)


def marks(cut: np.ndarray) -> list[float]:
    """The columns of the uprights."""
    dark = (cut[4:-BELOW] < (PAPER + INK) / 2).sum(axis=0) > 6
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dark.astype(int), [0]])))
    return [(a + b) / 2 for a, b in zip(edges[::2], edges[1::2], strict=True)]


def check_cut(cut: np.ndarray, above: float = ABOVE, below: float = BELOW, margin: int = 2) -> None:
    """Height and width, the places of the marks, and the row of the baseline, on which they end."""
    np.testing.assert_allclose(cut.shape, (above + below + 2 * margin, LENGTH), atol=6)
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=5)
    np.testing.assert_allclose(np.flatnonzero((cut < 100).any(axis=1))[-1], margin + above, atol=3)


def any_maps(rng: np.random.Generator) -> Any:
    """Maps at random: noise of any scale, blobs, stripes, tiny and long grids."""
    shape = tuple(rng.integers(1, (1, 60, 200)[rng.integers(3)] + 1, 2).tolist())
    y = rng.standard_normal((*shape, 3)) * 10 ** rng.uniform(-2, 3)
    y = y.cumsum(rng.integers(2)) if rng.uniform() < 0.5 else y
    if rng.uniform() < 0.3:
        y[:: rng.integers(1, 9), :: rng.integers(1, 9)] = 100
    return y.astype(np.float32)


def found_in(maps: np.ndarray) -> list[np.ndarray]:
    """The baselines that are found in maps of probabilities, in pixels of x."""
    return find_baselines(np.log(np.clip(maps, 1e-9, 1) / np.clip(1 - maps, 1e-9, 1)), (2, 2))
