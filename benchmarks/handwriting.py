"""Errors of networks that learn to read handwriting, and what brings how much.

    python benchmarks/handwriting.py results --pages ../wills --fonts fonts/          # the guide's recipe
    python benchmarks/handwriting.py parts --pages ../wills --fonts fonts/            # what brings how much
    python benchmarks/handwriting.py networks --pages ../wills --minutes 20 60       # with equal parameters

The folder holds pages with ALTO or PAGE XML, as eScriptorium exports them, or as the data set
CREMMA-AN-TestamentDePoilus (https://doi.org/10.5281/zenodo.10177106) is downloaded. Without splits.json,
one page in ten is for validation and one for testing. Lines are rendered by `examples/render_lines.py` from
the texts that a row is trained on.

The minutes are those of one core, or of two that share each batch. They are counted as steps, which are
timed before the first training (those of two cores by the clock: let nothing else run meanwhile), so that
other work on the machine changes no result. Set OMP_NUM_THREADS=1: threads of NumPy's libraries that wait
count as processor time. With `--processes 1`, what two cores would share is trained on
one, in the same steps: two trainings side by side then take less time than one after the other.

Test errors are measured greedy, and with a beam search and a language model of the training texts alone. A
training is kept in the file of results when it is finished, and one that was interrupted goes on. `--write`
puts what is there of a table into the guide.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, product
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rival_networks  # noqa: F401  it registers the rivals
import torch
from equal_time import Patches, gain_of_processes, patched, seconds_a_step, trained
from measuring import (
    RESULTS,
    ROOT,
    argument_parser,
    hold_settings,
    interleave,
    markdown,
    prefix_of,
    python,
    read_cells,
    resumed,
    settings_of,
    write_between_markers,
)

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.io import Array
from mdlstm_tk.runtime import Session
from mdlstm_tk.text import CharacterModel, folders, networks, read_lines, transcribe_training
from mdlstm_tk.text.calibration import LM_FILE
from mdlstm_tk.text.ctc import BEAM
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.measures import Line, describe_lines, evaluate_lines
from mdlstm_tk.text.pages import Page, PageLine, is_page, read_page
from mdlstm_tk.training import Run, TrainConfig, configure, load_checkpoint, make_task
from mdlstm_tk.training.comparison import with_equal_parameters

NETWORKS = {"default": "", "rows": "line-rows", "blstm": "line-blstm"}  # models of `rival_networks`
SHARES = {"test": 0.1, "valid": 0.1}  # of the pages, where no splits.json divides them
RENDERED_SHARE = 0.25  # of the minutes
CORES = 2  # that share a training at most
TIMING_SECONDS = 100  # in which steps take turns
TIMED_LINES = 100  # that are read to measure the speed of a model
FEW_LINES = 700
RENDERED_LINES = 12_000
COLUMNS = (
    *("training", "parameters", "steps", "CER, %", "WER, %"),
    *("CER with LM, %", "WER with LM, %", "ECE", "ECE with LM", "lines/s", "lines/s with LM", "MB"),
)


def cut_box(pixels: Array, line: PageLine) -> Array:
    """Cut the box of a line, whatever its outline is."""
    corners = next(each for each in (line.polygon, line.baseline) if each is not None)
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return cut_line(pixels, line._replace(polygon=box, baseline=None))


def normalise_all(norm: Any, x: Any, sizes: Any) -> Any:
    """Normalise all positions, those of the padding, too; 0 outside the valid ones."""
    return networks.clear_padding(norm(x), sizes)


def all_steps(batch: Any, steps: int, columns: int | None = None) -> Any:
    """The steps of all lines of a batch, as if none were padded."""
    return torch.full((len(batch.x),), steps)


class Part(NamedTuple):
    """A difference from a training on one core with the default settings, in 16 bits.

    Attributes:
        settings: changed settings.
        patches: functions of the package and what takes their place.
        processes: that share each batch, one on each core.
        is_rendered_first: a share of the minutes goes to rendered lines.
    """

    settings: Mapping[str, Any] = {}
    patches: Patches = ()
    processes: int = 1
    is_rendered_first: bool = False


PARTS = {
    "defaults": Part(),
    "statistics of padding": Part(patches=((networks, "normalise_valid", normalise_all),)),
    "no lengths": Part(patches=((transcribe_training, "line_steps", all_steps),)),
    "boxes": Part(patches=((folders, "cut_line", cut_box),)),
    "float32": Part({"precision": "fp32"}),
    "two cores": Part(processes=2),
    "rendered lines first": Part(is_rendered_first=True),
    "no distortion": Part({"augment": 0.0}),
    "distortion 1.5": Part({"augment": 1.5}),
    "no dropout": Part({"dropout": 0.0}),
    "dropout 0.35": Part({"dropout": 0.35}),
    "two layers along columns": Part({"layers": 2}),
    "no average": Part({"average": 0.0}),
    "recipe": Part({"augment": 1.5, "dropout": 0.35}, processes=2, is_rendered_first=True),
}


class Training(NamedTuple):
    """A row of a table.

    Attributes:
        part: of PARTS.
        network: of NETWORKS.
        minutes: of the training, those on rendered lines included.
        lines: of training, about; None: all.
        seed: of the training.
    """

    part: str
    network: str
    minutes: float
    lines: int | None
    seed: int

    def __str__(self) -> str:
        lines = f"{self.lines} lines" if self.lines else "all lines"
        return f"{self.network}, {self.part}, {self.minutes:g} min, {lines}, seed {self.seed}"


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
    by_prefix: dict[str | None, list[tuple[Path, Page]]] = {}
    for name in names:
        try:
            page = read_page(paths[name])
            by_prefix.setdefault(prefix_of(name, prefixes), []).append((paths[name], page))
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    random.Random(0).shuffle(splits["train"])
    counts = [
        sum(bool(line.text) for _, page in by_prefix.get(p, ()) for line in page.lines)
        for p in splits["train"]
    ]
    enough = next((k for k, total in enumerate(accumulate(counts), 1) if total >= (lines or inf)), None)
    splits["train"] = splits["train"][:enough]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    for path, page in (each for split in splits.values() for p in split for each in by_prefix.get(p, ())):
        for file in (path, page.image):
            link = folder / os.path.relpath(file, source)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())


def divide(source: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The prefixes of each split: those of splits.json, else whole pages."""
    if (source / "splits.json").is_file():
        return read_splits(source)
    shuffled, splits = random.Random(0).sample(names, len(names)), {}
    for split, share in SHARES.items():
        count = max(1, round(share * len(names)))
        splits[split], shuffled = shuffled[:count], shuffled[count:]
    return {"train": shuffled, **splits}


def read_splits(folder: Path) -> dict[str, list[str]]:
    """The prefixes of each split."""
    splits: dict[str, list[str]] = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    return splits


def errors_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Errors of all lines, and what `describe_lines` says about them."""
    edits, characters, word_edits, words = map(sum, zip(*(line.counts for line in lines), strict=True))
    described = describe_lines(lines)
    kept = {name: described[name] for name in ("intervals", "groups", "calibration_error")}
    return {"character_error": edits / characters, "word_error": word_edits / words, **kept}


def configuration(training: Training, options: argparse.Namespace, data: str = "pages") -> TrainConfig:
    """The configuration of a training, but for its number of steps."""
    folder = options.output / f"{data}-{training.lines or 'all'}"
    settings = {"task": "transcribe", "precision": "bf16", "seed": training.seed, "data": str(folder)}
    config = configure(**{**settings, **PARTS[training.part].settings, **settings_of(options.set)})
    model = NETWORKS[training.network]
    return with_equal_parameters(config, model, make_task(config)) if model else config


def count_steps(options: argparse.Namespace) -> Callable[[Training], int]:
    """A function that tells how many steps of a training take its minutes; they are timed where the file of
    results does not tell."""
    every = trainings(argparse.Namespace(**{**vars(options), "only": None}))
    first = {f"{each.network}, {each.part}": each._replace(seed=0) for each in reversed(every)}
    configs = {name: configuration(each, options) for name, each in first.items()}
    patches = {name: PARTS[each.part].patches for name, each in first.items()}
    seconds = min(TIMING_SECONDS, 6 * every[0].minutes)
    cells: dict[str, Callable[[], Any]] = {
        f"seconds a step, {', '.join(configs)}": partial(seconds_a_step, configs, seconds, patches)
    }
    if any(PARTS[each.part].processes > 1 for each in trainings(options)):
        cells["gain of two cores"] = partial(gain_of_processes, next(iter(configs.values())), CORES)
    kept = resumed(options.results, cells)
    taken = kept[next(iter(cells))]

    def count(training: Training) -> int:
        gain = kept["gain of two cores"] if PARTS[training.part].processes > 1 else 1
        one = taken[f"{training.network}, {training.part}"]
        return max(2, round(60 * training.minutes * gain / one))

    return count


def train_network(training: Training, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a network, read the test lines with it, export it, and measure the exported file."""
    part, folder = PARTS[training.part], options.output / str(training).replace(", ", "-").replace(" ", "")
    processes, config = min(part.processes, options.processes), configuration(training, options)
    with patched(part.patches):
        if part.is_rendered_first:
            first = configuration(training, options, "rendered")
            first = replace(first, steps=round(RENDERED_SHARE * steps))
            trained(first, folder / "rendered", processes=processes)
            config = replace(config, init=str(folder / "rendered"), steps=steps - first.steps)
        else:
            config = replace(config, steps=steps)
        task, run = make_task(config), Run(folder / "run")
        result = trained(config, run.folder, task, processes)
        row = {"parameters": result["parameters"], "steps": steps, "best step": result["step"]}
        assert result["split"] == "test", "splits.json names no test pages"
        best = load_checkpoint(run.best)
        task.spec = best.spec  # with its decoding
        hands = read_splits(Path(config.data))["test"]
        lm = CharacterModel.load(run.folder / LM_FILE)
        searches: dict[str, dict[str, Any]] = {"greedy": {}, "lm": {"beam": BEAM, "lm": lm}}
        for kind, search in searches.items():
            lines = evaluate_lines(best.network(), task, "test", **search)
            lines = [replace(line, group=prefix_of(line.group, hands) or "") for line in lines]
            row[kind] = errors_of(lines)
    model_file = folder / "model.onnx"
    export_run(run, model_file, padded=True, force=True)
    samples = task.sets["test"].samples  # type: ignore[attr-defined]
    images = [sample.read()[0] for sample in samples[:TIMED_LINES]]
    session = Session(model_file, device="cpu", threads=1)
    for name, search in (("speed", {}), ("speed_lm", searches["lm"])):
        reading = {name: partial(read_lines, session, images, **search)}
        row[name] = len(images) / float(interleave(reading, 0, least=2)[name].min())
    row["bytes"] = model_file.stat().st_size
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of COLUMNS; a rate stands with its interval."""

    def rate(errors: Mapping[str, Any], name: str) -> str:
        interval = errors["intervals"][name]
        ends = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
        return f"{100 * errors[name]:.1f}{ends}"

    texts = []
    for name, row in rows.items():
        searches = "greedy", "lm"
        rates = [
            rate(row[search], f"{unit}_error") for search in searches for unit in ("character", "word")
        ]
        calibration = [f"{row[search]['calibration_error']:.3f}" for search in searches]
        speeds = [f"{row[key]:.1f}" for key in ("speed", "speed_lm")]
        labels = name, f"{row['parameters']:,}", f"{row['steps']:,}"
        texts.append([*labels, *rates, *calibration, *speeds, f"{row['bytes'] / 1e6:.1f}"])
    return markdown(COLUMNS, texts, 1)


def trainings(options: argparse.Namespace) -> list[Training]:
    """The rows of the table that is asked for."""
    seeds = range(options.seeds or {"networks": 3}.get(options.what, 2))
    minutes = options.minutes or {"results": [60], "parts": [20]}.get(options.what, [20, 60])
    if options.what == "results":
        return [Training("recipe", "default", *each) for each in product(minutes, (None, FEW_LINES), seeds)]
    if options.what == "parts":
        names = [each for each in PARTS if each != "recipe" and each in (options.only or PARTS)]
        return [
            Training(part, "default", m, None, seed) for part in names for m in minutes for seed in seeds
        ]
    return [
        Training("defaults", network, m, None, s) for m, s, network in product(minutes, seeds, NETWORKS)
    ]


def render_lines(pages: Path, fonts: Path, folder: Path, count: int) -> None:
    """Render lines with the texts that a folder of pages is trained on, unless they are there."""
    if not folder.exists():
        part = folder.with_suffix(".part")
        print(python(ROOT / "examples/render_lines.py", pages, part, "--font", fonts, "--count", count))
        part.rename(folder)


def published(what: str, file: Path) -> str:
    """What the guide shows of a table: the rows that were measured; "" if none was."""
    wanted = trainings(argparse.Namespace(what=what, seeds=None, minutes=None, only=None))
    cells = read_cells(file)
    rows = {str(each): cells[str(each)] for each in wanted if str(each) in cells}
    return table(rows) if rows else ""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is missing in the file of results, print the table, and return its rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("what", choices=("results", "parts", "networks"))
    parser.add_argument("--pages", type=Path, required=True, help="folder of pages with ALTO or PAGE XML")
    parser.add_argument("--fonts", type=Path, help="folder of fonts, for rendered lines")
    parser.add_argument("--count", type=int, default=RENDERED_LINES, help="of rendered lines")
    parser.add_argument("--minutes", type=float, nargs="+", help="of a training; the default is the page's")
    parser.add_argument("--seeds", type=int, help="of each training; the default is the page's")
    help = "that share a training at most"
    parser.add_argument("--processes", type=int, choices=range(1, CORES + 1), default=CORES, help=help)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure, instead of all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    parser.add_argument("-o", "--output", type=Path, default=Path("handwriting"), help="folder of runs")
    parser.add_argument("--write", action="store_true", help="write docs/handwriting.md")
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "handwriting.json", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    wanted = trainings(options)
    is_rendered = any(PARTS[each.part].is_rendered_first for each in wanted)
    if is_rendered and options.fonts is None:
        parser.error("rendered lines need --fonts, a folder of fonts")
    torch.set_num_threads(1)
    hold_settings(options.results, {"set": options.set, "pages": options.pages.resolve().name})
    for lines in {each.lines for each in wanted}:
        pages, rendered = (options.output / f"{each}-{lines or 'all'}" for each in ("pages", "rendered"))
        link_pages(options.pages, pages, lines)
        if is_rendered:
            render_lines(pages, options.fonts, rendered, options.count)
    steps = count_steps(options)
    kept = resumed(
        options.results, {str(each): partial(train_network, each, steps(each), options) for each in wanted}
    )
    rows = {str(each): kept[str(each)] for each in wanted}
    print(table(rows))
    if options.write and (text := published(options.what, options.results)):
        write_between_markers(ROOT / "docs/handwriting.md", f"handwriting-{options.what}", text)
    return rows


if __name__ == "__main__":
    main()
