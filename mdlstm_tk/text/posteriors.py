"""Probabilities of the characters of a text, over all its alignments with the image (CTC), with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

LOWEST = -1e4  # log-probability of an impossible output: e^LOWEST is 0, and sums of it are finite
NEGLIGIBLE = 1e-9  # posterior of steps that the sums of alternatives leave out


def posteriors(log_probs: Floats, labels: Integers) -> tuple[float, Floats, Floats]:
    """The probability of a text and of texts that differ in one character, by forward-backward.

    Args:
        log_probs: (T, 1 + characters).
        labels: (L,) the outputs of the characters; the text can be spelled in T steps.

    Returns:
        log P(text); (L, 1 + characters) P(text with output k in place of character i) / P(text), which is 1
        for the character itself, and where k = 0 deletes the character; and the edges (L, 2) of each
        character, in steps: the mean numbers of steps before it begins and before it has ended, over all
        paths.
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
    """The alternatives of each character; see `posteriors`.

    Args:
        forward, backward: (T, 2L + 1) logarithms of the sums over the paths up to, and from, a step at a
            place of the lattice, its output included.
        occupancy: (T, 2L + 1) the share of the paths at a place.
    """
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
