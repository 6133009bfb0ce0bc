"""What a padded batch costs with `sizes`, beside the same batch without them.

    python benchmarks/ragged.py                    # takes half a minute on an otherwise idle machine

Heights are uniform from half to the full one, widths from a fifth to the full one, and drawn anew for every
call, as in training; so a call includes the time of the tables that are made of them. Times are CPU times
of the one thread, so other programs disturb them little. Each step runs twice in a round, and the second
time counts: the first one finds memory as another step has left it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean, median

import torch
from torch import Tensor

from mdlstm_tk import MDLSTM
from mdlstm_tk.benchmark import ratios_of, torch_threads
from mdlstm_tk.benchmark.timing import peak_bytes

BATCH, GRID, WINDOW, UNITS = 16, (48, 400), (4, 2), 32
LABEL = "16, 48x400, 1, 32, windows 4x2, directions=all"
COLUMNS = ("sizes", "valid positions", "pass", "ms", "÷ without sizes", "peak MiB")


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
    layer = MDLSTM(1, UNITS, directions="all", window=WINDOW)
    x, full = torch.randn(BATCH, *GRID, 1), torch.tensor([GRID] * BATCH)
    grad = torch.randn_like(layer(x).detach())
    shares: list[float] = []

    def run(sizes: Tensor | None) -> None:
        if training:
            layer.zero_grad()
            layer(x, sizes).backward(grad)
        else:
            with torch.no_grad():
                layer(x, sizes)

    def ragged() -> None:
        sizes = draw_sizes(generator)
        shares.append(valid_share(sizes))
        run(sizes)

    steps: dict[str, Callable[[], object]] = {
        "none": lambda: run(None),
        "all full": lambda: run(full),
        "drawn": ragged,
    }
    with torch_threads(1):
        end = time.perf_counter() + seconds
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()  # compiles, and fills caches
        while time.perf_counter() < end:
            for name, step in steps.items():
                step()
                start = time.thread_time()
                step()
                times[name].append(time.thread_time() - start)
        peaks = {name: peak_bytes(step, torch.device("cpu")) for name, step in steps.items()}
    rows = []
    for name in steps:
        share = mean(shares) if name == "drawn" else 1.0
        ratio = 1 / ratios_of(times, "none")[name]
        kind = "training" if training else "forward"
        milliseconds = f"{median(times[name]) * 1e3:.1f}"
        rows.append(
            [name, f"{share:.0%}", kind, milliseconds, f"{ratio:.2f}", f"{peaks[name] / 2**20:.1f}"]
        )
    return rows


def table(seconds: float = 8.0) -> list[list[str]]:
    """The rows of COLUMNS."""
    return [row for training in (False, True) for row in measure(training, seconds)]


if __name__ == "__main__":
    print(LABEL)
    for row in (COLUMNS, *table()):
        print("  ".join(text.rjust(16) for text in row))
