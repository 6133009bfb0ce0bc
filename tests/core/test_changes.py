"""Whatever a user changes between forward and backward: the same gradients as without it, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdlstm_tk import MDLSTM, BoundaryState, Gate, InputError, register_cell, tiling

STRENGTH = [1.0]  # what the equations of the cell read from outside


def define(factor: float, gates: str = "fz") -> None:
    """Register the cell "mine"."""

    @register_cell("mine", gates=[Gate(name, start=0.5) for name in gates])
    def mine(gates: Any, states: Any, output_activation: Any) -> Any:
        c = sum(states["c"]) * 0.4 * gates[0] + factor * STRENGTH[0] * sum(gates)
        return output_activation(c), {"c": c}


def setting(recompute: bool, backend: str, is_new: bool = True) -> SimpleNamespace:
    """A layer and all that it is called with. Without `is_new`, its cell is the one before: it has been
    compiled."""
    torch.manual_seed(0)
    if is_new:
        define(1.0)
    options: dict[str, Any] = {"directions": [(1, 1), (-1, 1)], "layer_norm": True, "recompute": recompute}
    layer = MDLSTM(2, 3, cell="mine", num_layers=2, backend=backend, **options).double()
    faces = [torch.randn(2, e, 2, 3, dtype=torch.float64).requires_grad_() for e in (4, 3)]
    of_layers = [faces[0], None], [None, faces[1]]
    states = [BoundaryState(h=list(of_layer), c=list(of_layer)) for of_layer in of_layers]
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64).requires_grad_()
    sizes = torch.tensor([[3, 4], [2, 3]])
    return SimpleNamespace(layer=layer, x=x, sizes=sizes, states=states, faces=faces)


def results(it: SimpleNamespace, how: str, change: Callable[[SimpleNamespace], Any] | None) -> list[Tensor]:
    """The gradients of everything, after a change since forward."""
    arguments = {"sizes": it.sizes, "initial_state": it.states, "return_state": True}
    if how == "tiles":
        it.y, it.final = tiling.checkpointed(it.layer, it.x, 2, **arguments)
    elif how == "compiled":
        it.y, it.final = torch.compile(it.layer, backend="aot_eager")(it.x, **arguments)
    else:
        it.y, it.final = it.layer(it.x, **arguments)
    leaves = [it.x, *it.faces, *it.layer.parameters()]
    loss = it.y.square().sum() + sum(state.c[0].square().sum() for state in it.final)
    context = change(it) if change else None
    with context if hasattr(context, "__exit__") else torch.enable_grad():
        return list(torch.autograd.grad(loss, leaves))


def in_place(*path: str) -> Callable[[SimpleNamespace], None]:
    """Multiply a tensor by 2 where it is."""

    def change(it: SimpleNamespace) -> None:
        tensor = it
        for name in path:
            tensor = tensor[int(name)] if name.isdigit() else getattr(tensor, name)
        with torch.no_grad():
            tensor.mul_(2)

    return change


def attribute(name: str, value: Any) -> Callable[[SimpleNamespace], None]:
    return lambda it: setattr(it.layer, name, value)


def step(it: SimpleNamespace) -> None:
    for parameter in it.layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(it.layer.parameters(), 0.1).step()


NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_l0", "norm_weight_l1", "norm_bias_l1")
CHANGES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "x": in_place("x"),
    **{name: in_place("layer", name) for name in NAMES},
    "sizes": lambda it: it.sizes.floor_divide_(2),
    "an initial state": in_place("faces", "0"),
    "the states": lambda it: it.states[0].clear(),
    "y": in_place("y"),
    "a final state": in_place("final", "0", "c", "0"),
    "another cell of the name": lambda it: define(2.0),
    "another cell with more gates": lambda it: define(1.0, "fzab"),
    "what equations read": lambda it: STRENGTH.__setitem__(0, 3.0),
    "an entry of directions": lambda it: it.layer.directions.__setitem__(0, (-1, -1)),
    "options": lambda it: vars(it.layer).update(
        hidden_size=7,
        ndim=3,
        recompute=it.layer.bias,
        bias=False,
        merge="sum",
        window=(2, 2),
        cell="stable",
    ),
    **{f"backend {name}": attribute("backend", name) for name in ("fused", "torch")},
    "bfloat16": lambda it: it.layer.bfloat16(),
    "meta": lambda it: it.layer.to("meta"),
    "other parameters": attribute("weight_ih_l0", nn.Parameter(torch.zeros(2, 6, 2))),
    "frozen": lambda it: it.layer.requires_grad_(False),
    "a step of an optimizer": step,
    "threads": lambda it: torch.set_num_threads(3),
    "autocast": lambda it: torch.autocast("cpu", torch.bfloat16),
}
CHANGES_OF_CELL = {"another cell of the name", "another cell with more gates", "what equations read"}
MAY_BE_REFUSED = {
    *NAMES,
    *("x", "sizes", "an initial state", "y", "a final state", "a step of an optimizer"),
    *("frozen", "bfloat16", "meta"),
}
SLOW = pytest.param("compiled", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _restored(fresh_registries: None) -> Iterator[None]:
    yield
    STRENGTH[0] = 1.0


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("how", ["fused", "torch", "tiles", SLOW])
def test_gradients_are_those_of_the_forward_pass(how: str, recompute: bool) -> None:
    backend = "torch" if how == "torch" else "fused"
    expected, refused = results(setting(recompute, backend), how, None), {}
    of_cell = False
    for name, change in CHANGES.items():
        is_new, of_cell = of_cell, name in CHANGES_OF_CELL
        try:
            actual = results(setting(recompute, backend, is_new or of_cell), how, change)
        except (InputError, RuntimeError) as error:
            refused[name] = str(error)
        else:
            message = f"{name}: "
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, msg=message.__add__)
        torch.set_num_threads(1)
        STRENGTH[0] = 1.0
    if how in ("fused", "tiles"):  # others may copy
        assert "modified by an inplace operation" in refused["weight_ih_l0"]
    assert set(refused) <= MAY_BE_REFUSED, refused


def test_what_hooks_return_in_place_of_saved_tensors_is_checked() -> None:
    """Kernels would read beyond them."""
    for change in (Tensor.float, lambda t: t.flatten()[:1], lambda t: t.to("meta")):
        it = setting(False, "fused")
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, change):
            y = it.layer(it.x.detach())
        with pytest.raises((InputError, RuntimeError)) as refused:
            torch.autograd.grad(y.sum(), list(it.layer.parameters()))
        assert "\n" not in str(refused.value)
