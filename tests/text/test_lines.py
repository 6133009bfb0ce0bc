"""Lines are cut straight wherever they run on the page, found in maps, and ordered; and distorted alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from mdlstm_tk.errors import InputError
from mdlstm_tk.text.baselines_training import LEAST_SHARE, draw_maps, same_lines
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.distortion import distort_line, distort_page
from mdlstm_tk.text.geometry import spacing_of
from mdlstm_tk.text.layout import outlines, reading_order
from mdlstm_tk.text.line_finding import find_baselines
from mdlstm_tk.text.pages import PageLine

PAPER, INK, SIZE = 200, 40, 300
UPRIGHTS = (20, 60, 75, 140)  # columns of the marks in the line, which tell its order
LENGTH, ABOVE, BELOW = 160, 24, 8


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


def found_in(maps: np.ndarray) -> list[np.ndarray]:
    """The baselines that are found in maps of probabilities, in pixels of x."""
    return find_baselines(np.log(np.clip(maps, 1e-9, 1) / np.clip(1 - maps, 1e-9, 1)), (2, 2))


@pytest.mark.parametrize("degrees", [0, 20, -30, 70, 85, 90, -90, 180])
@pytest.mark.parametrize("radius", [1e6, 200, -200])
def test_lines_are_unrolled_along_what_is_known_of_them(degrees: float, radius: float) -> None:
    """Baseline and outline, drawn finely or by an unsteady hand, or one of the two alone; lines of a page
    have one scale, unless they are of another size."""
    pixels, baseline, outline = drawn_line(degrees, radius)
    check_cut(whole := cut_line(pixels, page_line(baseline, outline)))
    shaky = np.repeat(baseline, 5, axis=0) + np.random.default_rng(0).uniform(-1.5, 1.5, (45, 2))
    assert len(marks(cut_line(pixels, page_line(shaky, outline, (24.0, 8.0))))) == len(UPRIGHTS)
    check_cut(cut := cut_line(pixels, page_line(baseline, outline, (28.0, 9.0))), 28, 9)
    assert abs(cut.shape[0] - 41) <= 1
    other_size = cut_line(pixels, page_line(baseline, outline, (60.0, 20.0)))
    np.testing.assert_allclose(other_size.astype(int), whole, atol=1)
    check_cut(cut_line(pixels, page_line(baseline, None, (24.0, 8.0))))
    if radius == 1e6 and degrees not in (180, -90):  # an axis has no direction
        cut = cut_line(pixels, page_line(None, outline))
        np.testing.assert_allclose(cut.shape, (ABOVE + BELOW, LENGTH), atol=8)
        np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pixels_of_every_type_are_cut_alike(dtype: type, channels: tuple[int, ...]) -> None:
    """And what is outside the outline gets the colour of the paper inside."""
    pixels = np.full((60, 200, *channels), 120).astype(dtype)
    shades = np.linspace(150, 210, 200).astype(dtype)
    pixels[20:40] = shades.reshape(1, -1, *[1] * len(channels))
    shape = [[0, 20], [100, 20], [100, 28], [200, 28], [200, 40], [0, 40]]
    cut = cut_line(pixels, page_line([[0, 36], [200, 36]], shape))
    assert cut.dtype == dtype and cut.shape == (1 + 20 + 1, 200, *(c for c in channels if c > 1))
    for channel in [cut] if cut.ndim == 2 else np.moveaxis(cut, -1, 0):
        np.testing.assert_allclose(channel[1:7, 104:] - 0.0, [shades[104:] - 0.0] * 6, atol=14)
        np.testing.assert_allclose(channel[10:12, 2:98] - 0.0, [shades[2:98] - 0.0] * 2, atol=1.01)


def test_boxes_are_cut_as_they_are_and_bad_baselines_do_not_decide() -> None:
    """A scribble, one away from the outline and a point; and lines that lie nowhere are refused."""
    pixels, baseline, outline = drawn_line(0)
    level = [[10, 10], [90, 10]]
    nowhere: list[tuple[object, ...]] = [(), (level,), (None, [*level, level[0]])]  # without reach or area
    nowhere += [(level, box(left, 10, left + 30, 30)) for left in (300, 310)]
    for places in nowhere:
        with pytest.raises(InputError):
            cut_line(pixels, page_line(*places))
    cut = cut_line(pixels, page_line(polygon=box(5, 10, 320, 30)))
    np.testing.assert_array_equal(cut, pixels[10:30, 5:])
    assert cut.base is None  # which does not keep the page in memory
    scribble = np.random.default_rng(0).integers(60, 240, (2000, 2))
    check_cut(cut := cut_line(pixels, page_line(scribble, outline, (24.0, 8.0))), margin=1)
    np.testing.assert_array_equal(cut, cut_line(pixels, page_line([[300, 300], [300, 300]], outline)))
    below = page_line(baseline + np.array([0, 100]), outline, (24.0, 8.0))
    np.testing.assert_allclose(marks(cut_line(pixels, below)), UPRIGHTS, atol=3)
    pixels, baseline, outline = drawn_line(0, start=(80, 16))  # from the left edge, below the upper one
    cut = cut_line(pixels, page_line(baseline, outline, (24.0, 8.0)))
    assert cut.shape[0] == 36 and len(marks(cut[8:])) == len(UPRIGHTS)


@pytest.mark.parametrize("seed", range(40))
def test_lines_are_found_in_the_order_of_reading_however_the_page_is_turned(seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions, level = drawn_layout(rng), turn(rng.choice([0, 3, -3, 88, 90, -90, -87]))
    lines = [(each - 200) @ level + 200 for region in regions for each in region]
    found, every = found_in(draw_maps(lines, (200, 200))), [*range(len(lines))]
    pairs = dict(same_lines(found, lines, spacing_of(lines, 400)))
    assert len(pairs) == len(found) == len(lines)
    for k, j in pairs.items():
        np.testing.assert_allclose(found[k][[0, -1]], lines[j][[0, -1]], atol=7)
    shuffled = rng.permutation(every)
    for several, number in (([lines[k] for k in shuffled], shuffled), (found, [pairs[k] for k in every])):
        ordered = [[int(number[k]) for k in region] for region in reading_order(several)]
        assert [k for region in ordered for k in region] == every
        assert [*map(len, ordered)] == [*map(len, regions)]
    mirrored = [each[::-1] * (-1, 1) for each in lines]
    assert [k for region in reading_order(mirrored, "rtl") for k in region] == every


def test_lines_read_as_the_maps_say_and_are_joined_unless_one_ends_there() -> None:
    """Steep ones begin where the maps say it, all others on the left; unsure ones are none. Few lines, as
    on an envelope, have the spacing of a usual page."""
    for true in ([[100.0, 30], [100, 270]], [[100.0, 270], [100, 30]], [[120.0, 270], [90, 30]]):
        (found,) = found_in(draw_maps([np.array(true)], (200, 200)))
        np.testing.assert_allclose(found[[0, -1]], true, atol=6)
    (found,) = found_in(draw_maps([line(370, 40, 30), line(900, -90, 990)], (200, 200)))
    assert found[0, 0] < found[-1, 0]
    pieces = [line(20, 40, 380), line(20, 80, 190), line(215, 80, 380), line(20, 120, 380)]
    maps = draw_maps(pieces, (150, 200))
    assert len(found_in(maps)) == 4
    maps[..., 1:] = 0  # nothing says that a line ends in the gap
    assert len(found_in(maps)) == 3
    assert found_in(0.7 * maps) == reading_order([]) == []
    for few in (pieces[:1], [line(20, 40, 380), line(20, 280, 380)]):
        assert 300 / 80 <= spacing_of(few, 300) <= 300 / 6


@pytest.mark.parametrize(("shift", "share"), [(4.9, 0.02), (5.1, 0.02), (0, -0.02)])
def test_a_line_is_found_once_near_the_true_one_over_most_of_both(shift: float, share: float) -> None:
    right = 1000 * (LEAST_SHARE + share)
    true, found = ([line(0, 20 * k + y, x) for k in range(1, 6)] for y, x in ((0, 1000), (shift, right)))
    expected = [(k, k) for k in range(5)] if shift < 5 and share > 0 else []
    assert same_lines(found, true, 20) == same_lines(true, found, 20) == expected
    close, near = ([line(0, y, 100) for y in pair] for pair in ((50, 55), (52, 47)))
    assert sorted(same_lines(near, close, 20)) == [(0, 1), (1, 0)]  # as many as there can be


def test_outlines_follow_the_ink_between_lines() -> None:
    x = np.full((120, 300), 0.9, np.float32)
    for base in (40, 70):
        x[base - 12 : base, 20:280:6] = 0.1  # letters
    x[40:52, 100:104] = 0.1  # a descender of the first line
    upper, lower = outlines(x, [line(20, 40, 280), line(20, 70, 280)], 30, (24, 18))
    for outline, base in ((upper, 40), (lower, 70)):
        assert outline[:, 1].min() <= base - 14 and outline[:, 1].max() >= base + 1
    assert upper[:, 1].max() < 70 and lower[:, 1].min() > 40  # neither crosses the other's baseline
    inside = (lower[:, 0] > 95) & (lower[:, 0] < 110) & (lower[:, 1] < 70)
    assert lower[inside, 1].min() > 45  # the descender is outside, or cut short


@pytest.mark.parametrize("strength", [0.0, 1.0, 9.0])
def test_a_page_and_its_baselines_are_distorted_alike(strength: float) -> None:
    """The darkest place across a distorted baseline is where the distorted image has it."""
    x = np.full((120, 160, 1), 0.9, np.float32)
    x[30:91:30, 30:131] = 0
    lines, drops = [line(30, y + 0.5, 130) for y in (30, 60, 90)], [0.0]
    for seed in range(16):
        page, moved = distort_page(x, lines, np.random.default_rng(seed), strength)
        assert page.shape == x.shape and page.dtype == np.float32 and np.isfinite(page).all()
        for each in moved if strength < 2 else ():
            run = (each[-1] - each[0]) / np.hypot(*(each[-1] - each[0]))
            drops.append(abs(each[-1, 1] - each[0, 1]))
            for point in each[[len(each) // 4, len(each) // 2]]:
                places = point - 0.5 + np.arange(-5, 6)[:, None] * (-run[1], run[0])
                across = ndimage.map_coordinates(page[..., 0], places[:, ::-1].T, order=1, mode="nearest")
                assert abs(int(across.argmin()) - 5) < 1.6
        assert strength or (len(moved) == 3 and np.allclose(page, x, atol=1e-5))
    assert max(drops) > 40 if strength == 1 else max(drops) == 0  # some pages are turned by any angle


def test_widths_slants_and_strokes_of_lines_differ_by_seed_and_drawn_line(tmp_path: Path) -> None:
    for shape in ((1, 1, 1), (2, 3, 3), (24, 90, 3)):
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_allclose(distort_line(x, np.random.default_rng(3), 0.0), x, atol=1e-5)
        y = distort_line(x, np.random.default_rng(0), 1.0)
        assert y.dtype == np.float32 and (y.shape[0], y.shape[2]) == (shape[0], shape[2])
    stroke = np.full((24, 90, 1), 0.9, dtype=np.float32)
    stroke[4:-4, 44:47] = 0.2
    images = [distort_line(stroke, np.random.default_rng(seed), 1.0)[..., 0] for seed in range(40)]
    ink = [(image < 0.6) & (image < np.median(image) - 0.1) for image in images]
    ends = [[np.flatnonzero(i[row]).mean() for row in (6, -7)] for i in ink if i[6].any() and i[-7].any()]
    slants, areas = [top - bottom for top, bottom in ends], [i.sum() for i in ink]
    assert min(slants) < -1 < 1 < max(slants) and len({image.shape[1] for image in images}) > 5
    assert max(areas) > 1.5 * np.median(areas)
