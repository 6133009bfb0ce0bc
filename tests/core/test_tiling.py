"""`tiling.checkpointed`: y, final states and all gradients are those of the plain layer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer, results, run_in_parts
from helpers.parity import Case, random_faces, to_state
from helpers.refusal import refused
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mdlstm_tk import MDLSTM, BoundaryState, InputError, tiling

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


CASES = [  # what `test_random_cases.py` does not draw
    Case(grid=(5, 8), tile=(1, 8), states=True),
    Case(grid=(5, 8), tile=(6, 100), sizes=True),
    Case("stable", (2, 1, 3, 2), tile=(1, 1, 2, 1), directions=((1, -1, 1, -1),), states=True),
    Case(grid=(4, 5), tile=(2, 3), batch=0, sizes=True, states=True),
    Case(grid=(4, 5), tile=(2, 3), bias=False, wants="weights"),
    *(Case(grid=(4, 5), tile=(2, 3), sizes=True, num_layers=2, merge=merge) for merge in ("sum", "mean")),
    Case(grid=(5, 8), tile=(4, 3), window=(2, 3), sizes=True, states=True),
    Case(grid=(5, 8), tile=(2, 6), window=(1, 2), channels_last=False, num_layers=2),
    *(Case(grid=(6, 5), tile=(5, 4), dtype=dtype, states=True) for dtype in ("float32", "float16")),
]


OTHERS = [(Case(grid=(3, 4), tile=(2, 3), sizes=True), name) for name in ("torch", "reference")]


@pytest.mark.parametrize(("case", "backend"), [*((case, "auto") for case in CASES), *OTHERS], ids=str)
def test_equals_the_reference(case: Case, backend: str) -> None:
    (replace(case, directions="all") if case.directions == 1 else case).check(backend)


def test_dropout_is_that_of_the_plain_layer() -> None:
    layer = MDLSTM(2, 3, num_layers=2, dropout=0.5, directions="all")
    x, actual = torch.randn(2, 4, 5, 2), []
    for run in (layer, lambda x: tiling.checkpointed(layer, x, 2)):
        torch.manual_seed(5)
        y = run(x)
        actual.append((y, torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    torch.testing.assert_close(*actual)


def test_autocast_and_no_batch_axis() -> None:
    layer, x = make_layer((4, 5), torch.float32, directions="all"), torch.randn(4, 5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y, (state,) = tiling.checkpointed(layer, x, 2, [3, 4], return_state=True)
        expected, (expected_state,) = layer(x, [3, 4], return_state=True)
    assert y.dtype == torch.bfloat16
    actual = tree_leaves((y, state))
    torch.testing.assert_close(actual, tree_leaves((expected, expected_state)), rtol=0.05, atol=0.02)
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
    expected = results(*run_in_parts(layer, x, faces, cuts, detach=True), leaves)
    y, last = tiling.checkpointed(
        layer, x, tile, initial_state=(to_state(faces),), return_state=True, detach_every=detach_every
    )
    actual = results(y, tree_leaves(last), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("direction", [(1, 1), (-1, 1), (1, -1), (-1, -1)], ids=str)
def test_cut_gradients_of_a_padded_sample_are_those_of_the_sample_alone(direction: tuple[int, int]) -> None:
    """Those of parameters and of initial states: where a sample has no positions, nothing is cut."""
    grid, tile, sizes = (6, 8), 2, [(6, 8), (2, 8), (4, 2), (2, 2), (6, 4)]
    layer, faces = make_layer(grid, directions=[direction]), random_faces(len(sizes), grid, 1)
    x = torch.randn(len(sizes), *grid, 2, dtype=torch.float64)
    options: dict[str, Any] = {"tile": tile, "return_state": True, "detach_every": 1}

    def gradients(x: Tensor, faces: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
        y, states = tiling.checkpointed(layer, x, initial_state=(to_state(faces),), **options)
        loss = sum(tensor.square().sum() for tensor in (y, *tree_leaves(states)))
        return torch.autograd.grad(loss, [*layer.parameters(), *faces])  # type: ignore[arg-type]

    for k, (height, width) in enumerate(sizes):
        one = slice(k, k + 1)
        inside = [(slice(None), slice(lines)) for lines in (width, height)] * 2  # of h and c, by axis
        whole = [face[one].detach().requires_grad_() for face in faces]
        cut = [face[lines].detach().requires_grad_() for face, lines in zip(whole, inside, strict=True)]
        expected = gradients(x[one, :height, :width], cut, **options)
        actual = gradients(x[one], whole, sizes=sizes[one], **options)
        own, of_faces = actual[: -len(faces)], actual[-len(faces) :]
        of_sample = [face[lines] for face, lines in zip(of_faces, inside, strict=True)]
        torch.testing.assert_close([*own, *of_sample], [*expected], rtol=1e-12, atol=1e-12)


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
    no_states = 2 * (12 + 12) * 4 * 5  # zeros, the initial states of the grid
    assert sum(saved) == x.numel() + parameters + no_states + 2 * lines * 4 * 5


def test_a_graph_of_fx_does_not_drop_the_tiles_without_a_word() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MDLSTM(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return tiling.checkpointed(self.layer, x, tile=2, detach_every=1)

    refused(r"torch\.fx cannot record tiling\.checkpointed", lambda: torch.fx.symbolic_trace(Network()))


def test_the_gradient_of_x_in_16_bits_is_rounded_once() -> None:
    """And not after each tile: errors are little larger than without tiles."""
    torch.manual_seed(0)
    layer, x = MDLSTM(2, 8, directions="all").bfloat16(), torch.randn(2, 9, 9, 2).bfloat16()

    def gradient(dtype: torch.dtype, sweep: Any) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        y = sweep(copy.deepcopy(layer).to(dtype), leaf)
        return torch.autograd.grad(y.sum(), leaf)[0].double()

    exact, plain = (gradient(dtype, MDLSTM.__call__) for dtype in (torch.float64, torch.bfloat16))
    tiled = gradient(torch.bfloat16, lambda layer, x: tiling.checkpointed(layer, x, tile=3))
    assert (tiled - exact).abs().max() < 2 * (plain - exact).abs().max()


def test_second_derivatives_and_batched_gradients_are_refused() -> None:
    layer, x = make_layer((3, 4)), torch.randn(1, 3, 4, 2, dtype=torch.float64).requires_grad_()
    y = tiling.checkpointed(layer, x, 2)
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^tiling\.checkpointed .* batched gradients .* use layer\(x\)"):
        torch.autograd.functional.jacobian(lambda x: tiling.checkpointed(layer, x, 2), x, vectorize=True)
    with pytest.raises(InputError, match=r"torch\.func"):
        torch.func.grad(lambda x: tiling.checkpointed(layer, x, 2).sum())(x.detach())


HOOKED = MDLSTM(2, 5)
HOOKED.register_forward_hook(lambda *_: None)


WRAPPED = MDLSTM(2, 5)
WRAPPED.forward = WRAPPED.forward  # type: ignore[method-assign]  # as hooks of accelerate set it


class Residual(MDLSTM):
    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        return x + super().forward(x, *arguments, **options)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"layer": nn.Linear(2, 3)}, "must be an MDLSTM, got Linear"),
    ({"layer": Residual(2, 2)}, "the class Residual with a forward of its own"),
    ({"layer": WRAPPED}, "a forward of its own"),
    ({"layer": HOOKED}, "hooks"),
    ({"tile": (0, 2)}, r"tile must be .* got \(0, 2\)"),
    ({"tile": (4, 4)}, r"window \(2, 3\), got \(4, 4\); use \(4, 6\)"),
    ({"detach_every": 0}, "detach_every must be an integer of at least 1"),
    ({"x": torch.zeros(1, 8, 9, 5)}, "with C = 2"),
    ({"x": torch.zeros(1, 0, 9, 2)}, "extents of at least 1"),
    ({"initial_state": BoundaryState()}, "one BoundaryState for each of 1 layer"),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_what_does_not_fit_is_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    layer = make_layer((8, 9), torch.float32, window=(2, 3))
    arguments = {"layer": layer, "x": torch.zeros(1, 8, 9, 2), "tile": (2, 3), **wrong}
    refused(message, lambda: tiling.checkpointed(**arguments))


def test_inside_a_checkpoint_of_torch() -> None:
    layer, x = make_layer((3, 4)), torch.randn(1, 3, 4, 2, dtype=torch.float64).requires_grad_()
    y = torch.utils.checkpoint.checkpoint(
        lambda x: tiling.checkpointed(layer, x, 2), x, use_reentrant=False
    )
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(layer(x).sum(), x))
