"""Write docs/performance.md from `mdlstm bench`, `mdlstm bench --runtime` and scripts of this folder.

    python benchmarks/performance.py               # takes ten minutes on an otherwise idle machine
    python benchmarks/performance.py --seconds 0.1 # a rough one, to see whether everything runs

The script runs the commands themselves, so that anyone who doubts a figure can run the same command.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import compiling
import exports
import load
import parts
import ragged
import rivals
import training
from measuring import ROOT, argument_parser, bench, markdown

from mdlstm_tk.benchmark import Measurement
from mdlstm_tk.cli.bench import LAYER_COLUMNS, RUNTIME_COLUMNS, cells
from mdlstm_tk.export.benchmark import RuntimeMeasurement

PAGE = ROOT / "docs/performance.md"
TEXT = """\
# Performance

Measured on {today} on {processor}, {cores} cores, {system}, with Python {python}, torch {torch}, ONNX
Runtime {onnxruntime} and Numba {numba}. `python benchmarks/performance.py` writes this page; it runs the
commands shown below.

All contenders of a row take turns within one process, and each ratio is the median of the ratios of the
rounds. Ratios therefore vary less from run to run than times do.

The **floor** is the layer's matrix products alone, computed by torch. Forward, it is one (N·P, C) × (C,
G·n) product, and one (rows, D·n) × (D·n, G·n) product for each wavefront, into a buffer that is reused.
Backward, it is one (rows, G·n) × (G·n, D·n) product for each wavefront, and the two products that give the
gradients of the weights. A ratio below 1 means that the layer's own products are faster than torch's on
this processor.

**nn.LSTM** runs over the same number of positions, in sequences that are as long as the grid has
wavefronts. It has one recurrent product for each position where the layer has D, and four gates where the
layer has 3 + D. For *per FLOP*, each time is divided by the number of operations in its products.

**torch backend** is the same layer in plain torch operations, which run on every device without compiled
kernels.

## The layer

`mdlstm bench --device cpu --seconds {seconds:g}`

{layer}

Peak memory counts the tensors that exist during one call, without input and weights. With `recompute`,
training stores 2·n numbers for each position and direction instead of (G + 2)·n.

## Where the time goes

`python benchmarks/parts.py`, one thread

{parts}

The share of a part is the time that the layer saves without it. The rest is gathering operands, fresh
memory and Python.

The time of all directions, divided by the time of one:

{directions}

Directions share x and nothing else: each one has its own products. Where one direction already keeps every
core busy, four directions take four times as long. On small grids, where one direction cannot, each thread
takes whole directions, and the overhead of Python is paid only once.

GPUs have not been measured yet. `make gpu` tests and measures everything on an NVIDIA GPU, in under nine
minutes, and writes `build/gpu/gpu.md`.

## Ragged batches

`python benchmarks/ragged.py`, CPU time of one thread, {ragged_label}

{ragged}

Sizes are drawn anew for every call: heights from half to the full one, widths from a fifth to the full
one. Positions outside of them are not computed, and only y has room for them. What is left beside the
share of valid positions (the goal for inference was 0.55) is work that does not depend on it: joining
windows, masking x, clearing the padding of y, and the tables that each new batch needs, half a
millisecond here. On short wavefronts, such as the last ones of the longest sample, products are less
efficient. Sizes that all fill the grid cost nothing.

`python benchmarks/ragged.py --training`, CPU time of one thread

{ragged_training}

Steps of `mdlstm train` as it is, and with all positions computed, on the same batches. A batch is a string
of digits or a line of text for each sample, and padded to the widest.

## Training

`python benchmarks/training.py`, CPU time of one thread

{training}

1000 steps of 16 8×8 matrices with 16 units: what `mdlstm train` does without options. The rest is data,
head, loss, optimizer, metrics, validations and checkpoints. An earlier measurement on a quiet machine gave
1.41 s for the whole run and 0.74 s for the rest before a first round of changes, and 1.04 s and 0.45 s
after it. The page of the code that the task comes from gives 77 ms a step, 13 steps/s.

## Beside other programs

`python benchmarks/load.py`

{load}

The last three columns are measured while as many other processes as there are processors keep them busy.
Threads divide a sweep by directions, samples, or bands of the grid, and wait for each other a few dozen
times in a sweep at most. In version 0.6 they met after each wavefront, so one that waited for its turn on a
processor stopped the other.

Threads of torch's OpenMP count as other programs too: they wait some 10 ms without sleep after each
operation that they share. On two processors, a sweep right after such an operation gains nothing from its
second thread: 15.8 ms for 16, 32x32, 1, 64 forward, and 9.3 ms with `OMP_WAIT_POLICY=passive` set. Rows of
`mdlstm bench` with 2 threads show this. The variable makes tiny operations of torch slower, for example
`mdlstm train` with default settings (1.3 to 1.6 s, and 2.0 to 2.6 s with it), so it is left to you.

## Compiling

`python benchmarks/compiling.py`, processor time of fresh processes with an empty cache

{compiling}

Kernels are the same for all cells, and compiled once for each dtype; a cell adds a small function for each
pass. Sweeps with states need no others.

## Memory kept between calls

A sweep keeps the order and the neighbours of its grid for the next call, 4 bytes an entry: 20 to 32 bytes a
position for one direction in two dimensions, and another copy of some of them in NumPy. All tables take at
most 176 MiB together; the oldest go first, except that the newest grid stays, whatever its size.
`mdlstm_tk.clear_caches()` frees all of it.

## Compiled kernels on disk

Kernels are compiled once, and kept in `~/.cache/mdlstm-tk/kernels` (`$XDG_CACHE_HOME` is respected; on
macOS it is below `~/Library/Caches`, on Windows below `%LOCALAPPDATA%`), or in `$NUMBA_CACHE_DIR/kernels`
if that variable is an absolute path. Numba unpickles what it finds there, and unpickling runs what a file
says. So the folder must belong to you, and neither it nor a folder above it may be writable by others. If
that does not hold, nothing is kept, and every process compiles the kernels it needs again, which takes
seconds; `mdlstm doctor` shows the folder, or says what is missing. Your own functions that Numba caches are
not affected.

## Exported, under ONNX Runtime

`mdlstm bench --runtime --device cpu --seconds {seconds:g}`

{runtime}

A whole `mdlstm infer` of an 8×8 matrix takes {infer:.2f} s, {ratio:.2f} times as long as
`python -c "import numpy, onnxruntime"`.

## Goals for exported layers

`python benchmarks/exports.py`, CPU time of one thread ÷ floor

{goals}

*Before* is what was measured when the goals were set. *Optimised* is ONNX Runtime as it runs a file by
default; `Session` has it leave the graph as it is. In the two columns after the goal, each ratio is
that of the last of four runs in a row. *Missed by* compares the optimised file with the goal. The
optimiser finds nothing to fuse in a sweep: for 1, 64x64, 1, 32 it leaves 2039 of 2041 nodes.

The first of the four runs, after other contenders have run, takes longer, with the optimiser as well as
without it, because the processor's caches hold other data by then. ONNX Runtime reads data of its own for
each node before it computes anything, so this costs an unrolled file of thousands of nodes more than a
scan, whose body has about twenty. `mdlstm bench --runtime` lets each contender run once in its turn, so its
ratios are those of first runs.

### What remains

`python benchmarks/exports.py`, the time of an operator with what ONNX Runtime does around it, ÷ that of all

{operators}

A wavefront of an unrolled file has 16 nodes: two products, three activations, a Split of the gates, five
nodes of the cell's equations, and five that put x and the states of the predecessors side by side. Compiled
kernels keep all of this in registers. ONNX Runtime writes each result to memory, and takes 0.3 µs or more
for a node however small it is. With 16 units, products are a small part of the work, and no standard
operator computes more of the rest. At 128x128, `perf` finds about a fifth of the samples at
instructions that load data on nodes.

These were tried and gained nothing. Where there are two ratios, they are those of the unrolled files at
16, 8x8, 1, 16 and 1, 128x128, 1, 16 to the files as they are, in turn, on a busy machine; they are not
measured again when this page is written:

- all gates by one product and one Sigmoid, and the sum of i⊙g and f⊙c by one Mul and one product with unit
  matrices: 14 nodes; 1.05 and 1.06 times the time;
- this sum, but with a product and a Tanh for g: 15 nodes; 1.03 and 1.09 times;
- two Adds instead of one Sum: 17 nodes; 1.00 and 1.01 times;
- ONNX's LSTM operator: for 64 rows of 16 units it takes 11 µs, the nodes that it could replace about 9 µs;
- a convolution over two positions instead of slices and a product;
- huge pages for the memory of ONNX Runtime (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`).

The body of a scan has four nodes more, a Slice of x, two Pads and an Identity, since all iterations must
have states and inputs of one shape.

At 1, 1024x1024, 16, 32 in all directions, a scan for any size takes 2,590 MiB at its peak and one for this
size 2,124 MiB, where the goal was 1,300 MiB (`python benchmarks/memory.py`, not measured again when this
page is written). The outputs of a scan are stacked, as many wavefronts times the longest of them, so nearly
half of them are padding. Without the arena of ONNX Runtime the second file takes 1,261 MiB, but its limit
is what bounds the memory of models from elsewhere. `mdlstm export --form tiles` takes far less.

## Beside other networks

`python benchmarks/rivals.py`, one thread

{networks}

These are what one would try instead of a layer in all directions: two bidirectional `nn.LSTM`s, one along
the rows and one along the columns; seven 3×3 convolutions with ReLU; and a ViT block, one
`nn.TransformerEncoderLayer` over patches. All have as many parameters as the layer, within 2 %. Features
are the numbers that each returns for a position.

{rivals}

A ratio above 1 means that the network takes longer than the MD-LSTM. Each file agrees with torch. Equal
parameters are not equal work: recurrent networks and convolutions use each weight at every position, a ViT
block uses it once for each patch of 64. No network with two-dimensional state
spaces is in the table: the packages for them that were found need CUDA.
"""


def directions(rows: Sequence[Measurement]) -> str:
    """Format the table of the ratios between all directions and one."""
    seconds = {(row.shape, row.threads, row.training): row.seconds for row in rows}
    suffix = ", directions=all"
    table = [
        [
            row.shape.removesuffix(suffix),
            str(row.threads),
            "training" if row.training else "forward",
            f"{row.seconds / seconds[row.shape.removesuffix(suffix), row.threads, row.training]:.2f}",
        ]
        for row in rows
        if row.shape.endswith(suffix)
    ]
    return markdown(("N, grid, C, n", "threads", "pass", "ratio"), table, 1)


def processor() -> str:
    """The name of the processor, from Linux if possible."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds to measure each row for")
    seconds = parser.parse_args().seconds
    layer = [Measurement(**row) for row in bench("--seconds", str(seconds))]
    runtime = bench("--runtime", "--seconds", str(seconds))
    exported = [RuntimeMeasurement(**row) for row in runtime["layers"]]
    text = TEXT.format(
        today=date.today().isoformat(),
        processor=processor(),
        cores=max(row.threads for row in layer),
        system=platform.system(),
        python=platform.python_version(),
        seconds=seconds,
        layer=markdown(tuple(LAYER_COLUMNS), [cells(row, LAYER_COLUMNS) for row in layer], 1),
        parts=markdown(parts.COLUMNS, parts.table(), 1),
        ragged_label=ragged.LABEL,
        ragged=markdown(ragged.COLUMNS, ragged.table(), 1),
        ragged_training=markdown(ragged.TRAINING_COLUMNS, ragged.training_table(), 1),
        training=markdown(training.COLUMNS, training.table(), 1),
        load=markdown(load.COLUMNS, load.table(seconds), 2),
        compiling=markdown(compiling.COLUMNS, compiling.table(), 1),
        directions=directions(layer),
        goals=markdown(exports.COLUMNS, exports.table(2 * seconds), 2),
        operators=markdown(exports.PROFILE_COLUMNS, exports.profile_table(2 * seconds), 1),
        runtime=markdown(tuple(RUNTIME_COLUMNS), [cells(row, RUNTIME_COLUMNS) for row in exported], 1),
        networks=markdown(rivals.NETWORK_COLUMNS, rivals.network_table(), 2),
        rivals=markdown(rivals.COLUMNS, rivals.table(), 2),
        infer=runtime["cold_start"]["infer_seconds"],
        ratio=runtime["cold_start"]["ratio"],
        **{name: version(name) for name in ("torch", "onnxruntime", "numba")},
    )
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
