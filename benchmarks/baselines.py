"""Lines that a network finds on pages of hands that it has not seen, and what is read there.

    python benchmarks/baselines.py --pages wills/ --minutes 60 --processes 2 --recogniser recogniser.onnx

The folder holds pages with ALTO or PAGE XML and a splits.json whose prefixes of test pages are hands. The
default network is trained as `mdlstm train` does, for the minutes of one core or of several that share
each batch, and the exported file finds the lines of the test pages. F1 is the mean over hands, with an
interval of 95 % by bootstrap over them: on the pages as they are, turned by 3°, unevenly lit, and at half
the resolution.

With a recogniser, the characters that are wrong on whole pages are counted: from the photograph alone, and
with the true lines. Lines are paired so that errors are fewest, whatever their order; those that are found
or missed alone count with all characters. One training becomes a row of benchmarks/results/baselines.tsv,
and the table of docs/handwriting.md is printed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from handwriting import DRAWS, pages_of, pixels_of, train
from measuring import RESULTS, Row, add_row, argument_parser, markdown, read_rows, settings_of
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from mdlstm_tk.export import export_run
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import to_grey
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import cut_line, find_lines, read_lines
from mdlstm_tk.text.baselines_training import same_lines
from mdlstm_tk.text.geometry import spacing_of
from mdlstm_tk.text.pages import Page

ANGLE = np.radians(3)
COLUMNS = ("training", "steps", "F1", "turned", "lit", "halved", "wrong, %", "with true lines", "s a page")
Damaged = tuple[Array, list[Array]]  # the image and its baselines


def whole(pixels: Array, lines: list[Array]) -> Damaged:
    return pixels, lines


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


DAMAGES: dict[str, Callable[..., Damaged]] = {f.__name__: f for f in (whole, turned, lit, halved)}


def measure(model: Path, pages: Sequence[tuple[str, Page]], recogniser: Session | None) -> dict[str, Any]:
    """F1 of a model on pages of hands, characters wrong, and seconds a page."""
    by_hand: dict[str, dict[str, list[tuple[int, int, int]]]] = {name: {} for name in DAMAGES}
    edits, seconds, session = np.zeros((2, 2), int), 0.0, Session(model, device="cpu")
    for hand, page in pages:
        pixels = pixels_of(page)
        pixels = to_grey(pixels) if pixels.ndim == 3 else pixels
        baselines = [line.baseline for line in page.lines if line.baseline is not None]
        known = [line for line in page.lines if line.text]
        for name, damage in DAMAGES.items():
            image, true = damage(pixels, baselines)
            start = time.process_time()
            found = find_lines(session, image)
            seconds += time.process_time() - start
            lines = [line.baseline for line in found if line.baseline is not None]
            pairs = same_lines(lines, true, spacing_of(true, len(image)))
            by_hand[name].setdefault(hand, []).append((len(pairs), len(found), len(true)))
            for k, each in enumerate((found, known) if recogniser and damage is whole else ()):
                images = [cut_line(pixels, line) for line in each]
                read = (
                    [line.text for line in read_lines(recogniser, images)] if recogniser and images else []
                )
                edits[k] += page_edits(read, [line.text or "" for line in known])
    row: dict[str, Any] = {}
    for name, counts in by_hand.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(counts), strict=True))
    wrong = (edits[:, 0] / np.maximum(edits[:, 1], 1)).tolist() if recogniser else ["", ""]
    row |= dict(zip(("wrong", "wrong_true_lines"), wrong, strict=True))
    return row | {"seconds": seconds / len(DAMAGES) / len(pages)}


def table(rows: Sequence[Row]) -> str:
    """The trainings with their intervals."""
    lines = []
    for row in rows:
        cores = f" of {row['processes']} cores" if row["processes"] != "1" else ""
        f1 = [
            "{:.3f} ({:.3f}–{:.3f})".format(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))
            for name in DAMAGES
        ]
        wrong = [f"{100 * float(row[k]):.1f}" if row[k] else "" for k in ("wrong", "wrong_true_lines")]
        label = f"{row['minutes']} min{cores}, seed {row['seed']}"
        lines.append([label, f"{int(row['steps']):,}", *f1, *wrong, f"{float(row['seconds']):.2f}"])
    return markdown(COLUMNS, lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="folder of pages with ALTO or PAGE XML")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recogniser", type=Path, help="an exported model that reads lines")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--results", type=Path, default=RESULTS / "baselines.tsv")
    options = parser.parse_args(words)
    settings = {
        "task": "baselines",
        "data": options.pages,
        "minutes": options.minutes,
        "seed": options.seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = train(settings | settings_of(options.set), Path(folder, "run"), options.processes)
        model = export_run(run, folder, form="scan").path
        recogniser = Session(options.recogniser, device="cpu") if options.recogniser else None
        row = {"minutes": f"{options.minutes:g}", "processes": options.processes, "seed": options.seed}
        row |= {"steps": len(run.read_metrics())}
        add_row(options.results, row | measure(model, pages_of(options.pages, "test"), recogniser))
    print(table(read_rows(options.results)))


if __name__ == "__main__":
    main()
