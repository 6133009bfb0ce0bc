"""Cut a line of text out of a page, straight: the same for training and for inference.

Columns of the cut are places on the smoothed baseline, at its own scale, and rows are distances from it, as
far as lines of the page typically reach. Pixels outside the outline, such as parts of other lines, are
painted over in the colour of the paper inside. kraken's `extract_polygons` works alike, but paints black.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import Array
from mdlstm_tk.text.geometry import downwards, lengths, points_at, resampled
from mdlstm_tk.text.pages import PageLine

MAX_POINTS = 1024  # that an outline or a baseline is divided into
STEP = 2.0  # pixels between the points of an outline
MAX_WINDING = 3  # length of a baseline by the diagonal around it; a scribble has more
ELONGATED = 3  # an outline without baseline is turned from this ratio of length and height on
PAPER = 75  # percentile of the pixels inside: the median of the bright half
MARGIN = 0.05  # of the height of a line, around its outline: outlines cut ascenders
SAME_SIZE = 1.5  # ratio of heights up to which a line is as high as a typical one of its page
ROUNDING = 1e-6  # so that a level line is not shifted by a pixel
NOWHERE = "nothing of the line lies on the page"


def cut_line(pixels: Array, line: PageLine) -> Array:
    """Cut a line out of its page.

    Args:
        pixels: (H, W), (H, W, 1) or (H, W, 3) of uint8, uint16 or float, the page as `decode_image` returns
            it.
        line: of that page. Without a baseline, an elongated outline is straightened along its own axis, and
            a box is cut as it is; without an outline, the line is as high as a typical one.

    Returns:
        (h, w) or (h, w, 3) in the dtype of the pixels.

    Raises:
        InputError: nothing of the line lies on the page.
    """
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    extents, outline, baseline = np.array(pixels.shape[1::-1]), line.polygon, line.baseline
    if baseline is not None:
        length = lengths(baseline)[-1]
        if not 0 < length <= MAX_WINDING * np.hypot(*np.ptp(baseline, axis=0)):
            baseline = None
    if outline is None:
        if baseline is None or line.reach is None:
            raise InputError(NOWHERE)
        down, (above, below) = downwards(baseline), line.reach
        outline = np.concatenate([baseline - above * down, (baseline + below * down)[::-1]])
    outline = np.clip(outline, 0, extents)
    low, high = np.floor(outline.min(0)).astype(int), np.ceil(outline.max(0)).astype(int)
    if (high <= low).any():
        raise InputError(NOWHERE)
    if baseline is None and np.isin(outline, (outline.min(0), outline.max(0))).all():
        return pixels[low[1] : high[1], low[0] : high[0]].copy()  # which does not keep the page in memory
    outline = np.concatenate([outline, outline[:1]])
    outline = resampled(outline, int(np.clip(np.ceil(lengths(outline)[-1] / STEP), 1, MAX_POINTS)) + 1)
    reach = None if baseline is None else line.reach
    margin = 0 if reach is None else int(sum(reach))
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, extents)
    region = pixels[low[1] : high[1], low[0] : high[0]]
    return _unrolled(region, outline - low, (_axis(outline) if baseline is None else baseline) - low, reach)


def _axis(outline: Array) -> Array:
    """Two points on the principal axis of an outline, or on a level line if it is not elongated."""
    centre: Array = (outline.min(axis=0) + outline.max(axis=0)) / 2
    _, sizes, axes = np.linalg.svd(outline - centre, full_matrices=False)
    axis = axes[0] if sizes[0] > ELONGATED * sizes[1] else np.array([1.0, 0.0])
    axis = axis * np.sign(axis[0] if abs(axis[0]) >= abs(axis[1]) else axis[1])  # rightwards, or downwards
    along = (outline - centre) @ axis
    return centre + np.outer([along.min(), along.max()], axis)


def _unrolled(region: Array, outline: Array, baseline: Array, reach: tuple[float, float] | None) -> Array:
    """The part of a region inside an outline, unrolled along a baseline, all in pixels of the region."""
    area = abs(np.dot(outline[:-1, 0], outline[1:, 1]) - np.dot(outline[1:, 0], outline[:-1, 1])) / 2
    step = max(area / lengths(baseline)[-1] / 4, 1.0)  # a quarter of the height of the line
    curve = _smoothed(baseline, step)
    places, down = lengths(curve), downwards(curve)

    # Each point of the outline as the place on the curve next to it, and the distance below it.
    nearest = ((outline[:, None] - curve) ** 2).sum(-1).argmin(1)
    offsets, ahead = outline - curve[nearest], down[nearest][:, ::-1] * (1, -1)
    shape = np.stack([places[nearest] + (offsets * ahead).sum(1), (offsets * down[nearest]).sum(1)], 1)
    (start, top), (end, bottom) = shape.min(0), shape.max(0)
    if reach is not None:  # so that the lines of a page have one scale
        is_as_high = 1 / SAME_SIZE < (bottom - top) / sum(reach) < SAME_SIZE
        is_there = -reach[0] < (top + bottom) / 2 < reach[1]  # not with the baseline of another line
        top, bottom = (-reach[0], reach[1]) if is_as_high and is_there else (top, bottom)
    margin = round(MARGIN * (bottom - top))
    start, top = np.floor(np.array([start, top - margin]) + ROUNDING)
    width = max(int(np.ceil(end - ROUNDING) - start), 1)
    height = max(int(np.ceil(bottom + margin - ROUNDING) - top), 1)

    # The cut is made of upright stripes, each of which comes from a quadrangle that stands on the curve.
    edges = np.unique(np.linspace(0, width, max(round(width / max(step, 4)), 1) + 1).astype(int))
    border = margin + 2  # for corners of quadrangles that lie outside of the region
    across = np.stack([np.interp(edges + start, places, axis) for axis in down.T], 1)
    upper = points_at(curve, edges + start) + border + top * across
    lower = upper + height * across
    quads = np.concatenate([upper[:-1], lower[:-1], lower[1:], upper[1:]], axis=1).tolist()
    mesh = [((a, 0, b, height), quad) for (a, b), quad in zip(pairwise(edges.tolist()), quads, strict=True)]
    inside = _filled(shape - (start, top), (width, height), margin)
    if not inside.any():
        raise InputError(NOWHERE)
    region = np.pad(region, [(border, border)] * 2 + [(0, 0)] * (region.ndim - 2), mode="edge")
    cut = _transformed(region, mesh, (width, height))
    return np.where(inside[..., None] if cut.ndim == 3 else inside, cut, _paper(cut, inside))


def _smoothed(baseline: Array, step: float, window: int = 4) -> Array:
    """Points of a baseline `step` apart, each the mean of those up to `window` before and after it, so
    that a hand-drawn one leaves no kinks."""
    count = int(np.clip(np.ceil(lengths(baseline)[-1] / step), 1, MAX_POINTS)) + 1
    reach = min(window, count - 1)
    padded = np.pad(resampled(baseline, count), ((reach, reach), (0, 0)), "reflect", reflect_type="odd")
    kernel = np.full(2 * reach + 1, 1 / (2 * reach + 1))
    return np.stack([np.convolve(axis, kernel, mode="valid") for axis in padded.T], axis=1)


def _filled(outline: Array, extents: tuple[int, int], margin: int) -> Array:
    """(h, w) True inside an outline and a margin around it."""
    mask = require("PIL.Image", "image").new("1", extents)
    draw: Any = require("PIL.ImageDraw", "image").Draw(mask)
    points = [tuple(point) for point in outline.tolist()]
    draw.polygon(points, fill=1, outline=1)
    draw.line(points, fill=1, width=2 * margin + 1)
    return np.asarray(mask)


def _transformed(region: Array, mesh: list[Any], extents: tuple[int, int]) -> Array:
    """The pixels of a mesh of quadrangles. Pillow takes 7 ms for a line, where SciPy takes 20."""
    module: Any = require("PIL.Image", "image")
    # Pillow turns channels together only if they have 8 bits, and other types only as float32.
    floats = region if region.dtype == np.uint8 else region.astype(np.float32)
    layers = [floats] if region.ndim == 2 or floats is region else np.moveaxis(floats, -1, 0)
    how = extents, module.Transform.MESH, mesh, module.Resampling.BILINEAR
    turned = [np.asarray(module.fromarray(layer).transform(*how)) for layer in layers]
    cut = turned[0] if len(turned) == 1 else np.stack(turned, axis=-1)
    return cut.astype(region.dtype, copy=False)


def _paper(cut: Array, inside: Array) -> Array:
    """The colour of the paper in each column of a cut, (1, w) or (1, w, 3), which follows its shades."""
    width, places, colours = inside.shape[1], [], []
    for part in np.array_split(np.arange(width), max(round(width / (2 * len(inside))), 1)):
        if (within := inside[:, part]).any():
            places.append(part.mean())
            colours.append(np.percentile(cut[:, part][within], PAPER, axis=0))
    shades = np.reshape(colours, (len(places), -1)).T
    paper = np.stack([np.interp(np.arange(width), places, shade) for shade in shades], axis=-1)
    return paper.astype(cut.dtype).reshape(1, *cut.shape[1:])
