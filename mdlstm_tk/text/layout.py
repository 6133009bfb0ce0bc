"""The lines of a page that a model of kind `baselines` finds: their outlines, order and regions.

>>> lines = find_lines(Session("baselines.onnx"), decode_image(data, "0001.jpg"))
>>> lines[0].baseline, lines[0].polygon

The page is resized before the network sees it, so that what is needed beyond its pixels does not grow with
their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.text_order import Direction
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime.inputs import preprocessing_for
from mdlstm_tk.text.geometry import downwards, lengths, points_at, simplified, spacing_of, typical_reach
from mdlstm_tk.text.line_finding import find_baselines
from mdlstm_tk.text.pages import REACH, Page, PageLine, new_page

STEP = 2.0  # pixels of x between the points of an outline that are searched
MAX_COLUMNS = 1024
CORE = 0.35, 0.05  # line spacings above and below a baseline that its outline always holds
NEAR = 0.1  # cost of a boundary that is a line spacing nearer than its extent; ink costs up to 1
BEYOND = 10.0  # cost of a boundary beyond another baseline
THICK = 0.3  # line spacings, of a baseline that others do not cross
SIDE = 0.15  # line spacings that an outline is longer than its baseline at each end
TOGETHER = 8  # points of a boundary that become one, the outermost
PRECISION = 0.5  # pixels of x by which a baseline may change when it gets fewer points
SHARED = 0.1  # of the shorter line, that two lines of a column have in common at least
MIN_SIDE, MAX_ASPECT = 16, 20  # of a page in pixels, and by its shorter side


def find_lines(session: Any, pixels: Array) -> tuple[PageLine, ...]:
    """Find the lines of a page.

    Args:
        session: a model of kind "baselines", a `Session` or `TiledSession`.
        pixels: (H, W) or (H, W, 3), the page as `decode_image` returns it.

    Returns:
        The lines in the order of reading, without texts, in pixels of the page; `cut_line` cuts them out.

    Raises:
        InputError: the model is of another kind, or the image is no page.
        MissingExtraError: lxml, Pillow or SciPy is not installed.
        MDLSTMError: as for a call of the session.
    """
    return find_page(session, pixels, Path("page")).lines


def find_page(session: Any, pixels: Array, image: Path, direction: Direction | None = None) -> Page:
    """The page of an image file, with its lines by regions, in the order of texts of a direction; see
    `find_lines`."""
    check_finder(metadata := session.metadata)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise InputError(f"an image of {width}x{height} pixels is no page of text")
    x = preprocessing_for(metadata, "pixels")(pixels)
    y: Any = session(x)
    y = y if isinstance(y, np.ndarray) else y[metadata.output_names[0]]
    found = find_baselines(y, metadata.window or ())
    spacing = spacing_of(found, len(x))
    above, below = (spacing * float(metadata.more.get(side, share)) for side, share in REACH.items())
    around = outlines(x[..., 0], found, spacing, (above, below))
    scale = np.array([width / x.shape[1], height / x.shape[0]])
    pairs = zip(found, around, strict=True)
    shapes = [(_whole(a, scale, (width, height)), _whole(b, scale, (width, height))) for a, b in pairs]
    reach = typical_reach(shapes)  # as for a page that is read from its file, so that both are cut alike
    numbers, regions = count(1), list[list[PageLine]]()
    for region in reading_order(found, direction):
        kept = [
            shapes[k] for k in region if len(shapes[k][0]) > 1 and len(np.unique(shapes[k][1], axis=0)) > 2
        ]
        regions.append([PageLine(f"l{next(numbers)}", "", *shape, reach) for shape in kept])
    return new_page(image, width, height, [*filter(None, regions)])


def check_finder(metadata: Metadata) -> None:
    """Check that a model finds lines.

    Raises:
        InputError: it does not.
    """
    if metadata.kind != "baselines":
        raise InputError(f"a model of kind baselines finds lines, but this one is of kind {metadata.kind}")


def _whole(line: Array, scale: Array, extents: tuple[int, int]) -> Array:
    """A chain in pixels of x as a file holds it: whole pixels on the page, few, and none twice in a row."""
    whole = np.clip(simplified(line * scale, PRECISION * scale[1]).round(), 0, extents)
    return np.asarray(whole[np.append(True, (np.diff(whole, axis=0) != 0).any(1))])


def outlines(x: Array, lines: Sequence[Array], spacing: float, reach: tuple[float, float]) -> list[Array]:
    """The outlines (K, 2) of lines: above and below each baseline the path that crosses as little ink as
    possible, within the reach of a typical line, and no neighbouring baseline.

    Args:
        x: (H, W), grey; ink is darker than paper, or brighter.
        lines: baselines (K, 2) in pixels of x.
        spacing: of the lines.
        reach: pixels that a typical line reaches above and below its baseline.
    """
    ndimage = require("scipy.ndimage", "image")
    paper = np.kron(ndimage.median_filter(x[::4, ::4], 9), np.ones((4, 4), x.dtype))
    ink = np.abs(x - paper[: x.shape[0], : x.shape[1]]) / max(float(np.ptp(x)), 1e-6)
    numbers: Any = require("PIL.Image", "image").new("I", ink.shape[::-1])  # the number of each baseline
    draw = require("PIL.ImageDraw", "image").Draw(numbers)
    for number, line in enumerate(lines, 1):
        draw.line([tuple(point) for point in line.tolist()], number, max(round(THICK * spacing), 1))
    drawn, offsets = np.asarray(numbers), np.arange(-np.ceil(reach[0]), np.ceil(reach[1]) + 1)
    found = []
    for number, line in enumerate(lines, 1):
        length, side = lengths(line)[-1], SIDE * spacing
        points = points_at(
            line, np.linspace(-side, length + side, int(np.clip(length / STEP, 4, MAX_COLUMNS)))
        )
        down = downwards(points)
        places = points[:, None] + offsets[:, None] * down[:, None]  # (P, R, 2)
        where = np.moveaxis(places[..., ::-1], -1, 0) - 0.5
        cost = ndimage.map_coordinates(ink, where, order=1, mode="nearest")
        blocked = ndimage.map_coordinates((drawn > 0) & (drawn != number), where, order=0)
        parts = np.array_split(np.arange(len(points)), max(-(-len(points) // TOGETHER), 2))
        kept = np.linspace(0, len(points) - 1, len(parts)).round().astype(int)  # the ends among them
        edges = []
        for sign, limit, core in zip((-1, 1), reach, CORE, strict=True):
            rows = np.flatnonzero(offsets * sign >= min(core * spacing, limit))[::sign]  # outwards
            depth = np.abs(offsets[rows])
            of_side = cost[:, rows] + NEAR / spacing * (limit - depth).clip(0)
            of_side += BEYOND * np.maximum.accumulate(blocked[:, rows], axis=1)
            edge = depth[_cheapest_path(of_side)]
            farthest = sign * np.array([edge[part].max() for part in parts])
            edges.append(points[kept] + farthest[:, None] * down[kept])
        found.append(np.clip(np.concatenate([edges[0], edges[1][::-1]]), 0, ink.shape[::-1]))
    return found


def _cheapest_path(cost: Array) -> Array:
    """The row in each column of the cheapest path along cost (P, R), whose rows change by one at most."""
    total, steps = cost[0], np.zeros(cost.shape, np.int8)
    for p in range(1, len(cost)):
        around = np.stack([np.append(np.inf, total[:-1]), total, np.append(total[1:], np.inf)])
        steps[p] = around.argmin(0) - 1
        total = cost[p] + around.min(0)
    path = [int(total.argmin())]
    for p in range(len(cost) - 1, 0, -1):
        path.append(path[-1] + int(steps[p, path[-1]]))
    return np.array(path[::-1])


def reading_order(lines: Sequence[Array], direction: Direction | None = None) -> list[list[int]]:
    """The order of baselines, by regions of lines that stand below each other: columns, and notes beside
    them.

    It is that of Breuel (2003, "High performance document layout analysis"), as in kraken: a line comes
    before one below it that shares some of its width; and before one to its right, unless a line between
    them shares some of the width of both, such as a heading.

    Args:
        lines: baselines (K, 2).
        direction: of the texts; "rtl": columns are read from the right.

    Returns:
        The indices of the lines of each region.
    """
    if not lines:
        return []
    if direction == "rtl":  # seen in a mirror, where lines run rightwards again
        lines = [line[::-1] * (-1, 1) for line in lines]
    runs = np.stack([line[-1] - line[0] for line in lines])
    main = np.arctan2(*runs.sum(0)[::-1])  # so that no angle that counts is near ±180°
    slope = main + np.median((np.arctan2(*runs.T[::-1]) - main + np.pi) % (2 * np.pi) - np.pi)
    level = np.array([[np.cos(slope), np.sin(slope)], [-np.sin(slope), np.cos(slope)]])
    turned = [line @ level.T for line in lines]
    by_height = np.argsort([np.median(line[:, 1]) for line in turned], kind="stable")
    left, right = (np.array([f(turned[k][:, 0]) for k in by_height]) for f in (np.min, np.max))
    common = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    shared = common > SHARED * np.minimum((right - left)[:, None], right - left)
    over = np.triu(shared, 1)  # (L, L), the first one is above the second
    between = over.astype(np.float32) @ over.astype(np.float32) > 0  # there is a line between the two
    middle = (left + right) / 2
    before = over | (~shared & (middle[:, None] < middle) & ~(between | between.T))
    remaining, order = before.sum(0).astype(float), list[int]()
    for _ in lines:  # where there is a circle, the line with fewest others before it comes next
        order.append(k := int(remaining.argmin()))  # of equal ones the first, which is the highest
        remaining = remaining - before[k]
        remaining[k] = np.inf
    regions = [order[:1]]
    for last, k in pairwise(order):
        if shared[last, k] and last < k:
            regions[-1].append(k)
        else:
            regions.append([k])
    return [by_height[region].tolist() for region in regions]
