"""Errors of networks that learn to read handwriting in equal time, with equal parameters.

    python benchmarks/handwriting.py --pages ../wills --minutes 60 --seeds 3

The folder holds pages with ALTO or PAGE XML, as eScriptorium exports them, or as the data set
CREMMA-AN-TestamentDePoilus (https://doi.org/10.5281/zenodo.10177106) is downloaded. Without splits.json,
one page in ten is for validation and one for testing.

Each network is trained as `mdlstm train` trains it, for as many minutes: the default one, the same stem
with LSTMs along rows, and the same stem with bidirectional LSTMs over columns, of as many parameters. Their
test errors are measured greedy, and with a beam search and a language model of the training texts alone. A
row is kept in results.json when it is finished, so that an interrupted benchmark goes on where it was, and
several of them, each with networks and threads of its own, may share a folder.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import rival_networks  # noqa: F401  it registers the rivals
from measuring import argument_parser, interleave, markdown, resumed

from mdlstm_tk.data import Split
from mdlstm_tk.data.samples import LazySamples
from mdlstm_tk.data.splits import prefix_of
from mdlstm_tk.data.user_data import UserDataTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.runtime import CharacterModel, Session
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.text import page_folders as pages
from mdlstm_tk.text.decoding import BEAM, LM_FILE, read_run
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.pages import Page, PageLine, is_page, read_page
from mdlstm_tk.text.reading import Line, describe_lines, evaluate_lines
from mdlstm_tk.training import TrainConfig, configure, make_task, new_job, parse_settings, train
from mdlstm_tk.training.comparison import with_equal_parameters
from mdlstm_tk.training.networks import fit_config

NETWORKS = {"default": "", "rows": "line-rows", "blstm": "line-blstm"}  # models of `rival_networks`
SHARES = {"test": 0.1, "valid": 0.1}  # of the pages, where no splits.json divides them
TIMED_LINES = 100  # that are read to measure the speed of a model
COLUMNS = (
    *("network", "parameters", "training lines/s", "CER, %", "WER, %"),
    *("CER with LM, %", "WER with LM, %", "ECE", "lines/s", "lines/s with LM", "MB"),
)


def link_pages(source: Path, folder: Path, lines: int | None) -> None:
    """Link the pages of a folder into another, with a splits.json.

    Args:
        source: pages with XML at any depth.
        folder: is created.
        lines: of training, at least as many, if there are; the others are left out writer by writer.
    """
    paths = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*.xml"))}
    names = [name for name, path in paths.items() if is_page(path)]
    splits = divide(source, names)
    prefixes = [prefix for each in splits.values() for prefix in each]
    by_prefix: dict[str | None, list[Page]] = {}
    for name in names:
        try:
            by_prefix.setdefault(prefix_of(name, prefixes), []).append(read_page(paths[name]))
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    random.Random(0).shuffle(splits["train"])
    counts = [
        sum(bool(line.text) for page in by_prefix.get(p, ()) for line in page.lines)
        for p in splits["train"]
    ]
    enough = next((k for k, total in enumerate(accumulate(counts), 1) if total >= (lines or inf)), None)
    splits["train"] = splits["train"][:enough]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    for page in (page for each in splits.values() for p in each for page in by_prefix.get(p, ())):
        for file in (page.path, page.image):
            link = folder / os.path.relpath(file, source)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())


def divide(source: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The prefixes of each split: those of splits.json, else whole pages."""
    file = source / "splits.json"
    if file.is_file():
        splits: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
        return splits
    shuffled, splits = random.Random(0).sample(names, len(names)), {}
    for split, share in SHARES.items():
        count = max(1, round(share * len(names)))
        splits[split], shuffled = shuffled[:count], shuffled[count:]
    return {"train": shuffled, **splits}


def cut_box(pixels: Array, line: PageLine) -> Array:
    """Cut the box of a line, whatever its outline is."""
    return cut_line(pixels, replace(line, polygon=None, baseline=None))


def errors_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Errors of all lines, and what `describe_lines` says about them."""
    edits, characters, word_edits, words = map(sum, zip(*(line.counts for line in lines), strict=True))
    described = describe_lines(lines)
    kept = {name: described[name] for name in ("intervals", "groups", "calibration_error", "confusions")}
    return {"character_error": edits / characters, "word_error": word_edits / words, **kept}


def train_network(config: TrainConfig, task: UserDataTask, folder: Path) -> dict[str, Any]:
    """Train a network, read the test lines with it, export it, and measure the exported file."""
    job = new_job(config, folder, force=True, task=task)
    result = train(job)
    row: dict[str, Any] = {
        "parameters": result["parameters"],
        "training": (result["steps_per_second"] or 0) * job.config.batch_size,
    }
    split: Split = result["split"]
    lm = CharacterModel.load(job.run.folder / LM_FILE)
    decoding = read_run(job.run)
    searches: dict[str, dict[str, Any]] = {"greedy": {}, "lm": {"beam": BEAM, "lm": lm}}
    for kind, search in searches.items():
        _, lines = evaluate_lines(job.network, task, split, job.config, decoding=decoding, **search)
        row[kind] = errors_of(lines)
    model = folder / "model.onnx"
    export_run(job.run, model, force=True)
    samples = cast("LazySamples", task.sets[split]).samples
    images = [sample.read_x() for sample in samples[:TIMED_LINES]]
    with Session(model, device="cpu") as session:
        for name, search in (("speed", {}), ("speed_lm", searches["lm"])):
            reading = {name: partial(session.transcribe, images, **search)}
            row[name] = len(images) / float(interleave(reading, 0, least=2)[name].min())
    row["bytes"] = model.stat().st_size
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of COLUMNS; a rate stands with its interval."""

    def rate(errors: Mapping[str, Any], name: str) -> str:
        interval = errors["intervals"][name]
        ends = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
        return f"{100 * errors[name]:.1f}{ends}"

    texts = []
    for name, row in rows.items():
        rates = [
            rate(row[search], f"{unit}_error")
            for search in ("greedy", "lm")
            for unit in ("character", "word")
        ]
        speeds = [f"{row[key]:.1f}" for key in ("speed", "speed_lm")]
        labels = name, f"{row['parameters']:,}", f"{row['training']:.1f}"
        error = f"{row['greedy']['calibration_error']:.3f}"
        texts.append([*labels, *rates, error, *speeds, f"{row['bytes'] / 1e6:.1f}"])
    return markdown(COLUMNS, texts, 1)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is missing in results.json, print the table, and return the rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="folder of pages with ALTO or PAGE XML")
    parser.add_argument("--minutes", type=float, default=60, help="of training for each network")
    parser.add_argument("--seeds", type=int, default=1, help="of the first two networks; of others one")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--lines", type=int, help="train on about as many lines instead of all")
    parser.add_argument(
        "--boxes", action="store_true", help="also train the first network on boxes of lines"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("handwriting"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    options = parser.parse_args(arguments)
    file = options.output / "results.json"
    names = ("minutes", "lines", "set")
    settings = {"pages": str(options.pages), **{name: getattr(options, name) for name in names}}
    if resumed(file, {"settings": lambda: settings})["settings"] != settings:
        raise SystemExit(f"{file} was measured with other settings; give another folder with -o")
    link_pages(options.pages, options.output / "pages", options.lines)
    base = {"task": "transcribe", "data": str(options.output / "pages"), "minutes": options.minutes}
    base |= parse_settings(options.set)

    @cache
    def task_of(cut: str) -> UserDataTask:
        return cast("UserDataTask", make_task(configure(base)))

    def network(name: str, cut: str, seed: int) -> dict[str, Any]:
        with patch.object(pages, "cut_line", cut_box) if cut == "box" else nullcontext():
            task, config = task_of(cut), configure(base | {"seed": seed})
            if NETWORKS[name]:
                config = with_equal_parameters(fit_config(config, task), NETWORKS[name], task.spec)
            return train_network(config, task, options.output / f"{name}-{cut}-{seed}")

    cells = {
        f"{name}, seed {seed}": partial(network, name, "polygon", seed)
        for position, name in enumerate(options.networks)
        for seed in range(options.seeds if position < 2 else 1)
    }
    if options.boxes:
        first = options.networks[0]
        cells[f"{first}, boxes, seed 0"] = partial(network, first, "box", 0)
    results = resumed(file, cells)
    rows = {name: row for name, row in results.items() if name != "settings"}
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
