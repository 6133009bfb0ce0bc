"""`tiling.checkpointed` equals the plain layer: y, final states and all gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from helpers.states import UNITS, make_layer, random_faces, results, run_in_tiles, to_state
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mdlstm_tk import BoundaryState, InputError, tiling
from mdlstm_tk.cells import BUILT_IN_CELLS

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


@dataclass(frozen=True)
class Case:
    """A layer over a grid, and the extents of a tile."""

    grid: tuple[int, ...] = (5, 8)
    tile: Any = (2, 3)
    batch: int = 2
    sizes: bool = False
    dtype: torch.dtype = torch.float64
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        grid = "x".join(map(str, self.grid))
        options = [f"{name}={value}" for name, value in self.options.items()]
        return "-".join([grid, str(self.tile), *(["sizes"] if self.sizes else []), *options])

    def check(self, tolerance: float) -> None:
        layer = make_layer(self.grid, self.dtype, **{"directions": "all", **self.options})
        leading = (self.batch, *self.grid)
        x = torch.randn(*leading, 2, dtype=self.dtype)
        x = (x if layer.channels_last else x.movedim(-1, 1)).requires_grad_()
        windows = [-(-e // w) for e, w in zip(self.grid, layer.window, strict=True)]
        dirs = len(layer.directions)
        states = [
            random_faces(self.batch, windows, dirs, self.dtype, layer.cell) for _ in range(layer.num_layers)
        ]
        sizes = None
        if self.sizes:
            sizes = torch.stack([torch.randint(1, e + 1, (self.batch,)) for e in self.grid], dim=1)
        leaves = [x, *(face for faces in states for face in faces), *layer.parameters()]

        def everything(tile: Any) -> list[Tensor]:
            torch.manual_seed(5)  # of dropout
            state = tuple(to_state(faces, layer.ndim, layer.cell)[0] for faces in states)
            if tile is None:
                y, last = layer(x, sizes, initial_state=state, return_state=True)
            else:
                y, last = tiling.checkpointed(layer, x, tile, sizes, state, return_state=True)
            return list(results(y, tree_leaves(last), leaves))

        for tiled, whole in zip(everything(self.tile), everything(None), strict=True):
            assert tiled.dtype == whole.dtype
            scale = max(1.0, whole.abs().max().item() if whole.numel() else 0.0)
            torch.testing.assert_close(tiled, whole, rtol=0, atol=tolerance * scale)


CASES = [
    *(Case(grid, tile) for grid, tile in [((1, 1), 2), ((1, 7), 3), ((7, 1), 3), ((5, 8), (1, 8))]),
    *(Case(sizes=sizes, tile=tile) for sizes in (False, True) for tile in ((2, 3), (4, 4), (6, 100))),
    *(Case((7,), 3, sizes=sizes) for sizes in (False, True)),
    *(Case((3, 2, 4), (2, 1, 3), sizes=sizes) for sizes in (False, True)),
    Case((2, 1, 3, 2), (1, 1, 2, 1), options={"cell": "stable", "directions": [(1, -1, 1, -1)]}),
    *(Case(batch=batch, sizes=True) for batch in (0, 1, 5)),
    *(Case((4, 5), sizes=True, options={"cell": cell}) for cell in BUILT_IN_CELLS),
    Case((2, 3, 2), (1, 2, 2), options={"layer_norm": True, "peephole": True, "recompute": True}),
    Case((4, 5), options={"bias": False, "recompute": True}),
    *(Case((3, 4), sizes=True, options={"backend": backend}) for backend in ("torch", "reference")),
    *(
        Case((4, 5), sizes=True, options={"merge": merge, "num_layers": 2, "dropout": 0.5})
        for merge in ("concat", "sum", "mean")
    ),
    *(Case((5, 8), (4, 3), sizes=sizes, options={"window": (2, 3)}) for sizes in (False, True)),
    Case((5, 8), (2, 6), options={"window": (1, 2), "channels_last": False, "num_layers": 2}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_plain_layer(case: Case) -> None:
    case.check(1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)],
    ids=str,
)
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    Case((12, 9), (5, 4), sizes=True, dtype=dtype).check(tolerance)


def test_random_tilings() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        ndim = int(torch.randint(1, 4, ()))
        grid, tile = (torch.randint(1, 7, (ndim,)).tolist() for _ in range(2))
        directions = [d for d in product((1, -1), repeat=ndim) if torch.rand(()) < 0.6] or 1
        case = Case(tuple(grid), tuple(tile), sizes=bool(torch.rand(()) < 0.5))
        Case(case.grid, case.tile, 3, case.sizes, options={"directions": directions}).check(1e-12)


def test_autocast_and_no_batch_axis() -> None:
    layer, x = make_layer((4, 5), torch.float32, directions="all"), torch.randn(4, 5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y, (state,) = tiling.checkpointed(layer, x, 2, [3, 4], return_state=True)
        expected, (expected_state,) = layer(x, [3, 4], return_state=True)
    assert y.dtype == torch.bfloat16
    found = tree_leaves((y, state))
    torch.testing.assert_close(found, tree_leaves((expected, expected_state)), rtol=0.05, atol=0.02)
    y.float().sum().backward()
    assert layer.weight_ih_l0.grad is not None and layer.weight_ih_l0.grad.dtype == torch.float32


def test_only_the_gradients_that_are_wanted() -> None:
    layer, x = make_layer((4, 5)), torch.randn(2, 4, 5, 2, dtype=torch.float64)
    whole = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    layer.weight_ih_l0.requires_grad_(False)
    tiling.checkpointed(layer, x, 2).sum().backward()
    assert layer.weight_ih_l0.grad is None
    torch.testing.assert_close((layer.weight_hh_l0.grad, layer.bias_l0.grad), whole[1:])
    with torch.no_grad():
        y = tiling.checkpointed(layer, x, 2)
    assert not y.requires_grad
    torch.testing.assert_close(y, layer(x).detach())


@pytest.mark.parametrize("direction", [(1, 1), (-1, 1), (-1, -1)], ids=str)
@pytest.mark.parametrize("detach_every", [1, 2])
def test_gradients_are_cut_every_few_tiles(direction: tuple[int, int], detach_every: int) -> None:
    """Between blocks of `detach_every` tiles, which are counted from the corner where the sweep begins."""
    grid, tile = (6, 9), 2
    layer = make_layer(grid, directions=[direction])
    x = torch.randn(2, *grid, 2, dtype=torch.float64).requires_grad_()
    faces = random_faces(2, grid, 1)
    leaves = [x, *faces, *layer.parameters()]
    cuts = []
    for extent, sign in zip(grid, direction, strict=True):
        places = list(range(tile, extent, tile))  # where tiles meet
        cuts.append(sorted(places[::sign][detach_every - 1 :: detach_every]))
    expected = results(*run_in_tiles(layer, x, faces, cuts, detach=True), leaves)
    y, last = tiling.checkpointed(
        layer, x, tile, initial_state=to_state(faces), return_state=True, detach_every=detach_every
    )
    found = results(y, tree_leaves(last), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_only_the_states_that_enter_tiles_are_saved() -> None:
    """And not those of every position: that is what tiling is for."""
    layer = make_layer((12, 12), directions="all")
    x = torch.randn(1, 12, 12, 2, dtype=torch.float64)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tiling.checkpointed(layer, x, 4)
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    lines = 2 * 12 * 3  # of both axes, where each of three tiles begins
    no_states = 2 * (12 + 12) * 4 * UNITS  # zeros, the initial states of the grid
    assert sum(saved) == x.numel() + parameters + no_states + 2 * lines * 4 * UNITS


def test_second_derivatives_are_refused() -> None:
    layer, x = make_layer((3, 4)), torch.randn(1, 3, 4, 2, dtype=torch.float64).requires_grad_()
    y = tiling.checkpointed(layer, x, 2)
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(InputError, match=r"torch\.func"):
        torch.func.grad(lambda x: tiling.checkpointed(layer, x, 2).sum())(x.detach())


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no layer": ({"layer": nn.Linear(2, 3)}, "layer must be an MDLSTM, got Linear"),
    "a tile of 0": ({"tile": (0, 2)}, r"tile must be .* got \(0, 2\)"),
    "axes": ({"tile": (2, 2, 2)}, r"tile must be one extent, or 2 extents"),
    "windows": ({"tile": (4, 4)}, r"window \(2, 3\), got \(4, 4\); use \(4, 6\)"),
    "detach": ({"detach_every": 0}, "detach_every must be an integer of at least 1"),
    "x": ({"x": torch.zeros(1, 8, 9, 5)}, "with C = 2"),
    "an empty grid": ({"x": torch.zeros(1, 0, 9, 2)}, "extents of at least 1"),
    "states": ({"initial_state": BoundaryState()}, "one BoundaryState for each of 1 layers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_refused_in_one_line(mistake: str) -> None:
    wrong, message = MISTAKES[mistake]
    layer = make_layer((8, 9), torch.float32, window=(2, 3))
    given = {"layer": layer, "x": torch.zeros(1, 8, 9, 2), "tile": (2, 3), **wrong}
    with pytest.raises(InputError, match=message) as refused:
        tiling.checkpointed(**given)
    assert "\n" not in str(refused.value)


def test_a_layer_with_hooks_is_refused() -> None:
    layer, x = make_layer((3, 4), torch.float32), torch.zeros(1, 3, 4, 2)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="hooks"):
        tiling.checkpointed(layer, x, 2)
