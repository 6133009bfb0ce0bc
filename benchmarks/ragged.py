"""The cost of a padded batch with `sizes`, beside the same batch without them.

    python benchmarks/ragged.py                    # takes half a minute on an otherwise idle machine

Heights are uniform from half to the full one, widths from a fifth to the full one, and drawn anew for every
call, as in training; so a call includes the time of the tables that are made of them. Times are CPU times
of the one thread, so other programs disturb them little. Each step runs twice in a round, and the second
time counts: the first one finds memory as another step has left it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import argument_parser, interleave, markdown, milliseconds, peak_bytes, ratio, torch_threads
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mdlstm_tk import MDLSTM

BATCH, GRID, WINDOW, UNITS = 16, (48, 400), (4, 2), 32
COLUMNS = ("sizes", "valid positions", "pass", "ms", "÷ without sizes", "peak MiB")
LINES, LINE_HEIGHT, MARGIN = 256, 48, 8  # lines of text, and pixels


def draw_sizes(grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(N, D) sizes of one batch."""
    height, width = grid
    ranges = ((height // 2, height), (width // 5, width))
    columns = [torch.randint(low, high + 1, (BATCH,), generator=generator) for low, high in ranges]
    return torch.stack(columns, dim=1)


def valid_share(sizes: Tensor, grid: tuple[int, int]) -> float:
    """The share of valid positions, of those that are left after windows."""
    window = torch.tensor(WINDOW)
    positions = ((sizes + window - 1) // window).prod(dim=1)
    return float(positions.double().mean() / (torch.tensor(grid) // window).prod())


def measure(training: bool, grid: tuple[int, int], seconds: float) -> list[list[str]]:
    """Measure the three rows of one pass, on one thread."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layer = MDLSTM(1, UNITS, directions="all", window=WINDOW)
    x, full = torch.randn(BATCH, *grid, 1), torch.tensor([grid] * BATCH)
    grad = torch.randn_like(layer(x).detach())
    shares = {"none": [1.0], "all full": [1.0], "drawn": []}

    def run(sizes: Tensor | None) -> None:
        if training:
            layer.zero_grad()
            layer(x, sizes).backward(grad)
        else:
            with torch.no_grad():
                layer(x, sizes)

    def ragged() -> None:
        sizes = draw_sizes(grid, generator)
        shares["drawn"].append(valid_share(sizes, grid))
        run(sizes)

    steps = {"none": lambda: run(None), "all full": lambda: run(full), "drawn": ragged}
    rows, pass_name = [], "training" if training else "forward"
    with torch_threads(1):
        times = interleave(steps, seconds, runs=2, clock=time.process_time)
        for name, step in steps.items():
            second, peak = times[name][:, 1], peak_bytes(step) / 2**20
            figures = f"{milliseconds(second):.1f}", f"{ratio(second, times['none'][:, 1]):.2f}"
            rows.append([name, f"{np.mean(shares[name]):.0%}", pass_name, *figures, f"{peak:.1f}"])
    return rows


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


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--extent", type=int, nargs=2, default=GRID, metavar=("H", "W"))
    parser.add_argument("--seconds", type=float, default=8.0, help="for each pass")
    options = parser.parse_args(words)
    grid = tuple(options.extent)
    rows = [row for training in (False, True) for row in measure(training, grid, options.seconds)]
    label = f"{BATCH}, {'x'.join(map(str, grid))}, 1, {UNITS}, windows {'x'.join(map(str, WINDOW))}"
    print(f"CPU time of one thread, {label}, directions=all\n\n{markdown(COLUMNS, rows, 1)}")


if __name__ == "__main__":
    main()
