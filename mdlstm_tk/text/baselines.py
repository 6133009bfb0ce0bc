"""The kind `baselines`: the lines of a page, found in its image. The loss is the cross entropy of maps that
are drawn from baselines, and the overlap (Dice) with that of the baselines themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels, Row

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel
    from mdlstm_tk.text.page_folders import PageTarget

REACH = {"above": 0.7, "below": 0.35}
"""Line spacings that outlines reach above and below baselines, where a model has not learned them."""
SHARES = 0.05, 3.0  # line spacings that outlines reach at least and at most
WEIGHT = 3.0  # of positions on a baseline or an end in the cross entropy: there are few
ENDS = 0.3  # weight of the maps of beginnings and ends
COLORS = {
    "true, found": (60, 160, 60),
    "true, missed": (214, 40, 57),
    "found, true": (40, 90, 214),
    "found, not true": (255, 140, 0),
}


class Baselines(Kind):
    name = "baselines"
    layout = "a folder with page images and their ALTO or PAGE XML, which holds baselines"
    defaults = COMMON | {
        "model": "pages",
        "resize": "512x*",
        "hidden": 20,
        "layers": 2,
        "steps": 4000,
        "batch_size": 2,
        "lr": 0.004,
        "warmup": 50,
        "average": 0.99,
        "augment": 1.0,
        "evaluate_every": 200,
        "best_by": "pixel_error",  # on few pages, counts of lines differ more by chance
        "patience": 0,
    }
    answers = "rows"
    axes = "N, h, w"

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz
        from mdlstm_tk.text.page_folders import whole_pages

        if is_npz(path):
            raise InputError("arrays hold no baselines; give a folder of pages")
        return whole_pages(path)

    def fit(
        self,
        train: Sequence[PageTarget],
        every: Sequence[PageTarget],
        prepare: Preprocessing | None,
        config: Any,
    ) -> Labels:
        """The encoding of pages; and how far outlines reach from the baselines of the training pages."""
        from mdlstm_tk.text.baseline_maps import MAPS
        from mdlstm_tk.text.polylines import spacing_of

        assert prepare is not None
        if config.crop:
            raise InputError("crop would cut pages, but not their baselines; leave it out")
        shares = [
            np.array(page.reach) / spacing_of(page.lines, page.height)
            for page in train
            if page.reach is not None and len(page.lines) > 1
        ]
        reach: Mapping[str, float] = REACH
        if shares:
            above, below = np.clip(np.median(shares, axis=0), *SHARES).tolist()
            reach = {"above": above, "below": below}
        return Labels(MAPS, encode=partial(_encode, prepare), decoding=reach)

    def distort(self, samples: Sequence[Any], rngs: Sequence[Any], strength: float) -> list[Any]:
        from mdlstm_tk.text.distortion import distort_page

        pairs = zip(samples, rngs, strict=True)
        return [distort_page(x, lines, rng, strength) for (x, lines), rng in pairs]

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        """(N, L, K, 2): the points of the baselines in pixels of x, padded with NaN."""
        most = max(1, *map(len, targets)), max([2, *(len(line) for lines in targets for line in lines)])
        y = np.full((len(targets), *most, 2), nan, np.float32)
        for k, lines in enumerate(targets):
            for row, line in zip(y[k], lines, strict=False):
                row[: len(line)] = line
        return y

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from torch import from_numpy, stack, tensor
        from torch.nn.functional import binary_cross_entropy_with_logits

        from mdlstm_tk.text.baseline_maps import draw_maps

        losses = []
        for logits, lines, (height, width) in _pages(prediction, batch):
            y, logits = from_numpy(draw_maps(lines, (height, width))).to(logits), logits[:height, :width]
            entropy = binary_cross_entropy_with_logits(
                logits, y, pos_weight=tensor(WEIGHT, device=prediction.device), reduction="none"
            ).mean((0, 1))
            band, p = y[..., 0], logits[..., 0].sigmoid()
            dice = 1 - (2 * (p * band).sum() + 1) / (p.sum() + band.sum() + 1)
            losses.append(entropy[0] + ENDS * entropy[1:].sum() + dice)
        return stack(losses).mean()

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """(5,): lines that are found and true, found, and true; positions on both bands, and on one."""
        from torch import tensor

        from mdlstm_tk.text.baseline_maps import STRIDE, draw_maps
        from mdlstm_tk.text.line_finding import lines_of_output
        from mdlstm_tk.text.polylines import same_lines, spacing_of

        sums = np.zeros(5)
        for logits, lines, (height, width) in _pages(prediction.cpu().numpy(), batch):
            logits = logits[:height, :width]
            answers = lines_of_output(logits, (STRIDE, STRIDE))
            matched = len(same_lines(answers, lines, spacing_of(lines, STRIDE * height)))
            drawn, band = draw_maps(lines, (height, width))[..., 0] > 0.5, logits[..., 0] > 0
            sums += (matched, len(answers), len(lines), (drawn & band).sum(), (drawn | band).sum())
        return {"lines": tensor(sums)}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The shares of wrong lines among those found and true, of missed ones among the true ones and of
        false ones among those found; and the share of positions on one band alone. NaN of nothing."""
        matched, found, true, inter, union = map(float, sums["lines"])
        shares = {
            "line_error": (found + true - 2 * matched, found + true),
            "missed": (true - matched, true),
            "false": (found - matched, found),
            "pixel_error": (union - inter, union),
        }
        return {name: wrong / count if count else nan for name, (wrong, count) in shares.items()}

    def decode(self, y: Array, metadata: Metadata) -> list[Row]:  # type: ignore[override]
        raise InputError(
            "a model of kind baselines finds the lines of pages; use: mdlstm read PAGES -m MODEL"
        )

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        """The page with its baselines: those that were found, missed, and found where there is none."""
        from PIL import Image, ImageDraw

        from mdlstm_tk.kinds.panels import Panel, draw_input, visible
        from mdlstm_tk.text.baseline_maps import STRIDE
        from mdlstm_tk.text.line_finding import lines_of_output
        from mdlstm_tk.text.polylines import same_lines, spacing_of

        ((logits, true, (height, width)),) = _pages(prediction, batch)
        found = lines_of_output(logits[:height, :width], (STRIDE, STRIDE))
        pairs = same_lines(found, true, spacing_of(true, STRIDE * height))
        x = visible(batch.x, batch)
        image = Image.fromarray(draw_input(x, fade=0.3))
        draw = ImageDraw.Draw(image)
        right, seen = ({pair[side] for pair in pairs} for side in (0, 1))
        for color, lines in (
            (COLORS["true, found"], [line for k, line in enumerate(true) if k in seen]),
            (COLORS["true, missed"], [line for k, line in enumerate(true) if k not in seen]),
            (COLORS["found, true"], [line for k, line in enumerate(found) if k in right]),
            (COLORS["found, not true"], [line for k, line in enumerate(found) if k not in right]),
        ):
            for line in lines:
                draw.line([tuple(point) for point in line.tolist()], color, 1)
        counts = f"{len(pairs)} of {counted(len(true), 'line')} found, {len(found) - len(pairs)} false"
        return [Panel("page", draw_input(x)), Panel(counts, np.asarray(image), legend=COLORS)]


def _encode(prepare: Preprocessing, target: PageTarget) -> tuple[Array, ...]:
    """The baselines of a page in pixels of x."""
    height, width = prepare.resized((target.height, target.width))
    scale = np.array([width / target.width, height / target.height])
    return tuple((line * scale).astype(np.float32) for line in target.lines)


def _pages(prediction: Any, batch: Batch) -> list[tuple[Any, list[Array], tuple[int, int]]]:
    """The prediction, the baselines, and the extents of the maps without padding of each page of a batch,
    which may be one of tensors."""
    from mdlstm_tk.text.baseline_maps import STRIDE

    y = batch.y if isinstance(batch.y, np.ndarray) else batch.y.cpu().numpy()
    sizes = [batch.x.shape[1:3]] * len(y) if batch.sizes is None else batch.sizes.tolist()
    pages = []
    for logits, page, (height, width) in zip(prediction, y, sizes, strict=True):
        lines = (line[~np.isnan(line[:, 0])] for line in page)
        extents = -(-height // STRIDE), -(-width // STRIDE)
        pages.append((logits, [line for line in lines if len(line)], extents))
    return pages


KIND = Baselines()
