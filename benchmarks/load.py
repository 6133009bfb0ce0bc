"""One thread against two, on a quiet machine and beside other busy programs.

    python benchmarks/load.py                      # takes some eight minutes
    python benchmarks/load.py --shape 16,32x32,1,64 --seconds 4

For each shape and pass the layer runs with one and with two threads in turn, in the same process, each
time after an operation that torch's threads share; first alone, then while as many other processes as there
are processors keep them busy. Times are medians of wall time in milliseconds, ratios those over the rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "40000"}  # as `mdlstm`, before torch comes
import torch
from contenders import SHAPES, Shape, Step, interleave, make_layer, make_step, ratios_of, torch_threads
from measuring import argument_parser, markdown

from mdlstm_tk.training.memory import keep_freed_memory

COLUMNS = (
    "N, grid, C, n",
    "pass",
    "1 thread",
    "2 threads",
    "gain",
    "1, loaded",
    "2, loaded",
    "2 ÷ 1, loaded",
)


def main() -> None:
    keep_freed_memory()  # as training does
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", action="append", type=Shape.parse, help="a shape; may be repeated")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement")
    arguments = parser.parse_args()
    print(markdown(COLUMNS, table(arguments.seconds, arguments.shape or SHAPES), 2))


def table(seconds: float, shapes: Sequence[Shape] = SHAPES) -> list[list[str]]:
    """The rows of the table."""
    rows = []
    for shape in shapes:
        for training in (False, True):
            one, two, ratio = measure(shape, training, seconds)
            with busy_processors():
                loaded_one, loaded_two, loaded_ratio = measure(shape, training, seconds)
            times = one, two, 1 / ratio, loaded_one, loaded_two, loaded_ratio
            numbers = [f"{number:.2f}" for number in times]
            rows.append([str(shape), "training" if training else "forward", *numbers])
    return rows


def measure(shape: Shape, training: bool, seconds: float) -> tuple[float, float, float]:
    """Milliseconds with one and with two threads, and the median ratio of the second to the first."""
    step = make_step(*make_layer(shape), training)
    with torch_threads(1):
        times = interleave({"one": with_threads(step, 1), "two": with_threads(step, 2)}, seconds)
    one, two = (1000 * median(times[name]) for name in ("one", "two"))
    return one, two, ratios_of(times, "two")["one"]


def with_threads(step: Step, count: int) -> Step:
    """A step on a number of threads."""

    shared = torch.zeros(2**17)

    def run() -> None:
        torch.set_num_threads(count)
        shared.add_(1)
        step()

    return run


@contextmanager
def busy_processors() -> Iterator[None]:
    """Keep all processors busy with other processes inside the `with` statement."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
