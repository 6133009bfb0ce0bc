"""Random layers against the float64 reference: outputs, final states and all gradients.

    python benchmarks/random_layers.py --count 1000 --seed 0

Each layer has a random cell, of the package or of `tests/helpers/own_cells.py`, number of axes, grid,
batch, directions, stacked layers, window, sizes, layer norm, peepholes, initial states, recomputation,
number of threads and dtype. It runs in the fused and in the torch backend; with one direction, one layer,
no window and no sizes also cut along each axis. Layers are `Case`s of the tests, which draw smaller ones.
"""

from __future__ import annotations

import random
import sys
from itertools import product
from unittest.mock import patch

import torch
from measuring import ROOT, argument_parser

sys.path.insert(0, str(ROOT / "tests"))

from helpers.cuts import check_parts
from helpers.own_cells import OWN_CELLS, register_own_cells
from helpers.parity import TOLERANCES, Case

from mdlstm_tk.cells import BUILT_IN_CELLS

CELLS = (*BUILT_IN_CELLS, *OWN_CELLS)
LARGER = {torch.float64: 1e-10, torch.float32: 1e-4}  # since grids are larger than in the tests


def random_case(rng: random.Random) -> Case:
    """A layer and its input."""
    ndim, cell, layer_norm = rng.choice((1, 2, 2, 2, 3)), rng.choice(CELLS), rng.random() < 0.3
    corners = list(product((1, -1), repeat=ndim))
    return Case(
        cell=cell,
        grid=tuple(rng.randint(1, {1: 12, 2: 8, 3: 4}[ndim]) for _ in range(ndim)),
        batch=rng.choice((1, 1, 2, 3, 5)),
        units=rng.choice((1, 3, 5, 8, 17)),
        directions=rng.choice((1, "all", tuple(rng.sample(corners, rng.randint(1, len(corners)))))),
        merge=rng.choice(("concat", "sum", "mean")),
        num_layers=rng.choice((1, 1, 2)),
        window=rng.choice((1, 1, tuple(rng.randint(1, 3) for _ in range(ndim)))),
        bias=layer_norm or rng.random() < 0.8,
        layer_norm=layer_norm,
        peephole=cell == "graves" and rng.random() < 0.4,
        recompute=rng.random() < 0.3,
        sizes=rng.random() < 0.3,
        states=rng.random() < 0.4,
        dtype=rng.choice(("float64", "float64", "float32")),
    )


def check_cut(case: Case, rng: random.Random) -> None:
    """Compare a sweep that is cut in two along each axis with the whole one."""
    cuts = [[rng.randint(1, extent - 1)] if extent > 1 else [] for extent in case.grid]
    check_parts(case, cuts, "fused")


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first layer")
    options = parser.parse_args(arguments)
    register_own_cells()
    wrong = cuts = 0
    for seed in range(options.seed, options.seed + options.count):
        rng = random.Random(seed)
        case = random_case(rng)
        has_one_direction = case.directions == 1 or (case.directions != "all" and len(case.directions) == 1)
        is_cut = has_one_direction and case.num_layers == case.window == 1 and not case.sizes
        cuts += is_cut
        torch.set_num_threads(rng.choice((1, 2)))
        try:
            with patch.dict(TOLERANCES, LARGER):
                for backend in ("fused", "torch"):
                    case.check(backend)
                if is_cut:
                    check_cut(case, rng)
        except Exception as failure:  # the other layers tell more
            wrong += 1
            print(f"seed {seed}: {case}: {failure!r}", file=sys.stderr)
    print(f"{options.count} layers, {cuts} of them also cut: {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
