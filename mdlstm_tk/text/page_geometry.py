"""Positions of text lines in ALTO and PAGE XML: outlines, baselines and boxes, in pixels of the image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdlstm_tk._util.text_order import is_right_to_left
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import SIDEWAYS, read_extents
from mdlstm_tk.text.markup import Element

MAX_POINTS = 4096  # of an outline; the others of a longer one are left out evenly
MAX_NUMBER = 1e6  # of a coordinate or extent; larger ones count as this
MAX_STRETCH = 0.03  # by which the shape of the image may differ from that in the file
ROUNDED = 2  # pixels by which a box around a baseline may be higher than it
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
LETTER = re.compile(r"[^\W\d_]")
BOX = ("HPOS", "VPOS", "WIDTH", "HEIGHT")


@dataclass(frozen=True)
class Frame:
    """How coordinates of a file become pixels of the upright image.

    Attributes:
        extents: width and height of the image.
        scale: of x and y.
        orientation: EXIF orientation of the image if the file counts pixels as stored; 1 if upright.
    """

    extents: Array
    scale: Array
    orientation: int

    @classmethod
    def of(cls, path: Path, image: Path, size: tuple[float, float]) -> Frame:
        """The frame of a file that gives `size`, width and height, to the image; 0 if it gives none."""
        height, width, orientation = read_extents(image)
        stored = np.array([width, height], float)
        upright = stored[::-1] if orientation in SIDEWAYS else stored
        if min(size) < 1:
            return cls(upright, np.ones(2), 1)
        for extents, turn in ((upright, 1), (stored, orientation)):
            stretch = size[0] * float(extents[1]) / (size[1] * float(extents[0]))
            if abs(stretch - 1) <= min(MAX_STRETCH + 2 / min(*size, *extents.tolist()), 2 * MAX_STRETCH):
                return cls(upright, extents / size, turn)
        raise InputError(
            f"{path} is for an image of {size[0]:g}x{size[1]:g} pixels, but {image.name} has "
            f"{upright[0]:g}x{upright[1]:g}, which is another shape; put the right image beside it"
        )

    def __call__(self, points: Array) -> Array:
        """Points (K, 2) in pixels of the upright image, inside it."""
        points = points * self.scale
        if self.orientation in SIDEWAYS:
            points = points[:, ::-1]
            flips = self.orientation in (6, 7), self.orientation in (7, 8)
            points = np.where(flips, self.extents - points, points)
        return self.clipped(points)

    def clipped(self, points: Array) -> Array:
        """Points (K, 2) of the upright image that lie inside it."""
        return np.clip(points, 0, self.extents)


def read_number(text: str | None) -> float | None:
    """The first number in a text, at most MAX_NUMBER and at least −MAX_NUMBER; None if it has none."""
    match = NUMBER.search(text or "")
    return min(max(float(match[0]), -MAX_NUMBER), MAX_NUMBER) if match else None


def _points(text: str | None, least: int) -> Array | None:
    """The points (K, 2) of "x,y x,y" or "x y x y"; None if there are fewer than `least` different ones, or
    letters among them, which stand for a number."""
    if LETTER.search(NUMBER.sub("", text or "")):
        return None
    numbers = [float(number) for number in NUMBER.findall(text or "")]
    points = np.clip(np.array(numbers[: len(numbers) // 2 * 2]).reshape(-1, 2), -MAX_NUMBER, MAX_NUMBER)
    points = points[:: len(points) // MAX_POINTS + 1]
    return points if len(np.unique(points, axis=0)) >= least else None


def read_polygon(element: Element) -> Array | None:
    """The outline of a line (K, 2)."""
    alto, page = element.first("Shape", "Polygon"), element.first("Coords")
    outline = alto.attributes.get("POINTS") if alto else page.attributes.get("points") if page else None
    return _points(outline, 3)


def read_corners(element: Element) -> Array | None:
    """Two corners of the box of an ALTO line."""
    numbers = [read_number(element.attributes.get(key)) for key in BOX]
    if None in numbers:
        return None
    left, top, width, height = (number or 0.0 for number in numbers)
    return np.array([[left, top], [left + width, top + height]])


def read_baseline(element: Element) -> Array | None:
    """The baseline of a line (K, 2), as the file has it."""
    page = element.first("Baseline")
    text = page.attributes.get("points") if page else element.attributes.get("BASELINE")
    box = read_corners(element)
    if text and box is not None and len(NUMBER.findall(text)) == 1:  # ALTO before 4: the y of a level line
        text = f"{box[0, 0]} {text} {box[1, 0]} {text}"
    return _points(text, 2)


class Place(NamedTuple):
    """Where a file has a line, in pixels of the image; None for what it does not say.

    Attributes:
        baseline: (K, 2), K > 1, as it was drawn.
        polygon: (K, 2), K > 2, its outline.
        corners: (K, 2), those of the outline, else two of its box.
    """

    baseline: Array | None
    polygon: Array | None
    corners: Array | None

    @classmethod
    def read(cls, element: Element, frame: Frame) -> Place:
        """The place of a line. A box that is no higher than the baseline is that of the baseline, as
        eScriptorium writes it, and says nothing about the line."""
        polygon, baseline = read_polygon(element), read_baseline(element)
        corners = read_corners(element) if polygon is None else polygon
        if polygon is None and corners is not None and baseline is not None:
            across = int(is_level(baseline))
            if np.ptp(corners[:, across]) <= np.ptp(baseline[:, across]) + ROUNDED:
                corners = None
        baseline, polygon, corners = (
            None if points is None else frame(points) for points in (baseline, polygon, corners)
        )
        if baseline is not None and len(np.unique(baseline, axis=0)) < 2:  # it lies beyond the page
            baseline = None
        return cls(baseline, polygon, corners)


def is_level(baseline: Array) -> bool:
    """True if a baseline (K, 2) runs along x rather than along y."""
    run = np.abs(baseline[-1] - baseline[0])
    return bool(run[0] >= run[1])


def baselines_from_left(places: Sequence[Place], text: str) -> list[Array | None]:
    """The baselines (K, 2) of a page, each from the left end of a line that stands upright.

    Right to left is only the order in which a baseline was drawn where the page has right-to-left texts, or
    no texts yet and most lines run so. It is, too, where letters stand above the baseline on the page; else
    the line is upside down.

    Args:
        places: of its lines.
        text: that of all of them.
    """
    level = [line for line, *_ in places if line is not None and is_level(line)]
    if any(map(str.isalpha, text)):
        is_usual = is_right_to_left(text)
    else:  # one line tells no order
        is_usual = sum(line[-1, 0] < line[0, 0] for line in level) > max(len(level) / 2, 1)
    ordered = []
    for line, _, corners in places:
        if line is not None and is_level(line) and line[-1, 0] < line[0, 0]:
            is_above = corners is None or corners[:, 1].min() + corners[:, 1].max() < 2 * line[:, 1].mean()
            line = line[::-1] if is_usual or is_above else line
        ordered.append(line)
    return ordered


def box_around(line: Array, above: float, below: float) -> Array:
    """Two corners of a box around a baseline (K, 2), for a line of which nothing else is known.

    Args:
        line: its baseline. Where it runs downwards, letters stand to the right of it.
        above, below: pixels from it, as the letters stand.
    """
    run = line[-1] - line[0]
    before, after = (above, below) if (run[0] >= 0 if is_level(line) else run[1] < 0) else (below, above)
    return np.array([line.min(axis=0) - before, line.max(axis=0) + after])


def typical_reach(lines: Iterable[tuple[Array | None, Array | None]]) -> tuple[float, float] | None:
    """The medians of the pixels that outlines reach above and below their baselines."""
    reaches = []
    for baseline, polygon in lines:
        if baseline is None or polygon is None:
            continue
        run = baseline[-1] - baseline[0]
        length = np.hypot(*run)
        if length > 0:
            level = np.array([run, (-run[1], run[0])]).T / length  # turns the line level
            (x, y), (columns, rows) = (baseline @ level).T, (polygon @ level).T
            order = np.argsort(x)
            distances = rows - np.interp(columns, x[order], y[order])
            if np.ptp(distances) > 0:
                reaches.append((-distances.min(), distances.max()))
    return tuple(np.median(reaches, axis=0).tolist()) if reaches else None
