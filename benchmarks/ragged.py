"""The cost of a padded batch with `sizes`, beside the same batch without them.

    python benchmarks/ragged.py                    # takes half a minute on an otherwise idle machine
    python benchmarks/ragged.py --training         # two tasks instead; takes a minute

Heights are uniform from half to the full one, widths from a fifth to the full one, and drawn anew for every
call, as in training; so a call includes the time of the tables that are made of them. Times are CPU times
of the one thread, so other programs disturb them little. Each step runs twice in a round, and the second
time counts: the first one finds memory as another step has left it.

With `--training`, steps of `mdlstm train` take turns with the same steps computing the padding, too, which
is the least that they took before version 0.5. One task is `digit-strings`; the other transcribes lines of
text that Pillow draws, each as wide as its text.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import mean
from unittest import mock

import numpy as np
import torch
from contenders import peak_bytes, torch_threads
from measuring import argument_parser, cpu_times, markdown
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mdlstm_tk import MDLSTM, layer
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.training import TrainConfig, default_config, new_job
from mdlstm_tk.training.tasks import make_task
from mdlstm_tk.training.trainer import Trainer

BATCH, GRID, WINDOW, UNITS = 16, (48, 400), (4, 2), 32
LABEL = "16, 48x400, 1, 32, windows 4x2, directions=all"
COLUMNS = ("sizes", "valid positions", "pass", "ms", "÷ without sizes", "peak MiB")
TRAINING_COLUMNS = ("task", "valid positions", "all: steps/s", "valid: steps/s", "ratio of times")
LINES, LINE_HEIGHT, MARGIN = 256, 48, 8  # lines of text, and pixels


def draw_sizes(generator: torch.Generator) -> Tensor:
    """(N, D) sizes of one batch."""
    least = (GRID[0] // 2, GRID[1] // 5)
    columns = [
        torch.randint(low, high + 1, (BATCH,), generator=generator)
        for low, high in zip(least, GRID, strict=True)
    ]
    return torch.stack(columns, dim=1)


def valid_share(sizes: Tensor) -> float:
    """The share of valid positions, of those that are left after windows."""
    window = torch.tensor(WINDOW)
    positions = ((sizes + window - 1) // window).prod(dim=1)
    return float(positions.double().mean() / (torch.tensor(GRID) // window).prod())


def measure(training: bool, seconds: float) -> list[list[str]]:
    """Measure the three rows of one pass, on one thread."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    module = MDLSTM(1, UNITS, directions="all", window=WINDOW)
    x, full = torch.randn(BATCH, *GRID, 1), torch.tensor([GRID] * BATCH)
    grad = torch.randn_like(module(x).detach())
    shares: list[float] = []

    def run(sizes: Tensor | None) -> None:
        if training:
            module.zero_grad()
            module(x, sizes).backward(grad)
        else:
            with torch.no_grad():
                module(x, sizes)

    def ragged() -> None:
        sizes = draw_sizes(generator)
        shares.append(valid_share(sizes))
        run(sizes)

    steps = {"none": lambda: run(None), "all full": lambda: run(full), "drawn": ragged}
    rows, pass_name = [], "training" if training else "forward"
    with torch_threads(1):
        times = {name: runs[:, 1] for name, runs in cpu_times(steps, seconds, runs=2).items()}
        for name, step in steps.items():
            share = mean(shares) if name == "drawn" else 1.0
            milliseconds, ratio = np.median(times[name]) * 1e3, np.median(times[name] / times["none"])
            peak = peak_bytes(step, torch.device("cpu")) / 2**20
            figures = f"{milliseconds:.1f}", f"{ratio:.2f}", f"{peak:.1f}"
            rows.append([name, f"{share:.0%}", pass_name, *figures])
    return rows


def table(seconds: float = 8.0) -> list[list[str]]:
    """The rows of COLUMNS."""
    return [row for training in (False, True) for row in measure(training, seconds)]


def write_lines(folder: Path) -> None:
    """Write images of lines of text, 2 to 8 words of this file's first paragraphs, and `labels.tsv`."""
    rng, font = np.random.default_rng(0), ImageFont.load_default(24)
    words = re.findall("[a-z]+", str(__doc__))
    labels = []
    for k in range(LINES):
        text = " ".join(rng.choice(words, rng.integers(2, 9)))
        image = Image.new("L", (round(font.getlength(text)) + 2 * MARGIN, LINE_HEIGHT), "white")
        ImageDraw.Draw(image).text((MARGIN, MARGIN), text, fill="black", font=font)
        image.save(folder / f"{k}.png")
        labels.append(f"{k}.png\t{text}\n")
    (folder / "labels.tsv").write_text("".join(labels), encoding="utf-8")


@contextmanager
def padding_computed() -> Iterator[None]:
    """Sweeps compute all positions. Masking them would be further work, and is left out."""
    sweep = layer.sweep

    def dense(inputs: SweepInputs, backend: str, recompute: bool) -> tuple[Tensor, Tensor | None]:
        return sweep(inputs._replace(sizes=None), backend, recompute)

    with mock.patch.object(layer, "sweep", dense):
        yield


def measure_training(name: str, config: TrainConfig, seconds: float) -> list[str]:
    """Measure one row of TRAINING_COLUMNS: the same batches in both ways, on one thread."""
    task = make_task(config)
    with tempfile.TemporaryDirectory() as folder:
        jobs = {way: new_job(config, Path(folder, way), task=task) for way in ("all", "valid")}
    trainers = {way: Trainer(job) for way, job in jobs.items()}
    times: dict[str, list[float]] = {way: [] for way in trainers}
    shares = []
    with torch_threads(1):
        end = time.perf_counter() + seconds
        for step in count():
            start = time.process_time()
            batch = task.batch(config.seed, step, config.batch_size)
            reading = time.process_time() - start
            for way, trainer in trainers.items():
                with padding_computed() if way == "all" else nullcontext():
                    start = time.process_time()
                    trainer.train_step(batch, interrupted=False)
                    times[way].append(reading + time.process_time() - start)
            positions = len(batch.x) * np.prod(batch.x.shape[1:-1])
            shares.append(1.0 if batch.sizes is None else batch.sizes.prod(1).sum() / positions)
            if step == 0:
                times = {way: [] for way in trainers}  # the first steps compile
            elif time.perf_counter() > end:
                break
    rates = [f"{1 / mean(series):.1f}" for series in times.values()]
    return [name, f"{mean(shares):.0%}", *rates, f"{sum(times['valid']) / sum(times['all']):.2f}"]


def training_table(seconds: float = 30.0) -> list[list[str]]:
    """The rows of TRAINING_COLUMNS."""
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder))
        configs = {
            "digit-strings": default_config("digit-strings"),
            "lines of text": default_config("transcribe", data=folder),
        }
        return [
            measure_training(name, replace(config, device="cpu"), seconds)
            for name, config in configs.items()
        ]


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--training", action="store_true", help="measure two tasks instead of the layer")
    if parser.parse_args().training:
        print(markdown(TRAINING_COLUMNS, training_table(), 1))
    else:
        print(f"{LABEL}\n\n{markdown(COLUMNS, table(), 1)}")
