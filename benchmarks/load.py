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
from itertools import product

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}  # as `mdlstm`, before torch comes
import torch
from contenders import SHAPES, Shape, make_layer, make_step
from measuring import Step, argument_parser, interleave, markdown, milliseconds, ratio, torch_threads

from mdlstm_tk.training.memory import keep_freed_memory

COLUMNS = (
    *("N, grid, C, n", "pass", "1 thread", "2 threads", "gain"),
    *("1, loaded", "2, loaded", "2 ÷ 1, loaded"),
)


def measure(shape: Shape, training: bool, seconds: float) -> tuple[float, float, float]:
    """Milliseconds with one and with two threads, and the median ratio of the second to the first."""
    step = make_step(*make_layer(shape), training)
    with torch_threads(1):
        times = interleave({"1": with_threads(step, 1), "2": with_threads(step, 2)}, seconds)
    return milliseconds(times["1"]), milliseconds(times["2"]), ratio(times["2"], times["1"])


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


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", action="append", type=Shape.parse, help="a shape; may be repeated")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement")
    options = parser.parse_args(words)
    keep_freed_memory()  # as training does
    rows = []
    for shape, training in product(options.shape or SHAPES, (False, True)):
        one, two, share = measure(shape, training, options.seconds)
        with busy_processors():
            loaded = measure(shape, training, options.seconds)
        numbers = [f"{number:.2f}" for number in (one, two, 1 / share, *loaded)]
        rows.append([str(shape), "training" if training else "forward", *numbers])
    print(markdown(COLUMNS, rows, 2))


if __name__ == "__main__":
    main()
