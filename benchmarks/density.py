"""Density models: the errors of networks of equal size, and how long drawing takes.

    python benchmarks/density.py table digits-binary   # a quarter of an hour; digits-grey, fashion or ising
    python benchmarks/density.py drawing               # 64 pictures of 28×28; a minute

Each network has the learning rate, dropout and number of layers that were best on validation data of seed
0, in shorter runs that changed one setting after the other. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import rival_networks  # noqa: F401, registers conv, row and snake
import torch
from measuring import argument_parser, interleave, markdown, milliseconds, resumed

from mdlstm_tk.data import Ising
from mdlstm_tk.density.given import uniform_numbers
from mdlstm_tk.models import DensityNet, PixelNet
from mdlstm_tk.training import default_config, new_job, parse_settings, train
from mdlstm_tk.training.comparison import with_parameters
from mdlstm_tk.training.networks import build_network, count_parameters
from mdlstm_tk.training.tasks import make_task

COLUMNS = ("density", "parameters", "settings", "nats", "lowest–highest", "bits per dimension")
COMMON: dict[str, dict[str, Any]] = {  # settings that all networks of a task share
    "digits-binary": {"steps": 2000},
    "digits-grey": {"steps": 2000},
    "fashion": {
        "steps": 1200,
        "hidden": 32,
        "layers": 2,
    },  # `pixel` then has as many parameters as all have
    "ising": {"steps": 2000, "size": "16"},
}
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    "digits-binary": {
        "pixel": {"lr": 0.01, "dropout": 0.15, "layers": 2},
        "conv": {"lr": 0.02, "dropout": 0.45, "layers": 4},
        "row": {"lr": 0.02, "dropout": 0.15, "layers": 2},
        "snake": {"lr": 0.01, "dropout": 0.3, "layers": 2},
    },
    "digits-grey": {
        "pixel": {"lr": 0.02, "dropout": 0.15, "layers": 2},
        "conv": {"lr": 0.005, "dropout": 0.45, "layers": 4},
        "row": {"lr": 0.02, "dropout": 0.15, "layers": 2},
        "snake": {"lr": 0.02, "dropout": 0.3, "layers": 2},
    },
    "fashion": {
        "pixel": {"lr": 0.02, "layers": 1},
        "conv": {"lr": 0.02, "layers": 4},
        "row": {"lr": 0.04, "layers": 2},
        "snake": {"lr": 0.04, "layers": 3},
    },
    "ising": {
        "pixel": {"lr": 0.04, "layers": 1},
        "conv": {"lr": 0.01, "layers": 2},
        "row": {"lr": 0.04, "layers": 2},
        "snake": {"lr": 0.04, "layers": 2},
    },
}


def table(name: str, options: argparse.Namespace) -> None:
    """Train all networks, and print their errors and those of the baselines, the best one first."""
    base = default_config(name).updated(COMMON[name] | parse_settings(options.set), "here")
    task = make_task(base)
    target = count_parameters(build_network(base, task.spec))
    cells: dict[str, Callable[[], Any]] = {}
    for seed in range(options.seeds):
        of_seed = replace(base, seed=seed)
        for model, settings in CHOSEN[name].items():
            config = with_parameters(replace(of_seed, model=model, **settings), task.spec, target)
            job = partial(new_job, config, options.runs / name / f"{model}-{seed}", True)
            cells[f"{model} {seed}"] = lambda job=job: train(job())
        samples = base.steps * base.batch_size
        cells[f"baselines {seed}"] = partial(make_task(of_seed).baselines, seed, samples)
    results = resumed(options.runs / f"{name}.json", cells)
    errors = {
        model: [results[f"{model} {k}"]["errors"] for k in range(options.seeds)] for model in CHOSEN[name]
    }
    of_baselines = [results[f"baselines {k}"] for k in range(options.seeds)]
    errors |= {each: [of_seed[each] for of_seed in of_baselines] for each in of_baselines[0]}
    rows = []
    for each in sorted(errors, key=lambda each: mean(e["nats"] for e in errors[each])):
        nats, bits = ([e[error] for e in errors[each]] for error in ("nats", "bits_per_dim"))
        parameters = f"{results[f'{each} 0']['parameters']:,}" if each in CHOSEN[name] else ""
        settings = ", ".join(f"{key} {value}" for key, value in CHOSEN[name].get(each, {}).items())
        figures = f"{mean(nats):.2f}", f"{min(nats):.2f}–{max(nats):.2f}", f"{mean(bits):.3f}"
        rows.append([each, parameters, settings, *figures])
    print(markdown(COLUMNS, rows))
    if isinstance(task, Ising):
        print(f"\nentropy: {task.entropy:.3f} nats")


def drawing(count: int, extent: int) -> None:
    """Print how long drawing takes with kept states, and by computing the whole grid for each position."""
    torch.manual_seed(0)
    network, size = PixelNet(1, 1, hidden=32, layers=2).eval(), (extent, extent)
    numbers = torch.from_numpy(uniform_numbers(0, count, size, 1))

    def draw() -> torch.Tensor:
        return network.sample(count, size, uniform=numbers)

    kept = milliseconds(interleave({"": draw}, 0, clock=time.process_time)[""]) / 1000
    drawn = draw()
    network.contexts = lambda x: DensityNet.contexts(network, x)  # type: ignore[method-assign]
    start = time.process_time()
    different = int((drawn != draw()).sum())
    whole = time.process_time() - start
    rows = [["whole grid for each position", f"{whole:.2f}", "1"]]
    rows += [["kept states", f"{kept:.2f}", f"{whole / kept:.0f}"]]
    print(markdown(("", "seconds", "times faster"), rows, 1))
    print(f"\n{different} of {drawn.numel()} values differ")


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", choices=("table", "drawing"))
    parser.add_argument("task", nargs="?", choices=CHOSEN, default="digits-binary")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    parser.add_argument("--runs", type=Path, default=Path("runs/density"))
    parser.add_argument("--pictures", type=int, default=64, help="to draw")
    parser.add_argument("--extent", type=int, default=28, help="of the pictures to draw")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.what == "table":
        table(options.task, options)
    else:
        drawing(options.pictures, options.extent)


if __name__ == "__main__":
    main()
