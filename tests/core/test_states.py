"""Initial and final states of a layer.

`test_sweeps.py` compares sweeps with states with the reference, `test_random_cases.py` cuts grids.
"""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer, run
from helpers.own_cells import register_own_cells
from helpers.parity import random_faces, to_state
from helpers.refusal import refused
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from mdlstm_tk import MDLSTM, BoundaryState, InputError
from mdlstm_tk.cells import get_cell

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")
UNITS = 5


@pytest.fixture(autouse=True)
def _cells(fresh_registries: None) -> None:
    """Register the test cells, among them "input-gated", which has two states and does not see h."""
    register_own_cells()


@pytest.mark.parametrize(("layers", "packed"), [(1, False), (2, True)])
def test_one_axis_is_torch_lstm_states_included(layers: int, packed: bool) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(2, UNITS, layers, batch_first=True, bidirectional=True).double()
    layer = MDLSTM(2, UNITS, ndim=1, directions="all", num_layers=layers).double()
    with torch.no_grad():
        for k, (direction, suffix) in product(range(layers), enumerate(("", "_reverse"))):
            theirs = {name: getattr(lstm, f"{name}_l{k}{suffix}") for name in ("weight_ih", "weight_hh")}
            getattr(layer, f"weight_ih_l{k}")[direction] = theirs["weight_ih"]
            getattr(layer, f"weight_hh_l{k}")[direction, 0] = theirs["weight_hh"]
            biases = [getattr(lstm, f"bias_{kind}_l{k}{suffix}") for kind in ("ih", "hh")]
            getattr(layer, f"bias_l{k}")[direction] = biases[0] + biases[1]
    x = torch.randn(4, 7, 2, dtype=torch.float64)
    h_0, c_0 = (torch.randn(2 * layers, 4, UNITS, dtype=torch.float64).requires_grad_() for _ in range(2))
    lengths = torch.tensor([3, 7, 1, 5]) if packed else None

    def of_layers(states: Tensor) -> Tensor:
        """(layers · dirs, N, n) → (layers, N, dirs, n)."""
        return states.unflatten(0, (layers, 2)).transpose(1, 2)

    state = [BoundaryState((h,), (c,)) for h, c in zip(of_layers(h_0), of_layers(c_0), strict=True)]
    sizes = None if lengths is None else lengths[:, None]
    y, final = layer(x, sizes, initial_state=state, return_state=True)
    if lengths is None:
        expected, (h_n, c_n) = lstm(x, (h_0, c_0))
    else:
        sequences = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h_n, c_n) = lstm(sequences, (h_0, c_0))
        expected, _ = pad_packed_sequence(out, batch_first=True)
    results = [y, *(torch.stack([getattr(s, name)[0] for s in final]) for name in ("h", "c"))]
    expected_results = [expected, of_layers(h_n), of_layers(c_n)]
    torch.testing.assert_close(results, expected_results)
    weights = [torch.randn_like(t) for t in results]
    gradients = torch.autograd.grad(results, (h_0, c_0), weights)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_results, (h_0, c_0), weights))


def test_padding_does_not_affect_a_sample() -> None:
    """States enter and leave at a sample's own far ends, and what a face holds outside is ignored."""
    layer, grid = make_layer((4, 5), directions="all"), (4, 5)
    x = torch.randn(2, *grid, 2, dtype=torch.float64)
    faces = random_faces(2, grid, 4)
    sizes = torch.tensor([[4, 5], [2, 3]])
    extents = (3, 2, 3, 2)  # h, then c; the face across axis 0 spans axis 1
    with torch.no_grad():
        for face, extent in zip(faces, extents, strict=True):
            face[1, extent:] = float("nan")
    y, last = run(layer, x, faces, sizes)
    alone = [face[1:, :extent] for face, extent in zip(faces, extents, strict=True)]
    y_alone, last_alone = run(layer, x[1:, :2, :3], alone)
    torch.testing.assert_close(y[1:, :2, :3], y_alone)
    for face, one, extent in zip(last, last_alone, extents, strict=True):
        torch.testing.assert_close(face[1:, :extent], one)
        assert (face[1, extent:] == 0).all()
    gradients = torch.autograd.grad(
        [y, *last], [*faces, *layer.parameters()], [torch.ones_like(t) for t in [y, *last]]
    )
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_layers_and_windows_have_states_of_their_own() -> None:
    layer = make_layer((8, 6), num_layers=2, window=(2, 3), merge="sum", directions=[(1, 1)])
    x = torch.randn(2, 8, 6, 2, dtype=torch.float64)
    y, state = layer(x, return_state=True)
    assert [tuple(h.shape) for h in (*state[0].h, *state[1].c)] == [(2, 2, 1, UNITS), (2, 4, 1, UNITS)] * 2
    top, state = layer(x[:, :4], return_state=True)
    down = tuple(BoundaryState((s.h[0], None), (s.c[0], None)) for s in state)
    bottom = layer(x[:, 4:], initial_state=down)
    torch.testing.assert_close(torch.cat([top, bottom], dim=1), y)
    assert torch.equal(layer(x), y)


def test_without_a_batch_axis() -> None:
    layer, x = make_layer((4, 5), directions="all"), torch.randn(4, 5, 2, dtype=torch.float64)
    _, (state,) = layer(x, return_state=True)
    assert [tuple(c.shape) for c in state.c] == [(5, 4, UNITS), (4, 4, UNITS)]
    again = layer(x, initial_state=(state,))
    batched = tree_map(lambda face: face[None], state)
    torch.testing.assert_close(again, layer(x[None], initial_state=(batched,))[0])


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
def test_missing_states_count_as_zeros(backend: str) -> None:
    layer, x = make_layer((3, 4), directions="all", backend=backend), torch.randn(2, 3, 4, 2).double()
    y = layer(x)
    zeros = [torch.zeros_like(face) for face in random_faces(2, (3, 4), 4)]
    for state in (
        (to_state(zeros),),
        (BoundaryState(),),
        (BoundaryState((None, zeros[1]), (None, zeros[3])),),
    ):
        torch.testing.assert_close(layer(x, initial_state=state), y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cell", ["graves", "slstm", "input-gated", "gru"])
def test_a_state_has_the_states_of_its_cell_alone(cell: str) -> None:
    """So that docs/pytorch_layer.md detaches those of each cell."""
    layer = MDLSTM(2, 3, cell=cell)
    _, (state,) = layer(torch.rand(1, 4, 5, 2), return_state=True)
    assert list(vars(state)) == ["h", *get_cell(cell).states]
    detached = BoundaryState(
        **{name: [face.detach() for face in faces] for name, faces in vars(state).items()}
    )
    mapped = tree_map(lambda face: face.detach(), state)
    for again in (detached, mapped):
        assert list(vars(again)) == list(vars(state))
        assert not any(face.requires_grad for faces in again for face in faces)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes_of_states(dtype: torch.dtype) -> None:
    layer, x = make_layer((3, 4), dtype), torch.randn(2, 3, 4, 2).to(dtype)
    _, (state,) = layer(x, return_state=True)
    assert {face.dtype for face in state.h} == {dtype}
    assert {face.dtype for face in state.c} == {torch.float32}
    for state_dtype in (dtype, torch.float32):
        converted = tree_map(lambda face, dtype=state_dtype: face.to(dtype), state)
        assert layer(x, initial_state=(converted,)).dtype == dtype
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", dtype):
        y, (state,) = layer(x, initial_state=(state,), return_state=True)
    assert {y.dtype, *(face.dtype for face in state.h)} == {dtype}
    assert {face.dtype for face in state.c} == {torch.float32}


def plain(result: Any) -> Any:
    """The tensors of y and states, for comparisons."""
    return [face for face in tree_leaves(result) if face is not None]


@pytest.fixture(params=["graves", "slstm", "input-gated"])
def example(request: pytest.FixtureRequest, _cells: None) -> tuple[MDLSTM, Tensor, tuple[BoundaryState]]:
    """A layer, x (2, 2, 3, 4, 2), two batches of it, and an initial state."""
    layer = make_layer((3, 4), directions="all", cell=request.param)
    faces = [face.detach() for face in random_faces(2, (3, 4), 4, cell=request.param)]
    return layer, torch.randn(2, 2, 3, 4, 2).double(), (to_state(faces, cell=request.param),)


def test_states_are_saved(example: Any) -> None:
    first, file = example[2], io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert repr(loaded[0]).startswith("BoundaryState(h=[(2, 4, 4, 5), (2, 3, 4, 5)], c=[(2, 4, 4, 5), ")
    torch.testing.assert_close(plain(loaded), plain(first), rtol=0, atol=0)


def test_a_layer_with_states_is_exported_and_compiled(example: Any) -> None:
    layer, (x, _), first = example
    expected = layer(x, None, first, True)
    exported = torch.export.export(layer, (x, None, first, True)).module()(x, None, first, True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x, None, first, True)
    torch.testing.assert_close([plain(exported), plain(compiled)], [plain(expected)] * 2)
    of_weights = [
        torch.autograd.grad(y.sum() + last.c[1].sum(), list(layer.parameters()))
        for y, (last,) in (compiled, expected)
    ]
    torch.testing.assert_close(*of_weights)


def test_states_are_mapped_by_vmap(example: Any) -> None:
    layer, x, first = example
    stacked = tree_map(lambda face: torch.stack([face, face + 0.1]), first)
    mapped = plain(torch.func.vmap(lambda x, first: layer(x, None, first, True))(x, stacked))
    for k, one in enumerate(x):
        initial = tree_map(lambda face, k=k: face[k], stacked)
        torch.testing.assert_close([face[k] for face in mapped], plain(layer(one, None, initial, True)))


@pytest.mark.parametrize(("cell", "grid"), [("graves", (2, 2)), ("slstm", (2,))], ids=str)
def test_second_derivatives(cell: str, grid: tuple[int, ...]) -> None:
    layer = make_layer(grid, units=2, cell=cell, directions=[(1, -1)[: len(grid)]])
    x = torch.randn(2, *grid, 2, dtype=torch.float64).requires_grad_()
    faces, sizes = random_faces(2, grid, 1, 2, cell), torch.tensor([[2, 2], [2, 1]])[:, -len(grid) :]

    def function(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        y, last = run(layer, x, list(others[: len(faces)]), sizes)
        return y, *last

    # gradgradcheck perturbs the parameters in place
    for wants_dx in (True, False):
        leaves = (x.detach().requires_grad_(wants_dx), *faces, *layer.parameters())
        assert torch.autograd.gradgradcheck(function, leaves)


def make_state(**changed: Any) -> BoundaryState:
    h = tuple(torch.zeros(shape) for shape in [(2, 5, 1, UNITS), (2, 4, 1, UNITS)])
    return BoundaryState(**{"h": h, "c": h, **changed})


MISTAKES: list[tuple[Any, str]] = [
    (make_state(), r"of 1 layer, got a BoundaryState; write \(state,\)"),
    ((make_state(), make_state()), "of 1 layer, got a tuple of 2"),
    (((torch.zeros(1), torch.zeros(1)),), "got a tuple of 1"),
    ((make_state(h=(None,)),), r"initial_state\[0\].h must be a tuple .* of 2 axes"),
    ((make_state(c=torch.zeros(2, 4)),), r"initial_state\[0\].c must be a tuple"),
    (
        (make_state(h=make_state().h[::-1]),),
        r"h\[0\] .* axis 0 of the grid \(4, 5\), \(N, E2, .* = \(2, 5, 1, 5\), got shape \(2, 4, 1, 5\)",
    ),
    (
        (make_state(h=(torch.zeros(2, 5, 1, UNITS).double(), make_state().h[1])),),
        r"h\[0\] .* dtype .*float64",
    ),
    (
        (make_state(h=(torch.zeros(2, 5, 1, UNITS, device="meta"), make_state().h[1])),),
        r"h\[0\] .* device .*meta",
    ),
    ((make_state(n=make_state().h),), r"initial_state\[0\] .* h, c .*, got n"),
    ((make_state(h=(3, None), c=(make_state().c[0], None)),), r"h\[0\] must be a tensor or None, got 3"),
]


@pytest.mark.parametrize(("initial", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_state_that_does_not_fit_is_refused_in_one_line(initial: Any, message: str) -> None:
    layer = make_layer((4, 5), torch.float32)
    refused(message, lambda: layer(torch.zeros(2, 4, 5, 2), initial_state=initial))


@pytest.mark.parametrize("cell", ["graves", "slstm", "input-gated"])
def test_every_partial_set_of_states_is_refused(cell: str) -> None:
    layer, x, names = (
        make_layer((3, 4), cell=cell),
        torch.zeros(1, 3, 4, 2).double(),
        ("h", *get_cell(cell).states),
    )
    faces = {name: [torch.zeros(1, extent, 1, UNITS).double() for extent in (4, 3)] for name in names}
    for axis, given in product(range(2), product((False, True), repeat=len(names))):
        some = {
            name: [face if is_given or d != axis else None for d, face in enumerate(faces[name])]
            for name, is_given in zip(names, given, strict=True)
        }
        if len(set(given)) == 1:
            layer(x, initial_state=(BoundaryState(**some),))
        else:
            missing = ", ".join(name for name, is_given in zip(names, given, strict=True) if not is_given)
            with pytest.raises(InputError, match=f"across axis {axis} .* got None for {missing}$"):
                layer(x, initial_state=(BoundaryState(**some),))


def test_reading_a_missing_state_lists_the_others() -> None:
    with pytest.raises(AttributeError, match="has no state 'n', only h, c"):
        _ = make_state().n


def test_wrappers_that_look_for_tensors_in_an_output_find_the_states() -> None:
    """`DistributedDataParallel` and FSDP look into dataclasses alone."""
    from torch.distributed.utils import _apply_to_tensors
    from torch.nn.parallel.distributed import _find_tensors

    state = BoundaryState(h=(torch.ones(1), None), c=(torch.ones(2), torch.ones(3)))
    assert [len(t) for t in _find_tensors(state)] == [1, 2, 3]
    doubled = _apply_to_tensors(lambda t: 2 * t, (state,))[0]
    assert repr(doubled) == repr(state)
    assert doubled.c[1].tolist() == [2, 2, 2]
