"""Baselines from maps, their order, their outlines, and which of them are right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from mdlstm_tk.text.baselines_training import LEAST_SHARE, draw_maps, same_lines
from mdlstm_tk.text.geometry import distances, resampled, simplified, spacing_of
from mdlstm_tk.text.layout import outlines, reading_order
from mdlstm_tk.text.line_finding import find_baselines


def line(left: float, y: float, right: float, drop: float = 0.0) -> np.ndarray:
    """A straight baseline that falls by `drop`."""
    return np.array([[left, y], [right, y + drop]], float)


def turned(lines: Sequence[np.ndarray], quarters: int, extent: float) -> list[np.ndarray]:
    """Lines on a square page that is turned anticlockwise by quarters."""
    for _ in range(quarters % 4):
        lines = [np.stack([each[:, 1], extent - each[:, 0]], 1) for each in lines]
    return list(lines)


def found_in(lines: Sequence[np.ndarray], extents: tuple[int, int] = (150, 200)) -> list[np.ndarray]:
    """The baselines that are found in the maps of lines, in pixels of x."""
    maps = draw_maps(lines, extents)
    return [(each + 0.5) * 2 for each in find_baselines(maps)]


def test_distances_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    points, lines = rng.uniform(0, 9, (20, 2)), [rng.uniform(0, 9, (k, 2)) for k in (2, 5, 3)]
    dense = [resampled(each, 20_000) for each in lines]
    expected = [[np.hypot(*(each - point).T).min() for each in dense] for point in points]
    np.testing.assert_allclose(distances(points, lines), expected, atol=1e-3)


@pytest.mark.parametrize(("shift", "is_same"), [(0, True), (4.9, True), (5.1, False)])
def test_a_line_is_found_within_a_quarter_of_the_spacing(shift: float, is_same: bool) -> None:
    true = [line(0, 20 * k, 100) for k in range(1, 6)]
    assert spacing_of(true, 300) == pytest.approx(20)
    found = [line(0, 20 * k + shift, 100) for k in range(1, 6)]
    assert same_lines(found, true, 20) == ([(k, k) for k in range(5)] if is_same else [])


@pytest.mark.parametrize(("share", "is_same"), [(LEAST_SHARE + 0.02, True), (LEAST_SHARE - 0.02, False)])
def test_a_line_is_found_over_most_of_both_lengths(share: float, is_same: bool) -> None:
    long, short = [line(0, 50, 1000)], [line(0, 50, 1000 * share)]
    assert len(same_lines(long, short, 20)) == len(same_lines(short, long, 20)) == is_same


def test_each_line_is_found_once_and_as_many_as_there_can_be() -> None:
    true = [line(0, 50, 100)]
    assert same_lines([line(0, 50, 100), line(0, 51, 100)], true, 20) == [(0, 0)]
    assert same_lines([], true, 20) == same_lines(true, [], 20) == []
    # 0 is near both, 1 near the first alone
    assert sorted(
        same_lines([line(0, 52, 100), line(0, 47, 100)], [line(0, 50, 100), line(0, 55, 100)], 20)
    ) == [
        (0, 1),
        (1, 0),
    ]


def test_lines_are_found_where_they_are_drawn() -> None:
    lines = [line(30, 40 + 24 * k, 370 - 20 * k, 10) for k in range(9)]
    found = found_in(lines)
    assert len(found) == len(lines)
    for each, true in zip(sorted(found, key=lambda each: each[0, 1]), lines, strict=True):
        assert distances(each, [true]).max() < 2.5
        np.testing.assert_allclose(each[[0, -1]], true, atol=5)


def test_bent_steep_and_close_lines_are_found() -> None:
    x = np.linspace(40, 360, 30)
    bent = np.stack([x, 60 + 15 * np.sin(x / 60)], 1)
    assert len(same_lines(found_in([bent]), [bent], 40)) == 1
    upright = np.array([[100.0, 30], [100, 270]])
    assert len(same_lines(found_in([upright]), [upright], 40)) == 1
    close = [line(30, 40 + 12 * k, 370) for k in range(15)]
    assert len(same_lines(found_in(close), close, 12)) == 15


def test_steep_lines_read_as_the_maps_say_and_all_others_rightwards() -> None:
    for true in ([[100.0, 30], [100, 270]], [[100.0, 270], [100, 30]], [[120.0, 270], [90, 30]]):
        (found,) = found_in([np.array(true)])
        np.testing.assert_allclose(found[[0, -1]], true, atol=6)
    (found,) = found_in([line(370, 40, 30)])
    assert found[0, 0] < found[-1, 0]


def test_pieces_of_a_line_are_joined_and_columns_kept_apart() -> None:
    above, below = line(20, 40, 380), line(20, 120, 380)
    pieces = draw_maps([above, line(20, 80, 190), line(215, 80, 380), below], (150, 200))
    pieces[..., 1:] = 0  # nothing says that a line ends in the gap
    assert len(find_baselines(pieces)) == 3
    columns = [line(left, 40 + 40 * k, right) for k in range(5) for left, right in ((20, 190), (215, 380))]
    found = found_in(columns)
    assert len(found) == 10 and len(same_lines(found, columns, 40)) == 10


@pytest.mark.parametrize("quarters", [-1, 0, 1])
def test_columns_are_kept_apart_and_in_order_however_the_page_is_turned(quarters: int) -> None:
    columns = [line(left, 40 + 40 * k, right) for left, right in ((20, 190), (215, 380)) for k in range(5)]
    true = turned(columns, quarters, 400)
    found = found_in(true, (200, 200))
    order = [k for region in reading_order(found) for k in region]
    assert len(order) == 10
    for each, expected in zip([found[k] for k in order], true, strict=True):
        np.testing.assert_allclose(each[[0, -1]], expected, atol=6)


@pytest.mark.parametrize(("lengths", "apart"), [((120, 120), 300), ((90,), 0), ((60, 300), 200)])
def test_few_lines_are_found_whatever_their_length_and_distance(
    lengths: tuple[int, ...], apart: int
) -> None:
    """As on a title page, or an envelope; and their spacing is that of a usual page."""
    true = [line(100, 100 + apart * k, 100 + length) for k, length in enumerate(lengths)]
    found = found_in(true, (256, 200))
    spacing = spacing_of(found, 512)
    assert 512 / 80 <= spacing <= 512 / 6 and len(same_lines(found, true, spacing)) == len(true)


def test_empty_maps_hold_no_lines() -> None:
    for shape in ((1, 1, 3), (40, 60, 3)):
        assert find_baselines(np.zeros(shape)) == []
    assert reading_order([]) == [] and outlines(np.zeros((9, 9), np.float32), [], 0.0, (1, 1)) == []


def test_the_order_of_columns_headings_and_notes() -> None:
    heading, left, right = line(20, 20, 380), [line(20, 60 + 20 * k, 190) for k in range(4)], []
    right = [line(215, 62 + 20 * k, 380) for k in range(5)]
    foot = line(20, 200, 380)
    lines = [heading, *left, *right, foot]
    for order in ([*range(11)], [3, 10, 0, 7, 9, 1, 5, 2, 8, 6, 4]):
        regions = reading_order([lines[k] for k in order])
        assert [order[k] for region in regions for k in region] == [*range(11)]
        assert [len(region) for region in regions][-1] == 6  # the right column and what is below both
    mirrored = [lines[k][::-1] * (-1, 1) + (400, 0) for k in range(11)]
    assert [k for region in reading_order(mirrored, "rtl") for k in region] == [*range(11)]
    note, text = line(5, 100, 40), [line(60, 40 + 30 * k, 380) for k in range(5)]
    assert reading_order([*text, note]) == [[5], [0, 1, 2, 3, 4]]


def test_the_order_does_not_depend_on_that_of_the_lines_nor_on_rotation() -> None:
    lines = [
        line(20, 30, 180),
        line(200, 33, 380),
        line(20, 60, 380),
        line(20, 90, 180),
        line(210, 91, 380),
    ]
    expected = [0, 1, 2, 3, 4]
    angles = np.radians([0, 5, -5, 88, 90, 92, -88, -90, -92, 180])
    for order in list(permutations(range(5)))[::7]:
        for cosine, sine in zip(np.cos(angles), np.sin(angles), strict=True):
            regions = reading_order([lines[k] @ [[cosine, sine], [-sine, cosine]] for k in order])
            assert [order[k] for region in regions for k in region] == expected


def test_many_lines_are_put_in_order() -> None:
    rng = np.random.default_rng(0)
    lines = [line(x, y, x + 30) for x, y in rng.uniform(0, 500, (700, 2))]
    regions = reading_order(lines)
    assert sorted(k for region in regions for k in region) == [*range(700)]


def test_outlines_follow_the_ink_between_lines() -> None:
    x = np.full((120, 300), 0.9, np.float32)
    lines = [line(20, 40, 280), line(20, 70, 280)]
    for each in lines:
        x[int(each[0, 1]) - 12 : int(each[0, 1]), 20:280:6] = 0.1  # letters
    x[40:52, 100:104] = 0.1  # a descender of the first line
    upper, lower = outlines(x, lines, 30, (24, 18))
    for outline, each in zip((upper, lower), lines, strict=True):
        rows = outline[:, 1]
        assert rows.min() <= each[0, 1] - 14 and rows.max() >= each[0, 1] + 1
    assert upper[:, 1].max() < 70 and lower[:, 1].min() > 40  # neither crosses the other's baseline
    inside = (lower[:, 0] > 95) & (lower[:, 0] < 110) & (lower[:, 1] < 70)
    assert lower[inside, 1].min() > 45  # the descender is outside, or cut short


def test_a_chain_gets_few_points_and_stays_where_it_is() -> None:
    x = np.linspace(0, 100, 201)
    chain = np.stack([x, 5 * np.sin(x / 20)], 1)
    few = simplified(chain, 0.5)
    assert len(few) < 20 and distances(chain, [few]).max() <= 0.5
    assert len(simplified(line(0, 0, 9), 0.5)) == 2
