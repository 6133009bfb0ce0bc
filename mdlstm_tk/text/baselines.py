"""The kind `baselines`: the lines of a page, found in its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.data.files import Sample, is_npz
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels, Row
from mdlstm_tk.text.folders import baselines_of, whole_pages
from mdlstm_tk.text.geometry import spacing_of
from mdlstm_tk.text.line_finding import MAPS
from mdlstm_tk.text.pages import REACH, Page

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.task import Batch, TaskSpec
    from mdlstm_tk.kinds.panels import Panel

SHARES = 0.05, 3.0  # line spacings that outlines reach at least and at most


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
        if is_npz(path):
            raise InputError("arrays hold no baselines; give a folder of pages")
        return whole_pages(path)

    def fit(self, train: Sequence[Page], every: Any, prepare: Any, config: Any) -> Labels:
        """The encoding of pages; and how far outlines reach from the baselines of the training pages."""
        if config.crop:
            raise InputError("crop would cut pages, but not their baselines; leave it out")
        several = [page for page in train if len(baselines_of(page)) > 1]
        shares = [np.array(p.lines[0].reach) / spacing_of(baselines_of(p), p.height) for p in several]
        typical = np.clip(np.median(shares, axis=0), *SHARES) if shares else [*REACH.values()]
        reach = dict(zip(REACH, map(float, typical), strict=True))
        return Labels(MAPS, decoding=reach)

    def encoder(self, spec: TaskSpec) -> Any:
        return partial(_encode, spec.preprocessing)

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
        """The cross entropy of the maps, and the overlap of the baselines."""
        from mdlstm_tk.text.baselines_training import loss_of

        return loss_of(prediction, batch)

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.text.baselines_training import sums_of

        return {"lines": sums_of(prediction, batch)}

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
        from mdlstm_tk.text.baselines_training import draw_page

        return draw_page(batch, prediction)


def _encode(prepare: Any, page: Page) -> tuple[Array, ...]:
    """The baselines of a page in pixels of x."""
    height, width = prepare.resized((page.height, page.width))
    scale = np.array([width / page.width, height / page.height])
    return tuple((line * scale).astype(np.float32) for line in baselines_of(page))


KIND = Baselines()
