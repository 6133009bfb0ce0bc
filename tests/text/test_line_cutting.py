"""Lines are cut straight, by their outlines, wherever and however they run on the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mdlstm_tk.errors import InputError
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.pages import PageLine

PAPER, INK, OTHER, SIZE = 200, 40, 120, 300
UPRIGHTS = (20, 60, 75, 140)  # columns of the marks in the line, which tell its order
LENGTH, ABOVE, BELOW = 160, 24, 8


def line(baseline: Any = None, polygon: Any = None, reach: Any = None) -> PageLine:
    arrays = (None if points is None else np.array(points, float) for points in (baseline, polygon))
    return PageLine("l", "", *arrays, reach)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def draw(curve: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw uprights on a curve of distances along a line; returns pixels, baseline and outline."""
    image = Image.new("L", (SIZE, SIZE), PAPER)
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
    return lambda s: np.array(start) + (s - LENGTH / 2) * direction


def arc(radius: float) -> Any:
    angle = LENGTH / radius / 2
    return lambda s: (
        150 + radius * np.sin(s / radius - angle),
        150 + radius * (1 - np.cos(s / radius - angle)),
    )


CURVES = {f"{degrees}°": straight(degrees) for degrees in (0, 20, -30, 70, 85, 90, -90, 180)}
CURVES |= {"bent": arc(200), "bent down": arc(-200)}


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


@pytest.mark.parametrize("case", CURVES)
def test_lines_are_unrolled_along_what_is_known_of_them(case: str) -> None:
    """Baseline and outline, drawn finely or by an unsteady hand, or one of the two alone; lines of a page
    have one scale, unless they are of another size."""
    pixels, baseline, outline = draw(CURVES[case])
    shaky = np.repeat(baseline, 5, axis=0) + np.random.default_rng(0).uniform(-1.5, 1.5, (45, 2))
    ends = baseline if "bent" in case else baseline[[0, -1]]
    for points in (baseline, ends):
        check_cut(cut := cut_line(pixels, line(points, outline)))
        assert cut.dtype == np.uint8
    assert len(marks(cut_line(pixels, line(shaky, outline, (24.0, 8.0))))) == len(UPRIGHTS)
    check_cut(cut_line(pixels, line(baseline, outline, (28.0, 9.0))), 28, 9)
    assert abs(cut_line(pixels, line(baseline, outline, (28.0, 9.0))).shape[0] - 41) <= 1
    other_size = cut_line(pixels, line(baseline, outline, (60.0, 20.0)))
    np.testing.assert_allclose(other_size.astype(int), cut_line(pixels, line(baseline, outline)), atol=1)
    check_cut(cut_line(pixels, line(baseline, None, (24.0, 8.0))))
    if "°" in case and case not in ("180°", "-90°"):  # an axis has no direction
        cut = cut_line(pixels, line(None, outline))
        np.testing.assert_allclose(cut.shape, (ABOVE + BELOW, LENGTH), atol=8)
        np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pixels_of_every_type_are_cut_alike(dtype: type, channels: tuple[int, ...]) -> None:
    """And what is outside the outline gets the colour of the paper inside."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, *channels))
    bent = line([[5, 30], [40, 34], [75, 30]], [[5, 12], [75, 12], [75, 40], [5, 40]])
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    cut, expected = (
        cut_line(pixels.astype(dtype), bent),
        cut_line(grey.astype(np.uint8), bent).astype(float),
    )
    assert cut.dtype == dtype and cut.shape[2:] == tuple(c for c in channels if c > 1)
    np.testing.assert_allclose(cut if cut.ndim == 2 else cut[..., 0], expected, atol=1)
    pixels = np.full((60, 200, *channels), OTHER).astype(dtype)
    pixels[20:40] = np.linspace(150, 210, 200).reshape(1, -1, *[1] * len(channels)).astype(dtype)
    pixels[28:32, ::20] = INK
    shape = [[0, 20], [100, 20], [100, 28], [200, 28], [200, 40], [0, 40]]
    cut = cut_line(pixels, line([[0, 36], [200, 36]], shape))
    assert cut.shape[:2] == (1 + 20 + 1, 200)
    for row in cut[1:7, 104:]:
        np.testing.assert_allclose(
            row.astype(float).ravel(), pixels[35, 104:].astype(float).ravel(), atol=14
        )


def test_boxes_and_level_lines_are_cut_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    np.testing.assert_array_equal(cut_line(pixels, line(polygon=box(5, 10, 70, 30))), pixels[10:30, 5:60])
    wide = cut_line(pixels, line(polygon=box(0, 10, 60, 30)))  # contiguous rows of the page
    assert not np.shares_memory(wide, pixels) and wide.base is None
    level = cut_line(pixels, line([[5, 25], [55, 25]], box(5, 10, 55, 30)))
    inner = level[2:-2, 1:-1].astype(int)  # a level line is not resampled, but Pillow rounds down
    np.testing.assert_allclose(inner, pixels[11:29, 6:54].astype(int), atol=1)
    short = cut_line(pixels, line(None, [[10, 5], [20, 5], [22, 25], [12, 25]]))  # not turned
    assert short.shape == (20 + 2, 12, 3)
    ink = np.full((80, 200), PAPER, np.uint8)
    ink[19:40, 50] = INK  # begins a pixel above the outline, in the margin
    cut = cut_line(ink, line([[0, 50], [200, 50]], box(0, 20, 200, 60)))
    assert cut.shape == (2 + 40 + 2, 200) and cut[1, 50] < OTHER


NOWHERE = {
    "nothing": line(),
    "a baseline without reach": line([[10, 10], [90, 10]]),
    "outside": line([[310, 10], [390, 10]], box(310, 0, 390, 20)),
    "no area": line(None, [[10, 10], [10, 10], [10, 10]]),
    "on the edge": line(None, box(300, 10, 330, 20)),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_a_line_that_lies_nowhere_is_refused(case: str) -> None:
    with pytest.raises(InputError, match="nothing of the line"):
        cut_line(np.zeros((SIZE, SIZE), np.uint8), NOWHERE[case])


@pytest.mark.parametrize("pixels", [np.zeros((9, 9), bool), np.zeros((9, 9, 2)), np.zeros(9)])
def test_what_is_no_image_is_not_cut(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="decode_image"):
        cut_line(pixels, line([[1, 5], [8, 5]], box(1, 1, 8, 8)))


def test_lines_at_the_border_and_bad_baselines() -> None:
    """A scribble, one away from the outline and a point do not decide where the line is cut."""
    pixels, baseline, outline = draw(straight(0))
    scribble = np.random.default_rng(0).integers(60, 240, (2000, 2))
    below = line(baseline + np.array([0, 100]), outline)
    check_cut(cut := cut_line(pixels, line(scribble, outline, (24.0, 8.0))), margin=1)
    np.testing.assert_array_equal(cut, cut_line(pixels, line(polygon=outline)))
    np.testing.assert_array_equal(cut, cut_line(pixels, line([[300, 300], [300, 300]], outline)))
    cut = cut_line(pixels, below._replace(reach=(float(ABOVE), float(BELOW))))
    assert cut.shape == cut_line(pixels, below).shape
    np.testing.assert_allclose(marks(cut), UPRIGHTS, atol=3)
    pixels, baseline, outline = draw(straight(0, (80, 16)))  # from the left edge, below the upper one
    cut = cut_line(pixels, line(baseline, outline, (24.0, 8.0)))
    assert cut.shape[0] == 36 and len(marks(cut[8:])) == len(UPRIGHTS)
