"""Cut a line of text out of a page, straight: the same for training and for inference.

The line is unrolled along its baseline: columns of the cut are places on the baseline, at its own scale,
and rows are distances from it, as far as lines of the page typically reach. Columns stand upright on the
smoothed baseline, so that the points of a hand-drawn one leave no kinks. Pixels outside the outline, such
as parts of other lines, are painted over in the colour of the paper inside.

kraken's `extract_polygons` works alike, but paints black and does not smooth.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mdlstm_tk._util.checks import check_unmasked, checked
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.io import Array
from mdlstm_tk.text.page_geometry import is_level
from mdlstm_tk.text.pages import PageLine
from mdlstm_tk.text.polylines import lengths, resampled

MAX_SAMPLES = 1024  # points that an outline or a baseline is divided into
MAX_WINDING = 3  # length of a baseline by the diagonal around it; a scribble has more
ELONGATED = 3  # an outline without baseline is turned from this ratio of length and height on
PAPER = 75  # percentile of the pixels inside: the median of the bright half
MARGIN = 0.05  # of the height of a line, around its outline: outlines cut ascenders
SAME_SIZE = 1.5  # ratio of heights up to which a line is as high as a typical one of its page
ROUNDING = 1e-6  # so that a level line is not shifted by a pixel


def as_image(value: Any) -> Array:
    """The pixels of an image that a user gave, as `decode_image` returns them: (H, W) or (H, W, 3).

    Raises:
        InputError: they are no such image.
    """
    check_unmasked("an image", value)
    pixels: Array = np.asanyarray(value)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not fits or not pixels.size or (pixels.dtype.kind != "f" and pixels.dtype not in ("u1", "u2")):
        raise InputError(
            f"an image is {pixels.dtype} {pixels.shape}, expected (H, W) or (H, W, 3), as decode_image"
        )
    return pixels


@checked
def cut_line(pixels: Array, line: PageLine) -> Array:
    """Cut a line out of a page.

    Args:
        pixels: (H, W), (H, W, 1) or (H, W, 3) of uint8, uint16 or float, the page as `decode_image` returns
            it.
        line: of that page.

    Returns:
        (h, w) or (h, w, 3) in the dtype of the pixels. Without baseline an outline much longer than high
        is straightened along its own axis; without outline the box takes its place, or the part of it that
        follows the baseline.

    Raises:
        InputError: nothing of the line lies on the page, or these are no pixels of an image.
        MissingExtraError: Pillow is not installed.
    """
    pixels = as_image(pixels)
    baseline = None if line.baseline is None else np.asarray(line.baseline, float)
    if baseline is not None:
        length = lengths(baseline)[-1]  # 0 if it lies beyond the page
        if not 0 < length <= MAX_WINDING * np.hypot(*np.ptp(baseline, axis=0)):
            baseline = None
    outline = _outline(line.box, baseline) if line.polygon is None else line.polygon
    outline = np.clip(outline, 0.0, pixels.shape[1::-1])
    low, high = np.floor(outline.min(axis=0)).astype(int), np.ceil(outline.max(axis=0)).astype(int)
    no_area = f"line {line.id} has no area on the page"
    if (high <= low).any():
        raise InputError(no_area)
    if line.polygon is None and baseline is None:
        return pixels[low[1] : high[1], low[0] : high[0]].copy()  # which does not keep the page in memory
    margin = 0 if line.reach is None else int(sum(line.reach))
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, pixels.shape[1::-1])
    region = pixels[low[1] : high[1], low[0] : high[0]]
    outline = _resampled(np.concatenate([outline, outline[:1]]) - low)
    if baseline is None:
        cut = _unrolled(region, outline, _axis(outline), None)
    else:
        cut = _unrolled(region, outline, baseline - low, line.reach)
    if cut is None:
        raise InputError(no_area)
    return cut


def _outline(box: tuple[int, int, int, int], baseline: Array | None) -> Array:
    """The outline (M, 2) of a line that has none: its box, of which only the part that follows the baseline
    (K, 2) counts, if there is one: where a line slopes, its neighbours are in the box as well."""
    left, top, right, bottom = box
    if baseline is None:
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    along, across = (0, 1) if is_level(baseline) else (1, 0)
    chain = baseline[:: 1 if baseline[0, along] <= baseline[-1, along] else -1]
    before, after = chain.min(axis=0) - (left, top), (right, bottom) - chain.max(axis=0)
    run = chain[-1] - chain[0]
    run /= max(run[along], 1e-9)
    chain = np.concatenate([[chain[0] - before[along] * run], chain, [chain[-1] + after[along] * run]])
    shift = np.eye(2)[across]
    return np.concatenate([chain - before[across] * shift, (chain + after[across] * shift)[::-1]])


def _axis(outline: Array) -> Array:
    """Two points on the principal axis of an outline, or on a level line if it is not elongated."""
    centre: Array = (outline.min(axis=0) + outline.max(axis=0)) / 2
    _, sizes, axes = np.linalg.svd(outline - centre, full_matrices=False)
    axis = axes[0] if sizes[0] > ELONGATED * sizes[1] else np.array([1.0, 0.0])
    axis = axis * np.sign(axis[0] if abs(axis[0]) >= abs(axis[1]) else axis[1])  # rightwards, or downwards
    along = (outline - centre) @ axis
    return centre + np.outer([along.min(), along.max()], axis)


def _resampled(points: Array, step: float = 2.0) -> Array:
    """Points (M, 2) at equal distances along a chain of points (K, 2), about `step` pixels apart."""
    return resampled(points, int(np.clip(np.ceil(lengths(points)[-1] / step), 1, MAX_SAMPLES)) + 1)


def _unrolled(
    region: Array, outline: Array, baseline: Array, typical: tuple[float, float] | None
) -> Array | None:
    """Turn the pixels around an outline into the cut, and paint over what is outside; None if no pixel is
    inside.

    Args:
        region: pixels of the page.
        outline: (M, 2).
        baseline: (K, 2).
        typical: reach of a typical line above and below its baseline. A line of about this height and place
            is cut there, and not where its outline ends: then all lines of a page have their baseline in
            the same row, and one scale.
    """
    x, y = outline.T
    area = abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
    step = max(area / max(lengths(baseline)[-1], 1.0), 4.0) / 4  # a quarter of the height of the line
    curve = _smoothed(_resampled(baseline, step), 8)
    places = lengths(curve)
    tangents = np.gradient(curve, axis=0)
    tangents /= np.maximum(np.hypot(*tangents.T), 1e-9)[:, None]
    normals = tangents[:, ::-1] * (-1, 1)  # downwards where the line runs rightwards

    # Each point of the outline as the place on the curve next to it, and the distance from there.
    offsets = outline[:, None] - curve
    nearest = np.square(offsets).sum(axis=-1).argmin(axis=1)
    offsets = offsets[np.arange(len(outline)), nearest]
    along = places[nearest] + (offsets * tangents[nearest]).sum(axis=1)
    shape = np.stack([along, (offsets * normals[nearest]).sum(axis=1)], axis=1)
    (start, top), (end, bottom) = shape.min(axis=0), shape.max(axis=0)
    if typical is not None:
        is_as_high = 1 / SAME_SIZE < (bottom - top) / sum(typical) < SAME_SIZE
        is_there = -typical[0] < (top + bottom) / 2 < typical[1]  # not with the baseline of another line
        if is_as_high and is_there:
            top, bottom = -typical[0], typical[1]
    margin = round(MARGIN * (bottom - top))
    start, top = np.floor(np.array([start, top - margin]) + ROUNDING)
    width = max(int(np.ceil(end - ROUNDING) - start), 1)
    height = max(int(np.ceil(bottom + margin - ROUNDING) - top), 1)

    # The cut is made of upright stripes, each of which comes from a quadrangle that stands on the curve.
    edges = np.unique(np.linspace(0, width, max(round(width / max(step, 4)), 1) + 1).astype(int))
    inside = np.clip(edges + start, 0, places[-1])
    at, ahead, down = (
        np.stack([np.interp(inside, places, axis) for axis in values.T], axis=1)
        for values in (curve, tangents, normals)
    )
    border = margin + 2  # for corners of quadrangles that lie outside of the region
    at += (edges + start - inside)[:, None] * ahead + border
    upper, lower = at + top * down, at + (top + height) * down
    quads = np.concatenate([upper[:-1], lower[:-1], lower[1:], upper[1:]], axis=1).tolist()
    mesh = [((a, 0, b, height), quad) for (a, b), quad in zip(pairwise(edges.tolist()), quads, strict=True)]

    module: Any = require("PIL.Image", "image")
    draw: Any = require("PIL.ImageDraw", "image")
    mask = module.new("1", (width, height))
    points = list(map(tuple, (shape - (start, top)).tolist()))
    draw.Draw(mask).polygon(points, fill=1, outline=1)
    draw.Draw(mask).line(points, fill=1, width=2 * margin + 1)
    is_inside = np.asarray(mask)
    if not is_inside.any():
        return None
    region = np.pad(region, [(border, border)] * 2 + [(0, 0)] * (region.ndim - 2), mode="edge")
    # Pillow turns channels together only if they have 8 bits, and other types only as these.
    layers = [region] if region.ndim == 2 or region.dtype == np.uint8 else np.moveaxis(region, -1, 0)
    dtype = {"u1": np.uint8, "u2": np.int32}.get(region.dtype.str[1:], np.float32)
    turned = [
        module.fromarray(layer.astype(dtype)).transform(
            (width, height), module.Transform.MESH, mesh, module.Resampling.BILINEAR
        )
        for layer in layers
    ]
    cut = np.asarray(turned[0]) if len(turned) == 1 else np.stack([*map(np.asarray, turned)], axis=-1)
    cut = cut.astype(region.dtype, copy=False)
    return np.where(is_inside[..., None] if cut.ndim == 3 else is_inside, cut, _paper(cut, is_inside))


def _smoothed(curve: Array, window: int) -> Array:
    """The moving average of a curve (M, 2), which is continued straight on beyond its ends."""
    reach = min(window // 2, len(curve) - 1)
    padded = np.pad(curve, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    kernel = np.full(2 * reach + 1, 1 / (2 * reach + 1))
    return np.stack([np.convolve(axis, kernel, mode="valid") for axis in padded.T], axis=1)


def _paper(cut: Array, is_inside: Array) -> Array:
    """The colour of the paper in each column of a cut, (1, w) or (1, w, 3), which follows its shades."""
    height, width = is_inside.shape
    edges = np.linspace(0, width, max(round(width / (2 * height)), 1) + 1).astype(int)
    places, colours = [], []
    for start, end in pairwise(edges.tolist()):
        inside = cut[:, start:end][is_inside[:, start:end]]
        if len(inside):
            places.append((start + end) / 2)
            colours.append(np.percentile(inside, PAPER, axis=0))
    columns = np.arange(width) + 0.5
    shades = np.reshape(colours, (len(places), -1)).T
    paper = np.stack([np.interp(columns, places, shade) for shade in shades], axis=-1)
    return paper.astype(cut.dtype).reshape(1, *cut.shape[1:])
