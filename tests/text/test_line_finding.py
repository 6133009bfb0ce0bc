"""Baselines from maps, their order, their outlines, and which of them are right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mdlstm_tk.text.baselines_training import LEAST_SHARE, draw_maps, same_lines
from mdlstm_tk.text.geometry import distances, resampled, simplified, spacing_of
from mdlstm_tk.text.layout import outlines, reading_order
from mdlstm_tk.text.line_finding import find_baselines


def line(left: float, y: float, right: float, drop: float = 0.0) -> np.ndarray:
    """A straight baseline that falls by `drop`."""
    return np.array([[left, y], [right, y + drop]], float)


def turned(lines: Sequence[np.ndarray], degrees: float, centre: float = 200) -> list[np.ndarray]:
    """Lines on a page that is turned clockwise around its centre."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [(each - centre) @ [[cosine, sine], [-sine, cosine]] + centre for each in lines]


def found_in(lines: Sequence[np.ndarray], extents: tuple[int, int] = (200, 200)) -> list[np.ndarray]:
    """The baselines that are found in the maps of lines, in pixels of x."""
    return [(each + 0.5) * 2 for each in find_baselines(draw_maps(lines, extents))]


def layout(rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Regions of a page of 400×400 in the order of reading: a heading above one to three columns of lines,
    perhaps bent, and a foot that goes on below the last one."""
    columns, spacing = int(rng.integers(1, 4)), float(rng.uniform(14, 40))
    width, top = 380 / columns, 20 + spacing
    regions = list[list[np.ndarray]]()
    for k in range(columns):
        count = min(int(rng.integers(2, 9)), int(280 / spacing))
        ends = 12 + k * width, 12 + (k + 1) * width - 24
        x, down = np.linspace(*ends, 20), rng.uniform(0, 6)
        bend = rng.uniform(0, 3) * np.sin(x / 40)
        rows = [top + spacing * (1 + j) + down for j in range(count)]
        regions.append(
            [np.stack([x - (j % 2) * (x - ends[0]) / 8, y + bend], 1) for j, y in enumerate(rows)]
        )
    if columns > 1 and rng.random() < 0.5:
        regions[0].insert(0, line(12, top, 388))
    if columns > 1:
        regions[-1].append(line(12, max(each[:, 1].max() for r in regions for each in r) + spacing, 388))
    elif len(regions[0]) > 3 and rng.random() < 0.5:
        regions[0] = [each * (0.8, 1) + (70, 0) for each in regions[0]]
        regions.insert(0, [line(10, regions[0][2][0, 1], 55)])  # a note in the margin
    return regions


@pytest.mark.parametrize("seed", range(40))
def test_lines_are_found_in_the_order_of_reading_however_the_page_is_turned(seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions = layout(rng)
    degrees = float(rng.choice([0, 3, -3, 88, 90, -90, -87]))
    lines = turned([each for region in regions for each in region], degrees)
    found = found_in(lines)
    spacing = spacing_of(lines, 400)
    pairs = dict(same_lines(found, lines, spacing))
    assert len(pairs) == len(found) == len(lines)
    for k, j in pairs.items():
        np.testing.assert_allclose(found[k][[0, -1]], lines[j][[0, -1]], atol=7)
    order = rng.permutation(len(lines))
    for several, number in (
        ([lines[k] for k in order], order),
        (found, [pairs[k] for k in range(len(found))]),
    ):
        ordered = [[int(number[k]) for k in region] for region in reading_order(several)]
        assert [k for region in ordered for k in region] == [*range(len(lines))]
        assert [*map(len, ordered)] == [*map(len, regions)]
    mirrored = [each[::-1] * (-1, 1) for each in lines]
    assert [k for region in reading_order(mirrored, "rtl") for k in region] == [*range(len(lines))]


def test_few_and_many_lines_and_none() -> None:
    """As on a title page or an envelope, and their spacing is that of a usual page."""
    for true in ([line(100, 100, 190)], [line(100, 100, 220), line(100, 400, 220)]):
        found = found_in(true, (256, 200))
        spacing = spacing_of(found, 512)
        assert 512 / 80 <= spacing <= 512 / 6 and len(same_lines(found, true, spacing)) == len(true)
    rng = np.random.default_rng(0)
    many = [line(x, y, x + 30) for x, y in rng.uniform(0, 500, (700, 2))]
    assert sorted(k for region in reading_order(many) for k in region) == [*range(700)]
    for shape in ((1, 1, 3), (40, 60, 3)):
        assert find_baselines(np.zeros(shape)) == []
    assert reading_order([]) == [] and outlines(np.zeros((9, 9), np.float32), [], 0.0, (1, 1)) == []


def test_steep_lines_read_as_the_maps_say_and_all_others_rightwards() -> None:
    for true in ([[100.0, 30], [100, 270]], [[100.0, 270], [100, 30]], [[120.0, 270], [90, 30]]):
        (found,) = found_in([np.array(true)])
        np.testing.assert_allclose(found[[0, -1]], true, atol=6)
    (found,) = found_in([line(370, 40, 30)])
    assert found[0, 0] < found[-1, 0]


def test_pieces_are_joined_unless_a_line_ends_between_them_and_unsure_ones_are_none() -> None:
    above, below = line(20, 40, 380), line(20, 120, 380)
    pieces = draw_maps([above, line(20, 80, 190), line(215, 80, 380), below], (150, 200))
    assert len(find_baselines(pieces)) == 4
    pieces[..., 1:] = 0  # nothing says that a line ends in the gap
    assert len(find_baselines(pieces)) == 3
    pieces[..., 0] *= 0.7
    assert find_baselines(pieces) == []


def test_maps_have_the_baselines_their_beginnings_and_ends() -> None:
    maps = draw_maps([line(11, 21, 51)], (20, 40))
    assert maps.shape == (20, 40, 3) and maps.min() == 0 and maps.max() == 1
    assert (maps[10, 5:25, 0] == 1).all() and maps[..., 0].sum() < 80
    assert maps[10, 5, 1] == 1 and maps[10, 25, 2] == 1
    assert maps[:, 12:, 1].max() == maps[:, :18, 2].max() == 0
    assert not draw_maps([line(900, -90, 990)], (20, 40)).any()  # beyond the page


@pytest.mark.parametrize(("shift", "share"), [(0, 1), (4.9, 1), (5.1, 0), (0, 0.02), (0, -0.02)])
def test_a_line_is_found_near_the_true_one_over_most_of_both_lengths(shift: float, share: float) -> None:
    true, right = [line(0, 20 * k, 1000) for k in range(1, 6)], 1000.0
    right = right if share in (0, 1) else right * (LEAST_SHARE + share)
    assert spacing_of(true, 300) == pytest.approx(20)
    found = [line(0, 20 * k + shift, right) for k in range(1, 6)]
    expected = [(k, k) for k in range(5)] if shift < 5 and share > 0 else []
    assert same_lines(found, true, 20) == same_lines(true, found, 20) == expected


def test_each_line_is_found_once_and_as_many_as_there_can_be() -> None:
    true = [line(0, 50, 100), line(0, 55, 100)]
    assert same_lines([line(0, 50, 100), line(0, 51, 100)], true[:1], 20) == [(0, 0)]
    assert same_lines([], true, 20) == same_lines(true, [], 20) == []
    near_both, near_first = line(0, 52, 100), line(0, 47, 100)
    assert sorted(same_lines([near_both, near_first], true, 20)) == [(0, 1), (1, 0)]


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


def test_distances_and_simpler_chains_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    points, lines = rng.uniform(0, 9, (20, 2)), [rng.uniform(0, 9, (k, 2)) for k in (2, 5, 3)]
    dense = [resampled(each, 20_000) for each in lines]
    expected = [[np.hypot(*(each - point).T).min() for each in dense] for point in points]
    np.testing.assert_allclose(distances(points, lines), expected, atol=1e-3)
    x = np.linspace(0, 100, 201)
    chain = np.stack([x, 5 * np.sin(x / 20)], 1)
    few = simplified(chain, 0.5)
    assert len(few) < 20 and distances(chain, [few]).max() <= 0.5
    assert len(simplified(line(0, 0, 9), 0.5)) == 2
