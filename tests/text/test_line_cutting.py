"""Lines are cut straight, by their outlines, wherever and however they run on the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.pages import WIDTH
from PIL import Image, ImageDraw

from mdlstm_tk.errors import InputError
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.pages import PageLine

PAPER, INK, OTHER = 200, 40, 120
UPRIGHTS = (20, 60, 75, 140)  # columns of the marks in the line, which tell its order
LENGTH, ABOVE, BELOW = 160, 24, 8


def line(baseline: Any = None, polygon: Any = None, reach: Any = None) -> PageLine:
    arrays = (None if points is None else np.array(points, float) for points in (baseline, polygon))
    return PageLine("l", "", *arrays, reach)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pixels_of_every_type_are_cut_alike(dtype: type, channels: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, *channels))
    bent = line([[5, 30], [40, 34], [75, 30]], [[5, 12], [75, 12], [75, 40], [5, 40]])
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    expected = cut_line(grey.astype(np.uint8), bent).astype(float)
    cut = cut_line(pixels.astype(dtype), bent)
    assert cut.dtype == dtype and cut.shape[2:] == tuple(c for c in channels if c > 1)
    np.testing.assert_allclose(cut if cut.ndim == 2 else cut[..., 0], expected, atol=1)


@pytest.mark.parametrize("pixels", [np.zeros((9, 9), bool), np.zeros((9, 9, 2)), np.zeros(9)])
def test_what_is_no_image_is_not_cut(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="decode_image"):
        cut_line(pixels, line([[1, 5], [8, 5]], [[1, 1], [8, 1], [8, 8], [1, 8]]))


def draw(curve: Any, size: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw uprights on a curve of distances along a line; returns pixels, baseline and outline."""
    image = Image.new("L", (size, size), PAPER)
    pen = ImageDraw.Draw(image)

    def at(distance: float, height: float) -> tuple[float, float]:
        ahead, behind = np.array(curve(distance + 0.5)), np.array(curve(distance - 0.5))
        tangent = (ahead - behind) / np.hypot(*(ahead - behind))
        return tuple(np.array(curve(distance)) + height * np.array([tangent[1], -tangent[0]]))

    for column in UPRIGHTS:
        pen.line([at(column, 0), at(column, 18)], INK, 4)
    ends = np.linspace(0, LENGTH, 9)
    outline = [at(s, ABOVE) for s in ends] + [at(s, -BELOW) for s in ends[::-1]]
    return np.array(image), np.array([curve(s) for s in ends]), np.array(outline)


def straight(degrees: float, start: tuple[float, float] = (150, 150)) -> Any:
    direction = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    origin = np.array(start) - direction * LENGTH / 2
    return lambda s: origin + s * direction


def arc(radius: float) -> Any:
    angle = LENGTH / radius / 2
    return lambda s: (
        150 + radius * np.sin(s / radius - angle),
        150 + radius * (1 - np.cos(s / radius - angle)),
    )


CURVES = {
    "level": straight(0),
    "rising": straight(-30),
    "steep": straight(70),
    "downwards": straight(90),
    "upwards": straight(-90),
    "upside down": straight(180),
    "bent": arc(200),
    "bent down": arc(-200),
}


def marks(cut: np.ndarray) -> list[float]:
    """The columns of the uprights."""
    dark = (cut[4:-BELOW] < (PAPER + INK) / 2).sum(axis=0) > 6
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dark.astype(int), [0]])))
    return [(a + b) / 2 for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("case", CURVES)
def test_lines_are_unrolled_along_their_baselines(case: str) -> None:
    pixels, baseline, outline = draw(CURVES[case])
    for points in (baseline, baseline[[0, -1]] if "bent" not in case else baseline):
        cut = cut_line(pixels, line(points, outline))
        assert cut.dtype == np.uint8
        np.testing.assert_allclose(cut.shape, (ABOVE + BELOW, LENGTH), atol=6)
        np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=4)
        rows = np.flatnonzero((cut < 100).any(axis=1))  # uprights end at the baseline
        np.testing.assert_allclose(rows[-1], ABOVE, atol=3)


def test_a_shaky_baseline_is_smoothed() -> None:
    pixels, _, outline = draw(straight(0))
    columns = np.arange(70, 231, 4)
    shaky = np.stack([columns, 150 + np.where(np.arange(len(columns)) % 2, 1.5, -1.5)], axis=1)
    cut = cut_line(pixels, line(shaky, outline))
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=10)
    assert abs(cut.shape[0] - ABOVE - BELOW) < 8


@pytest.mark.parametrize("case", ["level", "rising", "bent", "upside down", "downwards", "steep"])
def test_without_outline_a_line_is_as_high_as_a_typical_one(case: str) -> None:
    pixels, baseline, _ = draw(CURVES[case])
    cut = cut_line(pixels, line(baseline, None, (24.0, 8.0)))
    assert abs(cut.shape[0] - 36) <= 2 and len(marks(cut)) == len(UPRIGHTS)


@pytest.mark.parametrize("degrees", [0, 20, 85])
def test_without_baseline_an_outline_has_its_own_axis(degrees: float) -> None:
    pixels, _, outline = draw(straight(degrees))
    cut = cut_line(pixels, line(None, outline))
    np.testing.assert_allclose(cut.shape, (ABOVE + BELOW, LENGTH), atol=8)
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=6)


def test_a_short_outline_without_baseline_stays_level() -> None:
    pixels, _, _ = draw(straight(0))
    cut = cut_line(pixels, line(None, [[60, 120], [95, 120], [100, 190], [65, 190]]))
    assert cut.shape == (70 + 2 * 4, 40)  # with a margin


def test_a_box_alone_is_cut_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    cut = cut_line(pixels, line(polygon=box(5, 10, 70, 30)))
    np.testing.assert_array_equal(cut, pixels[10:30, 5:60])
    wide = cut_line(pixels, line(polygon=box(0, 10, 60, 30)))  # contiguous rows of the page
    assert not np.shares_memory(wide, pixels) and wide.base is None
    level = cut_line(pixels, line([[5, 25], [55, 25]], [[5, 10], [55, 10], [55, 30], [5, 30]]))
    inner = level[2:-2, 1:-1].astype(int)  # a level line is not resampled, but Pillow rounds down
    np.testing.assert_allclose(inner, pixels[11:29, 6:54].astype(int), atol=1)


@pytest.mark.parametrize(
    ("dtype", "channels"), [(np.uint8, ()), (np.uint8, (3,)), (np.uint16, ()), (np.float32, ())]
)
def test_paper_outside_the_outline_has_the_colour_of_the_paper_inside(dtype: Any, channels: Any) -> None:
    pixels = np.full((60, 200, *channels), OTHER).astype(dtype)
    pixels[20:40] = np.linspace(150, 210, 200).reshape(1, -1, *[1] * len(channels)).astype(dtype)
    pixels[28:32, ::20] = INK
    shape = [[0, 20], [100, 20], [100, 28], [200, 28], [200, 40], [0, 40]]
    cut = cut_line(pixels, line([[0, 36], [200, 36]], shape))
    assert (cut.dtype, cut.shape) == (dtype, (1 + 20 + 1, 200, *channels))
    for row in cut[1:7, 104:]:
        np.testing.assert_allclose(row.astype(float), pixels[35, 104:].astype(float), atol=14)


def test_ink_that_the_outline_cuts_off_is_in_the_margin() -> None:
    pixels = np.full((80, 200), PAPER, np.uint8)
    pixels[19:40, 50] = INK  # begins a pixel above the outline
    cut = cut_line(pixels, line([[0, 50], [200, 50]], [[0, 20], [200, 20], [200, 60], [0, 60]]))
    assert cut.shape == (2 + 40 + 2, 200)
    assert cut[1, 50] < OTHER


def test_lines_of_a_page_have_one_scale_and_their_baselines_in_one_row() -> None:
    pixels, baseline, outline = draw(straight(20))
    typical = (28.0, 9.0)
    cut = cut_line(pixels, line(baseline, outline, typical))
    assert cut.shape[0] == 2 + 28 + 9 + 2
    np.testing.assert_allclose(np.flatnonzero((cut < 100).any(axis=1))[-1], 2 + 28, atol=3)
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=4)
    other_size = cut_line(pixels, line(baseline, outline, (60.0, 20.0)))
    np.testing.assert_array_equal(other_size, cut_line(pixels, line(baseline, outline)))


def test_lines_at_the_border_of_the_page() -> None:
    pixels, _, _ = draw(straight(0, (80, 16)), 170)
    shape = [[-5, -9], [300, -9], [300, 24], [-5, 24]]
    cut = cut_line(pixels, line([[-5, 16], [300, 16]], shape))
    assert cut.shape == (1 + 24 + 1, 170)
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=3)


NOWHERE = {
    "no place": line(),
    "one pixel": line([[21, 20], [21, 21]], [[20, 20], [21, 20], [21, 21], [20, 21]]),
    "beyond the page": line(polygon=[[400, 10], [500, 10], [500, 40]]),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_a_line_without_area_is_one_line_of_message(case: str) -> None:
    with pytest.raises(InputError, match="nothing of the line"):
        cut_line(np.zeros((WIDTH, WIDTH), np.uint8), NOWHERE[case])


def test_a_scribble_takes_no_more_room_than_its_outline() -> None:
    pixels, _, outline = draw(straight(0))
    scribble = np.random.default_rng(0).integers(60, 240, (2000, 2))
    cut = cut_line(pixels, line(scribble, outline))
    np.testing.assert_allclose(cut.shape, (ABOVE + BELOW, LENGTH), atol=8)


def test_a_baseline_away_from_its_outline_does_not_decide_where_the_line_is_cut() -> None:
    pixels, baseline, outline = draw(straight(0))
    below = line(baseline + np.array([0, 100]), outline)
    cut = cut_line(pixels, below._replace(reach=(float(ABOVE), float(BELOW))))
    assert cut.shape == cut_line(pixels, below).shape
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=3)
    beyond = line([[300, 300], [300, 300]], outline)
    np.testing.assert_array_equal(cut_line(pixels, beyond), cut_line(pixels, line(polygon=outline)))
