"""`mdlstm::wavefront` and its gradient: their schema, what they refuse, and the cells of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mdlstm_tk import MDLSTM, Gate, InputError, register_cell
from mdlstm_tk import sweep as sweep_module
from mdlstm_tk.layer import PARAMETERS

CONTEXT = ("grad", "output", "gates", "states", "dfinal")
SIZES = torch.tensor([[3, 4], [2, 1]])
INPUTS = (
    "Tensor x, Tensor weight_ih, Tensor? weight_hh, Tensor? bias, Tensor? peephole, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? initial, Tensor? sizes, int[] signs, str cell"
)


def test_the_schemas_are_those_of_saved_graphs() -> None:
    schemas = [
        str(op.default._schema) for op in (torch.ops.mdlstm.wavefront, torch.ops.mdlstm.wavefront_backward)
    ]
    assert schemas == [
        f"mdlstm::wavefront({INPUTS}, bool save, bool recompute, str backend) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        f"mdlstm::wavefront_backward({INPUTS}, Tensor grad, Tensor output, Tensor gates, Tensor states, "
        "Tensor? dfinal, bool recompute, str backend, bool wants_dx, bool wants_weights) "
        f"-> ({', '.join(['Tensor'] * 8)})",
    ]


def inputs_of(
    cell: str = "graves", dtype: torch.dtype = torch.float32, gradients: bool = False, **options: Any
) -> dict[str, Any]:
    """The fields of `SweepInputs` for two samples of 3×4 positions in two directions."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 5, cell=cell, directions=[(1, 1), (-1, 1)], **options).to(dtype)
    precise = torch.float32 if dtype.itemsize == 2 else dtype
    tensors = {
        "x": torch.randn(2, 3, 4, 2, dtype=dtype),
        **{name: getattr(layer, f"{name}_l0", None) for name in PARAMETERS},
        "initial": torch.rand(2, 7, 2, 2, 5, dtype=precise),
    }
    inputs = {k: None if t is None else t.detach().requires_grad_(gradients) for k, t in tensors.items()}
    return {**inputs, "sizes": SIZES, "signs": [1, 1, -1, 1], "cell": cell}


def forward(
    inputs: dict[str, Any], backend: str = "auto", save: bool = True, recompute: bool = False
) -> Any:
    return torch.ops.mdlstm.wavefront(*inputs.values(), save, recompute, backend)


def context_of(inputs: dict[str, Any], backend: str = "auto", **options: bool) -> dict[str, Tensor]:
    """The arguments of backward beside the inputs."""
    output, final, gates, states = (t.detach() for t in forward(inputs, backend, **options))
    values = (torch.ones_like(output), output, gates, states, torch.ones_like(final))
    return dict(zip(CONTEXT, values, strict=True))


def backward(inputs: dict[str, Any], context: dict[str, Tensor]) -> Any:
    return torch.ops.mdlstm.wavefront_backward(
        *inputs.values(), *context.values(), False, "auto", True, True
    )


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
    "one row less": lambda t: t[..., :-1],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_everything_that_kernels_read_is_checked(mistake: str) -> None:
    inputs = inputs_of(peephole=True, layer_norm=True)
    context = context_of(inputs)
    for name in ("x", *PARAMETERS, "initial", "sizes"):
        for run in (forward, lambda wrong: backward(wrong, context)):
            with pytest.raises(InputError):
                run({**inputs, name: MISTAKES[mistake](inputs[name])})
    for name in CONTEXT:
        with pytest.raises(InputError, match=name):
            backward(inputs, {**context, name: MISTAKES[mistake](context[name])})
    for changed in ({"weight_hh": None}, {"cell": "stable"}, {"signs": [1, 1, -1, 0]}):
        with pytest.raises(InputError):
            forward(inputs | changed)


@pytest.mark.parametrize(
    ("backend", "dtype", "gradients", "recompute", "states"),
    [
        ("fused", torch.float32, True, False, True),
        ("fused", torch.bfloat16, False, True, False),
        ("torch", torch.float32, True, True, True),
    ],
    ids=str,
)
def test_both_operators_are_what_their_schemas_and_fakes_say(
    backend: str, dtype: torch.dtype, gradients: bool, recompute: bool, states: bool
) -> None:
    inputs = inputs_of("stable", dtype, gradients, layer_norm=True) | ({} if states else {"initial": None})
    if backend == "fused":
        inputs["sizes"] = None  # kernels leave what they keep of padded positions as they find it
    check = torch.library.opcheck
    for save in (False, True):
        check(torch.ops.mdlstm.wavefront, (*inputs.values(), save, recompute, backend))
    context = context_of(inputs, backend, recompute=recompute) | ({} if states else {"dfinal": None})
    plain = [v.detach() if isinstance(v, Tensor) else v for v in (inputs | context).values()]
    check(torch.ops.mdlstm.wavefront_backward, (*plain, recompute, backend, True, True))


@pytest.mark.parametrize("captured", ["eager", "exported", "compiled"])
def test_a_cell_that_is_registered_again_changes_no_layer(
    captured: str, fresh_registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def define(factor: float, gates: str = "z") -> None:
        @register_cell("mine", gates=[Gate(name, "tanh") for name in gates], states=())
        def mine(gates: Any, states: Any) -> Any:
            return factor * sum(gates) + 0.5 * states["h"][0], {}

    define(1.0)
    layer, x = MDLSTM(2, 4, cell="mine"), torch.randn(2, 3, 4, 2)
    run: Any = layer
    if captured == "exported":
        run = torch.export.export(layer, (x,)).module()
    elif captured == "compiled":
        run = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected = layer(x)
    gradients = torch.autograd.grad(expected.sum(), list(layer.parameters()), retain_graph=True)
    y = run(x)
    for again in ((2.0,), (1.0, "zf")):
        define(*again)
        for output in (y, run(x), layer(x)):
            torch.testing.assert_close(output, expected)
        torch.testing.assert_close(torch.autograd.grad(run(x).sum(), list(run.parameters())), gradients)
        assert not torch.allclose(MDLSTM(2, 4, cell="mine")(x), expected)
    if captured == "exported":  # a process that loads the graph has no such layer
        monkeypatch.setattr(sweep_module, "_cells", {})
        with pytest.raises(InputError, match="'mine' was defined again"):
            run(x)
