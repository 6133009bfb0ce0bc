"""Random layers against the float64 reference: outputs, final states and all gradients.

    python benchmarks/random_layers.py --count 1000 --seed 0

Each layer has a random cell (those of the package and three own ones: with two states, with three, and with
none beside h), number of axes, grid, batch, directions, stacked layers, window, sizes, layer norm,
peepholes, initial states, recomputation, number of threads and dtype. It runs in the fused and in the torch
backend; with one direction, one layer, no window and no sizes also cut in two. The error of a result is
divided by max(1, its largest absolute value).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from measuring import argument_parser
from torch import Tensor

from mdlstm_tk import MDLSTM, BoundaryState, Gate, register_cell
from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell, maximum, softplus

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


@register_cell(
    "two-states", gates=[Gate("i"), Gate("f", start=1.0), Gate("g", "tanh"), Gate("o")], states=("c", "s")
)
def two_states(gates: Any, states: Any, output_activation: Any) -> Any:
    i, f, g, o = gates
    c = i * g + f * (sum(states["c"]) / len(states["c"]))
    s = 0.5 * (1.0 - f) * sum(states["s"]) / len(states["s"]) + c * c / (1.0 + abs(c))
    return o * output_activation(c + s), {"c": c, "s": s}


@register_cell(
    "three-states", gates=[Gate("a", None), Gate("b", None), Gate("z", "tanh")], states=("u", "v", "w")
)
def three_states(gates: Any, states: Any) -> Any:
    a, b, z = gates
    decay = (-softplus(a)).exp()
    u = decay * maximum(states["u"][0], states["u"][-1]) + (1 - decay) * z
    v = decay * states["v"][-1] + (1 - decay) * u * states["h"][0]
    w = (0.25 * states["w"][0] * states["w"][0] + u * u + 1.0).sqrt()
    return (u + v).tanh() * b.sigmoid() / w, {"u": u, "v": v, "w": w}


@register_cell("gru", gates=[Gate("z", start=-1.0), Gate("g", "tanh")], states=())
def gru(gates: Any, states: Any) -> Any:
    z, g = gates
    return (1 - z) * sum(states["h"]) / len(states["h"]) + z * g, {}


CELLS = (*BUILT_IN_CELLS, "two-states", "three-states", "gru")


@dataclass
class Example:
    """A layer's arguments and input; `cut_at` is where axis 0 is cut, None where the layer cannot be."""

    options: dict[str, Any]
    grid: tuple[int, ...]
    batch: int
    sizes: list[list[int]] | None
    has_initial_states: bool
    threads: int
    dtype: torch.dtype
    cut_at: int | None
    seed: int

    @classmethod
    def random(cls, seed: int) -> Example:
        rng = random.Random(seed)
        ndim, cell = rng.choice((1, 2, 2, 2, 3)), rng.choice(CELLS)
        grid = tuple(rng.randint(1, {1: 12, 2: 8, 3: 4}[ndim]) for _ in range(ndim))
        batch = rng.choice((1, 1, 2, 3, 5))
        corners = list(product((1, -1), repeat=ndim))
        directions = rng.choice((1, "all", rng.sample(corners, rng.randint(1, len(corners)))))
        layers = rng.choice((1, 1, 2))
        options = {
            "hidden_size": rng.choice((1, 3, 5, 8, 17)),
            "ndim": ndim,
            "cell": cell,
            "directions": directions,
            "num_layers": layers,
            "merge": rng.choice(("concat", "sum", "mean")),
            "layer_norm": rng.random() < 0.3,
            "recompute": rng.random() < 0.3,
        }
        options["peephole"] = cell == "graves" and rng.random() < 0.4
        options["bias"] = options["layer_norm"] or rng.random() < 0.8
        options["window"] = rng.choice((1, 1, tuple(rng.randint(1, 3) for _ in range(ndim))))
        sizes = [[rng.randint(1, e) for e in grid] for _ in range(batch)] if rng.random() < 0.3 else None
        one_direction = directions == 1 or (directions != "all" and len(directions) == 1)
        cuttable = (
            one_direction and layers == 1 and options["window"] == 1 and sizes is None and grid[0] > 1
        )
        return cls(
            options=options,
            grid=grid,
            batch=batch,
            sizes=sizes,
            has_initial_states=rng.random() < 0.4,
            threads=rng.choice((1, 2)),
            dtype=rng.choice((torch.float64, torch.float64, torch.float32)),
            cut_at=rng.randint(1, grid[0] - 1) if cuttable else None,
            seed=seed,
        )

    def run(self, backend: str, dtype: torch.dtype, in_two: bool = False) -> list[Tensor]:
        """y, the final states, and the gradients of x, initial states and parameters."""
        torch.manual_seed(self.seed)
        layer = MDLSTM(2, backend=backend, dtype=torch.float64, **self.options)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        layer = layer.to(dtype)
        x = torch.randn(self.batch, *self.grid, 2, dtype=torch.float64).to(dtype).requires_grad_()
        sizes = None if self.sizes is None else torch.tensor(self.sizes)
        state = self._initial_state(layer, dtype) if self.has_initial_states else None
        leaves = [x, *_faces(state or ()), *layer.parameters()]
        if in_two:
            y, final = self._run_in_two(layer, x, state)
        else:
            y, final = layer(x, sizes, initial_state=state, return_state=True)
        outputs = [y, *_faces(final)]
        weights = [torch.randn(t.shape, dtype=torch.float64).to(dtype) for t in outputs]
        gradients = torch.autograd.grad(outputs, leaves, weights, materialize_grads=True, allow_unused=True)
        return [t.detach() for t in (*outputs, *gradients)]

    def _initial_state(self, layer: MDLSTM, dtype: torch.dtype) -> tuple[BoundaryState, ...]:
        grid = [-(-e // w) for e, w in zip(self.grid, layer.window, strict=True)]
        shapes = [(self.batch, *grid[:d], *grid[d + 1 :]) for d in range(layer.ndim)]
        states = []
        for _ in range(layer.num_layers):
            faces: dict[str, Any] = {}
            for name in ("h", *get_cell(layer.cell).states):
                values = [
                    torch.randn(*s, len(layer.directions), layer.hidden_size).double() for s in shapes
                ]
                if name == "n":  # a normaliser is positive
                    values = [value.abs() + 0.5 for value in values]
                faces[name] = [value.to(dtype).requires_grad_() for value in values]
            states.append(BoundaryState(**faces))
        return tuple(states)

    def _run_in_two(self, layer: MDLSTM, x: Tensor, state: Any) -> tuple[Tensor, tuple[BoundaryState, ...]]:
        """The result of the whole grid from two sweeps, one on each side of the cut across axis 0."""
        names, sign = ("h", *get_cell(layer.cell).states), layer.directions[0][0]
        faces = {name: [None] * layer.ndim if state is None else getattr(state[0], name) for name in names}
        entering: dict[str, Any] = {name: faces[name][0] for name in names}
        outputs, side_faces = [], []
        for rows in [slice(self.cut_at), slice(self.cut_at, None)][::sign]:
            sides = {name: [f if f is None else f[:, rows] for f in faces[name][1:]] for name in names}
            initial = BoundaryState(**{name: [entering[name], *sides[name]] for name in names})
            y, (final,) = layer(x[:, rows], initial_state=(initial,), return_state=True)
            entering = {name: getattr(final, name)[0] for name in names}
            outputs.append(y)
            side_faces.append([getattr(final, name)[1:] for name in names])
        joined = {
            name: [entering[name], *(torch.cat(pair, dim=1) for pair in zip(*halves, strict=True))]
            for name, *halves in zip(names, *side_faces[::sign], strict=True)
        }
        return torch.cat(outputs[::sign], dim=1), (BoundaryState(**joined),)


def _faces(states: Sequence[BoundaryState]) -> list[Tensor]:
    return [
        face
        for state in states
        for faces in state
        if faces is not None
        for face in faces
        if face is not None
    ]


def error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest absolute error, divided by max(1, largest |value| of that result); NaN if one is NaN."""
    errors = [
        (result.double() - exact.double()).abs().max() / exact.abs().max().clamp(min=1)
        for result, exact in zip(results, truth, strict=True)
        if exact.numel()
    ]
    return float(torch.stack(errors).max())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first example")
    arguments = parser.parse_args()
    worst = dict.fromkeys(TOLERANCES, 0.0)
    wrong = cuts = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        example = Example.random(seed)
        cuts += example.cut_at is not None
        try:
            torch.set_num_threads(1)
            truth = example.run("reference", torch.float64)
            torch.set_num_threads(example.threads)
            runs = [example.run(backend, example.dtype) for backend in ("fused", "torch")]
            if example.cut_at is not None:
                runs.append(example.run("fused", example.dtype, in_two=True))
            errors = [error(results, truth) for results in runs]
        except Exception as failure:  # the other layers tell more
            wrong += 1
            print(f"seed {seed}: {failure!r} of {example}", file=sys.stderr)
            continue
        worst[example.dtype] = max(worst[example.dtype], *errors)
        if not all(e <= TOLERANCES[example.dtype] for e in errors):
            wrong += 1
            print(f"seed {seed}: errors {errors} of {example}", file=sys.stderr)
    figures = ", ".join(f"{str(dtype).removeprefix('torch.')} {e:.1e}" for dtype, e in worst.items())
    print(
        f"{arguments.count} layers, {cuts} of them also cut in two: {wrong} wrong; largest error {figures}"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
