"""The kind `baselines`: the lines of a page. The loss is the cross entropy of maps that are drawn from
baselines, and the overlap (Dice) with that of the baselines themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.text import counted
from mdlstm_tk.data.samples import MemoryBudget, Survey
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, RawSample, Sample, Split, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.kinds.decoding import read_decoding, write_decoding
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums, TargetRule, TrainingKind
from mdlstm_tk.text.baseline_maps import STRIDE, draw_maps
from mdlstm_tk.text.baselines import MAPS, REACH
from mdlstm_tk.text.line_finding import lines_of_output
from mdlstm_tk.text.page_distortion import distort_page
from mdlstm_tk.text.page_folders import PageTarget, list_whole_pages
from mdlstm_tk.text.polylines import same_lines, spacing_of

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.user_data import UserDataTask
    from mdlstm_tk.report.panels import Color, Panel
    from mdlstm_tk.training.job import TrainingJob
    from mdlstm_tk.training.run_folder import Run


WEIGHT = 3.0  # of positions on a baseline or an end in the cross entropy: there are few
ENDS = 0.3  # weight of the maps of beginnings and ends
SHARES = 0.05, 3.0  # line spacings that outlines reach at least and at most
COLORS = {
    "true, found": (60, 160, 60),
    "true, missed": (214, 40, 57),
    "found, true": (40, 90, 214),
    "found, not true": (255, 140, 0),
}


class Baselines(TrainingKind):
    folder_format = "a folder with page images and their ALTO or PAGE XML, which holds baselines"
    array_format = folder_format
    target_dtypes = ""
    target_files = (".xml",)
    target_name = "page"
    is_cropped = False
    is_planar = True
    error_names = ("line_error", "missed", "false", "pixel_error")
    percentages = frozenset(error_names)
    pictured = 6
    defaults = COMMON_DEFAULTS | {
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

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return list_whole_pages(path)

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        raise InputError("arrays hold no baselines; give a folder of pages")

    def survey(self, target: PageTarget, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        return target, [line.round(1).tolist() for line in target.lines]

    def fit(self, targets: Sequence[PageTarget], options: TargetOptions) -> Targets:
        lines = sum(len(target.lines) for target in targets)
        assert options.preprocessing is not None
        return Targets(MAPS, partial(_encode, options.preprocessing), [f"baselines: {lines}"])

    def complete(
        self, task: UserDataTask, splits: Mapping[Split, Sequence[Survey]], targets: Targets
    ) -> None:
        """Learn how far outlines reach from the baselines of the training pages."""
        shares = [
            np.array(page.reach) / spacing_of(page.lines, page.height)
            for page in (survey.target for survey in splits["train"])
            if page.reach is not None and len(page.lines) > 1
        ]
        if shares:
            above, below = np.clip(np.median(shares, axis=0), *SHARES).tolist()
            task.of_kind = {"above": above, "below": below}

    def conclude(
        self, job: TrainingJob, step: int, split: Split
    ) -> tuple[dict[str, float], dict[str, Any]]:
        if job.context.is_main:
            write_decoding(job.run, job.task.of_kind or {}, step)
        return super().conclude(job, step, split)

    def metadata(self, run: Run, step: int, spec: TaskSpec) -> dict[str, Any]:
        return read_decoding(run, REACH, step)

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        """The page with its baselines: those that were found, missed, and found where there is none."""
        from PIL import Image, ImageDraw

        from mdlstm_tk.report.panels import Panel, draw_input, visible

        height, width = _map_extents(batch, 0)
        found, true = lines_of_output(prediction[0, :height, :width], (STRIDE, STRIDE)), _lines(batch.y[0])
        pairs = same_lines(found, true, spacing_of(true, STRIDE * height))
        image = Image.fromarray(draw_input(visible(batch.x, batch), fade=0.3)).convert("RGB")
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
        page = Panel("page", draw_input(visible(batch.x, batch)), sample=name)
        return [page, Panel(counts, np.asarray(image))]

    def colors(self, spec: TaskSpec) -> dict[str, Color]:
        return dict(COLORS)

    def examples_text(self, spec: TaskSpec) -> str:
        return (
            "Baselines of each page: true ones that were found are green and those that were missed red; "
            "found ones are blue, and orange where there is no true one."
        )

    def distort(
        self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], strength: float
    ) -> list[Sample]:
        pairs = zip(samples, rngs, strict=True)
        return [distort_page(x, lines, rng, strength) for (x, lines), rng in pairs]

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        """(N, L, K, 2): the points of the baselines in pixels of x, padded with NaN."""
        most = max(1, *map(len, targets)), max([2, *(len(line) for lines in targets for line in lines)])
        pages = [pad(lines, (most[1], 2), np.nan, np.float32) for lines in targets]
        return pad([page.reshape(-1, most[1], 2) for page in pages], (*most, 2), np.nan, np.float32)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        n, height, width = batch.x.shape[:3]
        grid = (-(-height // STRIDE), -(-width // STRIDE))
        return TargetRule(np.floating, (n, *batch.y.shape[1:3], 2), (n, *grid, MAPS))

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        from torch import from_numpy, stack, tensor
        from torch.nn.functional import binary_cross_entropy_with_logits

        losses = []
        for k, logits in enumerate(prediction):
            height, width = _map_extents(batch, k)
            drawn = draw_maps(_lines(batch.y[k]), (height, width))
            y, logits = from_numpy(drawn).to(prediction.device), logits[:height, :width]
            entropy = binary_cross_entropy_with_logits(
                logits, y, pos_weight=tensor(WEIGHT, device=prediction.device), reduction="none"
            ).mean((0, 1))
            band, p = y[..., 0], logits[..., 0].sigmoid()
            dice = 1 - (2 * (p * band).sum() + 1) / (p.sum() + band.sum() + 1)
            losses.append(entropy[0] + ENDS * entropy[1:].sum() + dice)
        return stack(losses).mean()

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        matched = found = true = inter = union = 0.0
        for k, logits in enumerate(prediction.cpu().numpy()):
            height, width = _map_extents(batch, k)
            lines = _lines(batch.y[k])
            answers = lines_of_output(logits[:height, :width], (STRIDE, STRIDE))
            matched += len(same_lines(answers, lines, spacing_of(lines, STRIDE * height)))
            found, true = found + len(answers), true + len(lines)
            drawn, band = draw_maps(lines, (height, width))[..., 0] > 0.5, logits[:height, :width, 0] > 0
            inter, union = inter + float((drawn & band).sum()), union + float((drawn | band).sum())
        return {
            "line_error": (found + true - 2 * matched, found + true),
            "missed": (true - matched, true),
            "false": (found - matched, found),
            "pixel_error": (union - inter, union),
        }


def _encode(preprocessing: Preprocessing, target: PageTarget) -> tuple[Array, ...]:
    """The baselines of a page in pixels of x."""
    height, width = preprocessing.resized((target.height, target.width))
    scale = np.array([width / target.width, height / target.height])
    return tuple((line * scale).astype(np.float32) for line in target.lines)


def _lines(page: Array) -> list[Array]:
    """The baselines of a sample of `Batch.y`."""
    lines = (line[~np.isnan(line[:, 0])] for line in page)
    return [line for line in lines if len(line)]


def _map_extents(batch: Batch, k: int) -> tuple[int, int]:
    """The extents of the maps of sample k, without padding."""
    height, width = batch.x.shape[1:3] if batch.sizes is None else batch.sizes[k].tolist()
    return -(-height // STRIDE), -(-width // STRIDE)


TRAINING = Baselines()
