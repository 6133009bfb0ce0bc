"""Lines that networks find on pages, trained in equal time with equal parameters; and what is read there.

    python benchmarks/baselines.py --pages ../wills --cores 2 --seeds 3 --recogniser recogniser.onnx
    python benchmarks/baselines.py --pages ../wills --minutes 20 --seeds 3 --recogniser recogniser.onnx

The folder holds pages with ALTO or PAGE XML and a splits.json. The default network, its convolutions with
LSTMs along rows and then columns, and a U-Net are trained as `mdlstm train` does; each exported file finds
the lines of the test pages. The minutes are those of one core, or of two that share each batch. They are
counted as steps, which are timed before the first training (those of two cores by the clock: let nothing
else run meanwhile). With `--processes 1`, what two cores would share is trained on one, in the same steps.
F1 is the mean over hands (prefixes of splits.json), with an interval of 95 % by bootstrap over them: on the
pages as they are, turned by 3°, unevenly lit, and at half the resolution.

With a recogniser, the last columns are the characters that are wrong on whole pages, in per cent: from the
photograph alone, and with the true lines. Lines are paired so that errors are fewest, whatever their order;
those that are found or missed alone count with all characters.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rival_networks  # noqa: F401  it registers the rivals
import torch
from equal_time import gain_of_processes, seconds_a_step, trained
from measuring import (
    RESULTS,
    ROOT,
    argument_parser,
    hold_settings,
    markdown,
    prefix_of,
    resumed,
    settings_of,
    write_between_markers,
)
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from mdlstm_tk.export import export_run
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import decode_image, to_grey
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import cut_line, find_lines, read_lines, read_page
from mdlstm_tk.text.baselines_training import same_lines
from mdlstm_tk.text.geometry import spacing_of
from mdlstm_tk.text.pages import Page, PageLine
from mdlstm_tk.training import TrainConfig, configure, make_task
from mdlstm_tk.training.comparison import with_equal_parameters

NETWORKS = {"default": "", "rows": "page-rows", "unet": "page-unet"}  # models of `rival_networks`
DRAWS = 4000
TIMING_SECONDS = 60  # in which steps take turns
ANGLE = np.radians(3)
FIGURES = ("F1", "turned", "lit", "halved", "wrong, %", "with true lines")
CORES = 1, 2  # whose minutes are counted
COLUMNS = ("network", "parameters", "steps", *FIGURES, "s a page", "MB")
Damaged = tuple[Array, list[Array]]  # the image and its baselines


def turned(pixels: Array, lines: list[Array]) -> Damaged:
    """A page that is turned by 3° around its centre."""
    matrix = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
    centre = np.array(pixels.shape[1::-1]) / 2
    image, paper = PIL.Image.fromarray(pixels), int(np.median(pixels))
    image = image.rotate(-3, PIL.Image.Resampling.BILINEAR, fillcolor=paper)
    return np.asarray(image), [(line - centre) @ matrix.T + centre for line in lines]


def lit(pixels: Array, lines: list[Array]) -> Damaged:
    """A page whose light falls to a third from one corner to the other."""
    y, x = (np.linspace(0, 1, extent) for extent in pixels.shape)
    return (pixels * (1 - (x + y[:, None]) / 3)).astype(np.uint8), lines


def halved(pixels: Array, lines: list[Array]) -> Damaged:
    """A page at half its resolution."""
    return np.asarray(PIL.Image.fromarray(pixels).reduce(2)), [line / 2 for line in lines]


def interval(by_hand: Mapping[str, Sequence[tuple[int, int, int]]]) -> tuple[float, float, float]:
    """The mean F1 of hands, and its interval, from the pairs, found and true lines of their pages."""
    sums = np.array([np.sum(counts, axis=0) for counts in by_hand.values()], float)  # (hands, 3)
    f1 = 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)
    means = f1[np.random.default_rng(0).integers(0, len(f1), (DRAWS, len(f1)))].mean(1)
    return float(f1.mean()), *map(float, np.quantile(means, [0.025, 0.975]))


def page_edits(found: Sequence[str], true: Sequence[str]) -> tuple[int, int]:
    """The fewest edits between lines of a page that are paired; and the characters of the true ones."""
    alone = sum(map(len, found)) + sum(map(len, true))
    saved = np.array([[len(a) + len(b) - Levenshtein.distance(a, b) for b in true] for a in found])
    pairs = linear_sum_assignment(saved, maximize=True) if saved.size else ()
    return alone - int(saved[pairs].sum() if len(pairs) else 0), sum(map(len, true))


def measure(model: Path, pages: Sequence[tuple[str, Page]], recogniser: Session | None) -> dict[str, Any]:
    """F1 of a model on pages of hands, seconds a page, and characters wrong."""
    damages: list[Callable[..., Damaged]] = [lambda *page: page, turned, lit, halved]
    by_hand: list[dict[str, list[tuple[int, int, int]]]] = [{} for _ in damages]
    edits, seconds, session = np.zeros((2, 2), int), 0.0, Session(model, device="cpu")
    for hand, page in pages:
        pixels = decode_image(page.image.read_bytes(), page.image.name)
        pixels = to_grey(pixels) if pixels.ndim == 3 else pixels
        lines = [line.baseline for line in page.lines if line.baseline is not None]
        found_on: list[list[PageLine]] = []
        for damage, counts in zip(damages, by_hand, strict=True):
            image, true = damage(pixels, lines)
            start = time.process_time()
            found = find_lines(session, image)
            seconds += time.process_time() - start
            baselines = [line.baseline for line in found if line.baseline is not None]
            found_on.append(found)
            pairs = same_lines(baselines, true, spacing_of(true, len(image)))
            counts.setdefault(hand, []).append((len(pairs), len(found), len(true)))
        known = [line for line in page.lines if line.text]
        for k, each in enumerate((found_on[0], known) if recogniser else ()):
            images = [cut_line(pixels, line) for line in each]
            read = read_lines(recogniser, images) if recogniser and images else []
            edits[k] += page_edits([line.text for line in read], [line.text or "" for line in known])
    row: dict[str, Any] = {"f1": [interval(each) for each in by_hand]}
    row["wrong"] = (edits[:, 0] / np.maximum(edits[:, 1], 1)).tolist() if recogniser else []
    return row | {"seconds": seconds / 4 / len(pages), "bytes": model.stat().st_size}


def configuration(name: str, seed: int, options: argparse.Namespace) -> TrainConfig:
    """The configuration of a training, but for its number of steps."""
    settings = {"task": "baselines", "data": str(options.pages), "seed": seed}
    config = configure(**settings | settings_of(options.set))
    model = NETWORKS[name]
    return with_equal_parameters(config, model, make_task(config)) if model else config


def count_steps(options: argparse.Namespace) -> dict[str, int]:
    """The steps of each network that take the minutes; they are timed where the file of results does not
    tell."""
    configs = {name: configuration(name, 0, options) for name in NETWORKS}
    timing = min(TIMING_SECONDS, 6 * options.minutes)
    cells: dict[str, Callable[[], Any]] = {
        "seconds a step": partial(seconds_a_step, configs, timing),
        f"gain of {options.cores} cores": partial(gain_of_processes, configs["default"], options.cores),
    }
    kept = resumed(options.results, cells)
    seconds, gain = (kept[name] for name in cells)
    return {name: max(2, round(60 * options.minutes * gain / seconds[name])) for name in configs}


def train_network(
    name: str, seed: int, steps: int, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train a network, export it, and measure what the file finds on the test pages."""
    config = replace(configuration(name, seed, options), steps=steps)
    task, model = make_task(config), folder / "model.onnx"
    result = trained(config, folder, task, min(options.cores, options.processes))
    export_run(folder, model, form="scan", force=True)
    hands = json.loads((options.pages / "splits.json").read_text(encoding="utf-8"))["test"]
    names = task.names["test"]
    pages = [(prefix_of(name, hands) or "", read_page(options.pages / name)) for name in names]
    recogniser = Session(options.recogniser, device="cpu") if options.recogniser else None
    counts = {"parameters": result["parameters"], "steps": steps, "best step": result["step"]}
    return counts | measure(model, pages, recogniser)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is missing in the file of results, print the table, and return the rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="folder of pages with ALTO or PAGE XML")
    parser.add_argument("--minutes", type=float, default=60, help="of training for each network")
    parser.add_argument("--cores", type=int, choices=CORES, default=1, help="whose minutes are counted")
    help = "that share a training at most"
    parser.add_argument("--processes", type=int, choices=CORES, default=CORES[-1], help=help)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--recogniser", type=Path, help="an exported model that reads lines")
    parser.add_argument("-o", "--output", type=Path, default=Path("baselines"), help="folder of runs")
    parser.add_argument("--write", action="store_true", help="write docs/handwriting.md")
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "baselines.json", help="default: %(default)s"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recogniser = options.recogniser and hashlib.sha256(options.recogniser.read_bytes()).hexdigest()
    settings = {"set": options.set, "pages": options.pages.resolve().name, "recogniser": recogniser}
    hold_settings(options.results, settings)
    steps, cells = count_steps(options), {}
    for seed, name in product(range(options.seeds), options.networks):
        row = f"{name}, {options.minutes:g} min{' of two cores' * (options.cores - 1)}, seed {seed}"
        folder = options.output / row.replace(", ", "-").replace(" ", "")
        cells[row] = partial(train_network, name, seed, steps[name], folder, options)
    rows = trainings(resumed(options.results, cells))
    print(table(rows))
    if options.write:
        write_between_markers(ROOT / "docs/handwriting.md", "baselines", table(rows))
    return rows


def trainings(cells: Mapping[str, Any]) -> dict[str, Any]:
    """The trainings among the cells of a file of results."""
    return {name: each for name, each in cells.items() if isinstance(each, dict) and "f1" in each}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of COLUMNS."""
    texts = []
    for name, each in rows.items():
        f1 = ["{:.3f} ({:.3f}–{:.3f})".format(*values) for values in each["f1"]]
        wrong = [f"{100 * share:.1f}" for share in each["wrong"]] or ["", ""]
        numbers = f"{each['parameters']:,}", str(each["steps"])
        texts.append([name, *numbers, *f1, *wrong, f"{each['seconds']:.2f}", f"{each['bytes'] / 1e6:.2f}"])
    return markdown(COLUMNS, texts, 1)


if __name__ == "__main__":
    main()
