"""The kind `baselines` in training: the network, the maps that it learns, loss, measures and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk._util.text import counted
from mdlstm_tk.data.task import Batch
from mdlstm_tk.errors import require
from mdlstm_tk.io import Array, Floats
from mdlstm_tk.kinds.panels import Panel, draw_input, visible
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import check_batched, depth_to_space
from mdlstm_tk.text.geometry import distances, resampled, spacing_of
from mdlstm_tk.text.line_finding import MAPS, find_baselines
from mdlstm_tk.text.networks import stack_convolutions, standardise

STRIDE = 2  # pixels of x, along both axes, under a position of the maps
RADIUS = 1.0, 3.0  # in positions: half the width of a drawn baseline, and the radius of a drawn end
WEIGHT = 3.0  # of positions on a baseline or an end in the cross entropy: there are few
ENDS = 0.3  # weight of the maps of beginnings and ends
NEAR = 0.25  # of the line spacing: the distance up to which a part of a baseline is on another one
LEAST_SHARE = 0.7  # of the lengths of both that are near each other, where they are the same line
COLORS = {
    "true, found": (60, 160, 60),
    "true, missed": (214, 40, 57),
    "found, true": (40, 90, 214),
    "found, not true": (255, 140, 0),
}
CONVOLUTIONS = ((16, 2, 1), (32, 2, 1))  # features, stride, residual ones after it
COLUMNS = 2  # that a window of the first MD-LSTM joins: lines are longer than high
UPSAMPLING = (2, 4)  # positions of the maps under one of the MD-LSTMs


class LineFinder(nn.Module):
    """Predicts maps of the lines of a page, of any height and width, at half its resolution.

    Each page is standardised by its own mean and deviation. Convolutions make features of 4×4 pixels, and
    two MD-LSTMs in all directions join them over the whole page, so that a position knows the lines above
    and below and the other columns.

    Args:
        channels: C of x.
        outputs: maps, see `draw_maps`.
        hidden: n, units of each direction of the MD-LSTMs.
        layers: number of MD-LSTMs.
        cell, directions, layer_norm: as in `MDLSTM`.
        dropout: probability of zeroing an input of the head in training.

    Attributes:
        stride: positions of x, along each axis, under a position of the maps.
    """

    stride = (2, 2)

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 20,
        layers: int = 2,
        cell: str = "stable",
        directions: Directions = "all",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.convolutions = stack_convolutions(channels, CONVOLUTIONS)
        features = CONVOLUTIONS[-1][0]
        self.grid = MDLSTM(
            features,
            hidden,
            num_layers=layers,
            directions=directions,
            window=(1, COLUMNS),
            cell=cell,
            layer_norm=layer_norm,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.grid.output_size, outputs * UPSAMPLING[0] * UPSAMPLING[1])

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, H, W, C) to logits (N, ⌈H / 2⌉, ⌈W / 2⌉, maps)."""
        check_batched(x, 2)
        valid = None if sizes is None else as_sizes(sizes, x)
        extents = [(extent + 1) // 2 for extent in x.shape[1:-1]]
        x = standardise(x, valid).permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x, valid = convolution(x, valid)
        y = self.grid(x.permute(0, 2, 3, 1), valid)
        maps = depth_to_space(self.head(self.dropout(y)), UPSAMPLING)
        for axis, extent in enumerate(extents, 1):  # exports lose a slice that is traced with all of it
            maps = maps.index_select(axis, torch.arange(extent, device=maps.device))
        return maps


def loss_of(prediction: Tensor, batch: Batch) -> Tensor:
    """The mean over pages of the cross entropy of the maps, and of 1 − the overlap (Dice) of baselines."""
    losses = []
    for logits, lines in _pages(prediction, batch):
        y = torch.from_numpy(draw_maps(lines, (len(logits), logits.shape[1]))).to(logits)
        entropy = binary_cross_entropy_with_logits(
            logits, y, pos_weight=torch.tensor(WEIGHT, device=logits.device), reduction="none"
        ).mean((0, 1))
        band, p = y[..., 0], logits[..., 0].sigmoid()
        dice = 1 - (2 * (p * band).sum() + 1) / (p.sum() + band.sum() + 1)
        losses.append(entropy[0] + ENDS * entropy[1:].sum() + dice)
    return torch.stack(losses).mean()


def sums_of(prediction: Tensor, batch: Batch) -> Tensor:
    """(5,): lines that are found and true, found, and true; positions on both bands, and on one."""
    sums = np.zeros(5)
    for logits, lines in _pages(prediction.cpu().numpy(), batch):
        found = find_baselines(logits, (STRIDE, STRIDE))
        matched = len(same_lines(found, lines, spacing_of(lines, STRIDE * len(logits))))
        drawn = draw_maps(lines, (len(logits), logits.shape[1]))[..., 0] > 0.5
        band = logits[..., 0] > 0
        sums += (matched, len(found), len(lines), (drawn & band).sum(), (drawn | band).sum())
    return torch.tensor(sums)


def draw_page(batch: Batch, prediction: Array) -> list[Panel]:
    """The page with its baselines: those that were found, missed, and found where there is none."""
    ((logits, true),) = _pages(prediction, batch)
    found = find_baselines(logits, (STRIDE, STRIDE))
    pairs = same_lines(found, true, spacing_of(true, STRIDE * len(logits)))
    right, seen = ({pair[side] for pair in pairs} for side in (0, 1))
    x = visible(batch.x, batch)
    image = Image.fromarray(draw_input(x, fade=0.3))
    draw = ImageDraw.Draw(image)
    for lines, matched, names in ((true, seen, [*COLORS][:2]), (found, right, [*COLORS][2:])):
        for k, line in enumerate(lines):
            draw.line([tuple(point) for point in line.tolist()], COLORS[names[k not in matched]], 1)
    counts = f"{len(pairs)} of {counted(len(true), 'line')} found, {len(found) - len(pairs)} false"
    return [Panel("page", draw_input(x)), Panel(counts, np.asarray(image), legend=COLORS)]


def _pages(prediction: Any, batch: Batch) -> list[tuple[Any, list[Array]]]:
    """The prediction without padding, and the baselines, of each page of a batch, perhaps of tensors."""
    y = batch.y if isinstance(batch.y, np.ndarray) else batch.y.cpu().numpy()
    sizes = [batch.x.shape[1:3]] * len(y) if batch.sizes is None else batch.sizes.tolist()
    pages = []
    for logits, page, (height, width) in zip(prediction, y, sizes, strict=True):
        lines = (line[~np.isnan(line[:, 0])] for line in page)
        own = logits[: -(-height // STRIDE), : -(-width // STRIDE)]
        pages.append((own, [line for line in lines if len(line)]))
    return pages


def draw_maps(lines: Sequence[Array], extents: tuple[int, int]) -> Floats:
    """Draw baselines as a network should see them.

    Args:
        lines: baselines (K, 2), x and y in pixels of x (the input), each from the left end of a
            line that stands upright.
        extents: (h, w) of the maps.

    Returns:
        (h, w, 3), from 0 to 1, with soft edges: of the baselines, their beginnings and their ends.
    """
    maps = np.zeros((*extents, MAPS), np.float32)
    for line in lines:
        points = np.asarray(line, np.float32) / STRIDE - 0.5
        for start, end in pairwise(points):
            _draw(maps[..., 0], start, end, RADIUS[0])
        for k, point in ((1, points[0]), (2, points[-1])):
            _draw(maps[..., k], point, point, RADIUS[1])
    return maps


def _draw(grid: Floats, start: Array, end: Array, radius: float) -> None:
    """Draw a segment: 1 up to half a position less than the radius, 0 from half a position more."""
    reach = radius + 0.5
    low = np.maximum(np.floor(np.minimum(start, end) - reach).astype(int), 0)
    high = np.minimum(np.ceil(np.maximum(start, end) + reach).astype(int) + 1, grid.shape[::-1])
    if (high <= low).any():
        return
    x = np.arange(low[0], high[0], dtype=np.float32) - start[0]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - start[1]
    run = end - start
    place = np.clip((x * run[0] + y * run[1]) / max(float(run @ run), 1e-6), 0, 1)
    distance = np.hypot(x - place * run[0], y - place * run[1])
    part = grid[low[1] : high[1], low[0] : high[0]]
    np.maximum(part, np.clip(reach - distance, 0, 1), out=part)


def same_lines(found: Sequence[Array], true: Sequence[Array], spacing: float) -> list[tuple[int, int]]:
    """The pairs (found, true) of baselines that are the same line.

    They lie within a quarter of the line spacing of each other over 70 % of both lengths. Each belongs to
    one pair; the pairs are as many as there can be.

    Args:
        found, true: baselines, each (K, 2).
        spacing: of the true lines, see `spacing_of`.
    """
    if not (found and true):
        return []
    shares = np.minimum(_shares(found, true, spacing), _shares(true, found, spacing).T)
    scores = np.where(shares >= LEAST_SHARE, 1 + shares, 0)
    optimize = require("scipy.optimize", "image")
    rows, columns = optimize.linear_sum_assignment(scores, maximize=True)
    return [(int(k), int(j)) for k, j in zip(rows, columns, strict=True) if scores[k, j]]


def _shares(lines: Sequence[Array], others: Sequence[Array], spacing: float) -> Array:
    """The share (L, M) of each line that is near each other one."""
    points, reach = np.stack([resampled(line) for line in lines]), NEAR * spacing
    near = np.zeros((*points.shape[:2], len(others)), bool)
    for k, other in enumerate(others):  # most lines are far from most others
        around = ((points >= other.min(0) - reach) & (points <= other.max(0) + reach)).all(-1)
        near[around, k] = distances(points[around], [other])[:, 0] <= reach
    return np.asarray(near.mean(1))
