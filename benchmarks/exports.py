"""Exported layers under ONNX Runtime, as multiples of their matrix products, and where their time goes.

    python benchmarks/exports.py                   # takes two minutes on an otherwise idle machine
    python benchmarks/exports.py --seconds 0.2     # a rough look

The floor, which is the layer's matrix products by torch, and the exported layer take turns on one thread,
and its CPU time is measured. In each turn a contender runs four times: the first run finds the processor's
caches filled by the others, the last one finds its own data there.
"""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from contenders import Shape, floor, make_layer, torch_threads
from measuring import argument_parser, cpu_times, markdown, ort_session

from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

FORMS = ("unrolled", "scan")
ALL = (("directions", "all"),)
ROWS = (  # for each form, the ratio when the goals were set, and the goal
    (Shape(1, (64, 64), 1, 32), ("1.7–2.1", "2.5"), (1.4, 1.8)),
    (Shape(1, (64, 64), 1, 32, ALL), ("2.3", "2.3"), (1.4, 1.5)),
    (Shape(1, (128, 128), 1, 16), ("2.8–3.3", "4.1"), (2.0, 2.5)),
    (Shape(1, (32, 32), 1, 32, ALL), ("2.7", "2.4"), (1.5, 1.5)),
    (Shape(16, (8, 8), 1, 16), ("2.2", "3.0"), (1.6, 2.2)),
    (Shape(8, (64, 64), 3, 32, ALL), ("1.45", "1.31"), (1.15, 1.15)),
)
COLUMNS = (
    *("N, grid, C, n", "form", "before", "goal"),
    *("optimised", "`Session`", "`Session`, first run", "missed by"),
)
PROFILED = (  # what missed its goal
    (Shape(16, (8, 8), 1, 16), "unrolled"),
    (Shape(16, (8, 8), 1, 16), "scan"),
    (Shape(1, (128, 128), 1, 16), "unrolled"),
)
PROFILE_COLUMNS = ("operator", *(f"{shape}, {form}" for shape, form in PROFILED))
RUNS_PER_TURN = 4
PROFILED_RUNS = 60
# The interval after the last node of a body, an Identity, is what a Scan does between two iterations.
LOOP = {"Scan": "Scan, Identity", "Identity": "Scan, Identity"}


@contextmanager
def exported(shape: Shape, form: str) -> Iterator[tuple[Path, np.ndarray]]:
    """A file of a layer, and an x for it. A scan is a file for any grid, as in `bench.py`."""
    torch.manual_seed(0)
    layer, x = make_layer(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        export_onnx(layer, path, grid=shape.grid if form == "unrolled" else None, form=form)
        yield path, x.numpy()


def ratios(shape: Shape, form: str, seconds: float) -> list[float]:
    """The ratios of a row: optimised, `Session`, and the first run of `Session`."""
    with exported(shape, form) as (path, x), Session(path, "cpu", threads=1) as session, torch_threads(1):
        plain = ort_session(path)
        steps = {
            "floor": floor(shape, training=False),
            "plain": lambda: plain.run(None, {"x": x}),
            "session": lambda: session(x),
        }
        times = cpu_times(steps, seconds, RUNS_PER_TURN)
    medians = {name: np.median(times[name] / times["floor"], axis=0) for name in times}  # of each run
    return [medians["plain"][-1], medians["session"][-1], medians["session"][0]]


def table(seconds: float = 4.0) -> list[list[str]]:
    """The goals and what is reached."""
    rows = []
    for shape, before, goals in ROWS:
        for k, form in enumerate(FORMS):
            measured = ratios(shape, form, seconds)
            missed = measured[0] / goals[k] - 1
            row = [str(shape), form, before[k], f"{goals[k]:g}", *(f"{ratio:.2f}" for ratio in measured)]
            rows.append([*row, f"{missed:.0%}" if missed > 0.005 else ""])
    return rows


def operator_seconds(shape: Shape, form: str, seconds: float) -> dict[str, float]:
    """The seconds of a run that each operator takes, with what ONNX Runtime does around it.

    The profile has whole microseconds, but the mean over many runs is finer: a node takes from its start to
    the start of the next one. Writing the profile takes equally long for each node, and is subtracted.
    """
    with exported(shape, form) as (path, x), tempfile.TemporaryDirectory() as folder:
        session = Session(path, "cpu", threads=1)
        times = cpu_times({"session": lambda: session(x)}, seconds, RUNS_PER_TURN)
        unprofiled = np.median(times["session"][:, -1])
        profiled = ort_session(  # as `Session` has it
            path,
            graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
            enable_profiling=True,
            profile_file_prefix=f"{folder}/profile",
        )
        for _ in range(PROFILED_RUNS):
            profiled.run(None, {"x": x})
        events = json.loads(Path(profiled.end_profiling()).read_bytes())
    nodes = sorted((e["ts"], e["args"]["op_name"]) for e in events if e["name"].endswith("_kernel_time"))
    starts = [ts for ts, _ in nodes]
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run"]
    runs = [slice(bisect_left(starts, start), bisect_left(starts, end)) for start, end in spans]
    intervals = [np.diff([*starts[run], end]) for run, (_, end) in zip(runs, spans, strict=True)]
    # Without the longest quarter, in which other programs had the processor.
    of_nodes = np.sort(intervals, axis=0)[: len(runs) * 3 // 4].mean(axis=0) / 1e6
    profiling = max(0.0, of_nodes.sum() - unprofiled) / len(of_nodes)
    sums: dict[str, float] = defaultdict(float)
    for (_, operator), interval in zip(nodes[runs[0]], of_nodes.tolist(), strict=True):
        sums[LOOP.get(operator, operator)] += max(0.0, interval - profiling)
    return sums


def profile_table(seconds: float = 4.0) -> list[list[str]]:
    """For each operator its share in the time of each row of `PROFILED`."""
    columns = [operator_seconds(shape, form, seconds) for shape, form in PROFILED]
    shares = [{name: value / sum(column.values()) for name, value in column.items()} for column in columns]
    names = sorted({name for share in shares for name in share}, key=lambda n: -shares[0].get(n, 0.0))
    rows = [[name, *(f"{share.get(name, 0.0):.0%}" for share in shares)] for name in names]
    return [row for row in rows if any(value not in ("0%", "1%") for value in row[1:])]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds to measure each row for")
    seconds = parser.parse_args().seconds
    print(markdown(COLUMNS, table(seconds), 2))
    print()
    print(markdown(PROFILE_COLUMNS, profile_table(seconds), 1))


if __name__ == "__main__":
    main()
