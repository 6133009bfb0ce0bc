"""`mdlstm bench`."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from mdlstm_tk.cli.console import note, print_json, table
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.benchmark import Measurement

COLUMNS = (
    *("N, grid, C, n", "threads", "pass", "ms", "GFLOP/s", "÷ floor", "÷ nn.LSTM", "per FLOP"),
    *("÷ unrolled", "peak MiB"),
)
DTYPES = ("float32", "float64", "float16", "bfloat16")


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="N,GRID,C,n", help="Such as 16,32x32,1,64; repeatable. Else a table of them."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="CPU threads; repeatable. Else 1 and all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES) + ".")] = "float32",
    seconds: Annotated[float, typer.Option(min=0, help="To measure each row for.")] = 2.0,
    json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
) -> None:
    """Measure how fast the layer is here: time, and ratios to what it is made of.

    The floor is the layer's matrix products alone, through torch. nn.LSTM runs over as many cells, which
    takes fewer operations, hence the ratio per FLOP too. All take turns within one process.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which tells the peak of memory,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # would announce itself with each row
    require("torch", "train")
    import torch

    from mdlstm_tk.benchmark import SHAPES, Shape, measure
    from mdlstm_tk.training.loop import pick_device

    if dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    shapes = [Shape.parse(text) for text in shape] if shape else list(SHAPES)
    target = str(pick_device(device))
    counts = threads or sorted({1, torch.get_num_threads()})
    if target != "cpu":
        counts = counts[-1:]
    rows: list[Measurement] = []
    cases = list(product(shapes, counts, (False, True)))
    before = torch.get_num_threads()
    try:
        for one, count, training in cases:
            what = "forward and backward" if training else "forward"
            note(f"{len(rows) + 1}/{len(cases)}  {one}  {what}, {count} thread{'s' * (count > 1)}")
            torch.set_num_threads(count)
            rows.append(measure(one, training, seconds, target, getattr(torch, dtype)))
    finally:
        torch.set_num_threads(before)
    if json:
        print_json([asdict(row) for row in rows])
        return
    title = f"{dtype} on {rows[0].device}, torch {torch.__version__}"
    table(COLUMNS, [cells(row) for row in rows], title)


def cells(row: Measurement) -> list[str]:
    """A measurement as the table shows it."""
    return [
        row.shape,
        str(row.threads),
        "training" if row.training else "forward",
        f"{row.seconds * 1e3:.2f}",
        f"{row.gflops:.1f}",
        f"{row.to_floor:.2f}",
        f"{row.to_lstm:.2f}",
        f"{row.to_lstm_per_flop:.2f}",
        f"{row.to_unrolled:.2f}",
        f"{row.peak_bytes / 2**20:.1f}",
    ]
