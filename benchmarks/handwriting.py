"""Errors of a network that learns to read handwriting, on hands that it has not seen.

    python benchmarks/handwriting.py --pages wills/ --minutes 20 --seed 1
    python benchmarks/handwriting.py --pages wills/ --minutes 20 --network rows
    python benchmarks/handwriting.py --pages wills/ --minutes 60 --name recipe --processes 2 \\
        --fonts fonts/ --set augment=1.5 --set dropout=0.35

The folder holds pages with ALTO or PAGE XML and a splits.json whose prefixes of test pages are hands. One
training becomes a row of benchmarks/results/handwriting.tsv, and the table of docs/handwriting.md is
printed. The minutes are those of one core, or of two that share each batch (`--processes 2`). With
`--fonts`, a quarter of them goes to lines that `examples/render_lines.py` draws from the texts of training.

Test lines are read by the exported file: greedy, and with a beam search and a language model of the
training texts alone. Intervals of 95 % are a bootstrap over hands.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import rival_networks  # noqa: F401  it registers the rivals
from measuring import RESULTS, ROOT, Row, add_row, argument_parser, markdown, python, read_rows, settings_of
from rapidfuzz.distance import Levenshtein

from mdlstm_tk.export import export_run
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import CharacterModel, cut_line, read_lines, read_page
from mdlstm_tk.text.pages import Page
from mdlstm_tk.training import Run, configure, make_task
from mdlstm_tk.training.comparison import with_equal_parameters

NETWORKS = {"default": "lines", "rows": "line-rows", "blstm": "line-blstm"}  # of `rival_networks`
RENDERED_SHARE, RENDERED_LINES = 0.25, 12_000  # of the minutes that go to them
BEAM = 64
DRAWS = 4000  # of hands, for an interval
RATES = ("cer", "lm_cer", "wer", "lm_wer")
COLUMNS = (
    *("network, training, minutes", "lines", "seeds", "parameters", "steps"),
    *("CER, %", "CER with LM, %", "WER, %", "WER with LM, %", "lines/s", "lines/s with LM"),
)


def pages_of(folder: Path, split: str) -> list[tuple[str, Page]]:
    """The pages of a split, each with its hand: the prefix of splits.json with which its name begins."""
    hands = json.loads((folder / "splits.json").read_text(encoding="utf-8"))[split]
    paths = sorted(folder.rglob("*.xml"))
    pairs = [(hand, path) for path in paths for hand in hands if path.name.startswith(hand)]
    return [(hand, read_page(path)) for hand, path in pairs]


def pixels_of(page: Page) -> Array:
    """The image of a page."""
    return decode_image(page.image.read_bytes(), page.image.name)


def link_pages(source: Path, folder: Path, lines: int) -> None:
    """Link the pages of a folder into another, with a splits.json that leaves out hands of training, so
    that at least so many lines are left."""
    splits = json.loads((source / "splits.json").read_text(encoding="utf-8"))
    counts = Counter[str]()
    for hand, page in pages_of(source, "train"):
        counts[hand] += sum(bool(line.text) for line in page.lines)
    kept: list[str] = []
    for hand in random.Random(0).sample(sorted(counts), len(counts)):
        if sum(counts[each] for each in kept) < lines:
            kept.append(hand)
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / "splits.json").unlink()
    (folder / "splits.json").write_text(json.dumps({**splits, "train": kept}), encoding="utf-8")


def train(settings: dict[str, Any], folder: Path, processes: int) -> Run:
    """A run, trained by `mdlstm train` in processes of one thread each."""
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = ["--import", ROOT / "benchmarks/rival_networks.py", "train", *words, "-o", folder]
    python("-m", "mdlstm_tk", *command, "--processes", processes, OMP_NUM_THREADS="1")
    return Run(folder)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, export, and read the test lines; returns the end of a row."""
    pages = options.pages
    if options.lines:
        pages = folder / "pages"
        link_pages(options.pages, pages, options.lines)
    settings: dict[str, Any] = {"task": "transcribe", "data": pages, "minutes": options.minutes}
    settings |= {"seed": options.seed, "precision": "bf16", **settings_of(options.set)}
    base = configure(**{name: str(value) for name, value in settings.items()})
    config = with_equal_parameters(base, NETWORKS[options.network], make_task(base))
    settings |= {"model": config.model, "hidden": config.hidden}
    if options.fonts:
        render = [pages, folder / "rendered", "--font", options.fonts, "--count", options.count]
        print(python(ROOT / "examples/render_lines.py", *render), file=sys.stderr)
        first = {"data": folder / "rendered", "minutes": RENDERED_SHARE * options.minutes}
        started = train({**settings, **first}, folder / "first", options.processes)
        settings |= {"init": started.folder, "minutes": (1 - RENDERED_SHARE) * options.minutes}
    run = train(settings, folder / "run", options.processes)
    result = run.read_result()
    row = {"parameters": result["parameters"], "steps": len(run.read_metrics())}
    report = export_run(run, folder, padded=True)
    session, lm = Session(report.path, "cpu"), CharacterModel.load(run.folder / "lm.arpa.gz")
    lines = [
        (hand, line.text, cut_line(pixels, line))
        for hand, page in pages_of(pages, "test")
        for pixels in [pixels_of(page)]
        for line in page.lines
        if line.text
    ]
    for prefix, search in (("", {}), ("lm_", {"beam": BEAM, "lm": lm})):
        start = time.process_time()
        read = [line.text for line in read_lines(session, [image for *_, image in lines], **search)]
        seconds = time.process_time() - start
        pairs = [(text, truth, hand) for text, (hand, truth, _) in zip(read, lines, strict=True)]
        cer, low, high = error(pairs)
        row |= {f"{prefix}cer": cer, f"{prefix}cer_low": low, f"{prefix}cer_high": high}
        row[f"{prefix}wer"] = error([(a.split(), b.split(), hand) for a, b, hand in pairs])[0]
        row[f"{prefix}speed"] = len(lines) / seconds
    return row


def error(pairs: Sequence[tuple[Sequence[str], Sequence[str], str]]) -> tuple[float, float, float]:
    """Edits divided by the length of the truth, and the interval of that, of (read, truth, hand)."""
    sums: dict[str, Any] = {}
    for read, truth, hand in pairs:
        sums[hand] = sums.get(hand, 0) + np.array([Levenshtein.distance(read, truth), len(truth)])
    by_hand = np.array([*sums.values()])  # (hands, 2)
    drawn = by_hand[np.random.default_rng(0).integers(0, len(by_hand), (DRAWS, len(by_hand)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    edits, length = by_hand.sum(0)
    return float(edits / length), float(low), float(high)


def table(rows: Sequence[Row]) -> str:
    """Means and, in brackets, the worst of the seeds of each training."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        label = f"{row['network']}, {row['training']}, {row['minutes']} min"
        groups.setdefault((label, row["lines"]), []).append(row)
    lines = []
    for (label, count), of in groups.items():
        numbers = {name: [float(row[name]) for row in of] for name in (*RATES, "speed", "lm_speed")}
        rates = [f"{100 * mean(numbers[name]):.1f} ({100 * max(numbers[name]):.1f})" for name in RATES]
        speeds = [f"{mean(numbers[name]):.0f}" for name in ("speed", "lm_speed")]
        sizes = [str(len(of)), f"{int(of[0]['parameters']):,}", f"{int(of[0]['steps']):,}"]
        lines.append([label, count, *sizes, *rates, *speeds])
    return markdown(COLUMNS, lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="folder of pages with ALTO or PAGE XML")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="default")
    parser.add_argument("--name", default="defaults", help="of the training, in the table")
    parser.add_argument("--lines", type=int, help="of training, about; the default is all")
    parser.add_argument("--fonts", type=Path, help="folder of fonts, for rendered lines")
    parser.add_argument("--count", type=int, default=RENDERED_LINES, help="of rendered lines")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--results", type=Path, default=RESULTS / "handwriting.tsv")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        row: dict[str, Any] = {"network": options.network, "training": options.name}
        row |= {"minutes": f"{options.minutes:g}", "lines": options.lines or "all", "seed": options.seed}
        add_row(options.results, row | measure(options, Path(folder)))
    print(table(read_rows(options.results)))


if __name__ == "__main__":
    main()
