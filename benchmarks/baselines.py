"""Lines that networks find on pages, trained in equal time with equal parameters; and what is read there.

    python benchmarks/baselines.py --pages ../wills --minutes 60 --seeds 3 --reader reader.onnx

The folder holds pages with ALTO or PAGE XML and a splits.json. The default network, its convolutions with
LSTMs along rows and then columns, and a U-Net are trained as `mdlstm train` does; each exported file finds
the lines of the test pages. F1 is the mean over hands (prefixes of splits.json), with an interval of 95 %
by bootstrap over them: on the pages as they are, turned by 3°, unevenly lit, and at half the resolution.

With a reader, the last columns are the characters that are wrong on whole pages, in per cent: from the
photograph alone, and with the true lines. Lines are paired so that errors are fewest, whatever their order;
those that are found or missed alone count with all characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rival_networks  # noqa: F401  it registers the rivals
from measuring import argument_parser, markdown, resumed
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from mdlstm_tk.data.splits import prefix_of
from mdlstm_tk.export import export_run
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.preprocessing import decode_image, to_grey
from mdlstm_tk.text import cut_line, find_lines, read_page
from mdlstm_tk.text.page_folders import read_splits
from mdlstm_tk.text.pages import Page
from mdlstm_tk.text.polylines import same_lines, spacing_of
from mdlstm_tk.training import configure, make_task, new_job, parse_settings, train
from mdlstm_tk.training.comparison import with_equal_parameters
from mdlstm_tk.training.networks import fit_config

NETWORKS = {"default": "", "rows": "page-rows", "unet": "page-unet"}  # models of `rival_networks`
DRAWS = 4000
ANGLE = np.radians(3)
Damage = Callable[[Array, list[Array]], tuple[Array, list[Array]]]
Counts = tuple[int, int, int]  # pairs, found lines, true lines


def turned(pixels: Array, lines: list[Array]) -> tuple[Array, list[Array]]:
    """A page that is turned by 3° around its centre."""
    matrix = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
    centre = np.array(pixels.shape[1::-1]) / 2
    image = PIL.Image.fromarray(pixels).rotate(
        -3, PIL.Image.Resampling.BILINEAR, fillcolor=int(np.median(pixels))
    )
    return np.asarray(image), [(line - centre) @ matrix.T + centre for line in lines]


def lit(pixels: Array, lines: list[Array]) -> tuple[Array, list[Array]]:
    """A page whose light falls to a third from one corner to the other."""
    y, x = (np.linspace(0, 1, extent) for extent in pixels.shape)
    return (pixels * (1 - (x + y[:, None]) / 3)).astype(np.uint8), lines


def halved(pixels: Array, lines: list[Array]) -> tuple[Array, list[Array]]:
    """A page at half its resolution."""
    return np.asarray(PIL.Image.fromarray(pixels).reduce(2)), [line / 2 for line in lines]


DAMAGES: dict[str, Damage] = {"turned": turned, "lit": lit, "halved": halved}


def interval(by_hand: Mapping[str, Sequence[Counts]]) -> tuple[float, float, float]:
    """The mean F1 of hands, and its interval."""
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


def measure(model: Path, pages: Sequence[tuple[str, Page]], reader: Session | None) -> dict[str, Any]:
    """F1 of a model on pages of hands, seconds a page, and characters wrong."""
    by_hand: dict[str, dict[str, list[Counts]]] = {name: {} for name in ("page", *DAMAGES)}
    edits, seconds = np.zeros((2, 2), int), 0.0
    with Session(model, device="cpu") as session:
        for hand, page in pages:
            pixels = decode_image(page.image.read_bytes(), page.image.name)
            pixels = to_grey(pixels) if pixels.ndim == 3 else pixels
            true = [line.baseline for line in page.lines if line.baseline is not None]
            start = time.process_time()
            lines = find_lines(session, pixels)
            seconds += time.process_time() - start
            for name in by_hand:
                image, expected = DAMAGES[name](pixels, true) if name in DAMAGES else (pixels, true)
                found = [
                    line.baseline for line in (find_lines(session, image) if name in DAMAGES else lines)
                ]
                pairs = same_lines(
                    [line for line in found if line is not None], expected, spacing_of(expected)
                )
                by_hand[name].setdefault(hand, []).append((len(pairs), len(found), len(true)))
            if reader:
                texts = [line.text or "" for line in page.lines if line.text]
                known = [line for line in page.lines if line.text]
                for k, each in enumerate((lines, known)):
                    read = reader.transcribe([cut_line(pixels, line) for line in each]) if each else []
                    edits[k] += page_edits([line.text for line in read], texts)
    row: dict[str, Any] = {name: interval(each) for name, each in by_hand.items()}
    row["wrong"] = (edits[:, 0] / np.maximum(edits[:, 1], 1)).tolist() if reader else []
    return row | {"seconds": seconds / len(pages), "bytes": model.stat().st_size}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is missing in results.json, print the table, and return the rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="folder of pages with ALTO or PAGE XML")
    parser.add_argument("--minutes", type=float, default=60, help="of training for each network")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--reader", type=Path, help="an exported model that reads lines")
    parser.add_argument("-o", "--output", type=Path, default=Path("baselines"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    options = parser.parse_args(arguments)
    base = {"task": "baselines", "data": str(options.pages), "minutes": options.minutes}
    base |= parse_settings(options.set)
    task = make_task(configure(base))
    splits = read_splits(options.pages, {"train": ["train"], "validation": ["valid"], "test": ["test"]})
    pages = [
        (prefix_of(name, splits) or name, read_page(options.pages / name)) for name in task.names["test"]
    ]
    reader = Session(options.reader, device="cpu") if options.reader else None

    def row(name: str, seed: int) -> dict[str, Any]:
        config = configure(base | {"seed": seed})
        if NETWORKS[name]:
            config = with_equal_parameters(fit_config(config, task), NETWORKS[name], task.spec)
        job = new_job(config, options.output / f"{name}-{seed}", force=True, task=task)
        result = train(job)
        model = job.run.folder / "model.onnx"
        export_run(job.run, model, form="scan", force=True)
        return {"parameters": result["parameters"], "steps": result["step"]} | measure(model, pages, reader)

    cells = {
        f"{name}, seed {k}": partial(row, name, k)
        for k in range(options.seeds)
        for name in options.networks
    }
    rows = resumed(options.output / "results.json", cells)
    texts = []
    for name, each in rows.items():
        f1 = ["{:.3f} ({:.3f}–{:.3f})".format(*each[place]) for place in ("page", *DAMAGES)]
        wrong = [f"{100 * share:.1f}" for share in each["wrong"]] or ["", ""]
        numbers = f"{each['parameters']:,}", str(each["steps"])
        texts.append([name, *numbers, *f1, *wrong, f"{each['seconds']:.2f}", f"{each['bytes'] / 1e6:.2f}"])
    columns = (
        "network",
        "parameters",
        "steps",
        "F1",
        *DAMAGES,
        "wrong, %",
        "with true lines",
        "s a page",
        "MB",
    )
    print(markdown(columns, texts, 1))
    return rows


if __name__ == "__main__":
    main()
