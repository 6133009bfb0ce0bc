"""Initial and final states: a grid swept in parts equals the whole, in every direction and backend.

The gradient that leaves one part through its initial states enters the part before through its final ones,
so chained parts also show that.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.parity import DTYPES
from helpers.states import UNITS, StateCase, check_tiles, make_layer, random_faces, run, to_state
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

from mdlstm_tk import MDLSTM, BoundaryState, InputError
from mdlstm_tk.backends.cpu import launch, plan, threads
from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell
from mdlstm_tk.state_operator import wavefront_states, wavefront_states_backward

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"
CORNERS = list(product((1, -1), repeat=2))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("direction", CORNERS, ids=str)
def test_a_grid_cut_anywhere_equals_the_whole(direction: tuple[int, int], dtype: str) -> None:
    grid = (4, 5)
    layer = make_layer(grid, DTYPES[dtype], directions=[direction])
    for d, extent in enumerate(grid):
        for place in range(1, extent):
            check_tiles(layer, grid, [[place] if axis == d else [] for axis in range(2)])


@pytest.mark.parametrize("direction", CORNERS, ids=str)
def test_three_by_four_tiles_equal_the_whole(direction: tuple[int, int]) -> None:
    check_tiles(make_layer((5, 8), directions=[direction]), (5, 8), [[1, 3], [2, 3, 6]])


@pytest.mark.parametrize("direction", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)], ids=str)
def test_blocks_of_a_volume_equal_the_whole(direction: tuple[int, ...]) -> None:
    layer = make_layer((3, 2, 4), directions=[direction])
    check_tiles(layer, (3, 2, 4), [[1], [1], [1, 3]])


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "backend": "torch"}], ids=["plain", "norm"])
def test_every_cell_can_be_cut(cell: str, options: dict[str, Any]) -> None:
    check_tiles(make_layer((3, 4), cell=cell, directions=[(-1, 1)], **options), (3, 4), [[2], [1]])


CASES = [
    *(StateCase(grid, sizes=sizes) for grid in [(4,), (3, 4), (2, 3, 2)] for sizes in (False, True)),
    StateCase((2, 1, 3, 2), "stable", directions=[(1, -1, 1, -1), (1, 1, 1, 1)]),
    *(StateCase(grid) for grid in [(1, 1), (1, 7), (7, 1), (5, 8)]),
    *(StateCase(batch=batch) for batch in (0, 1, 40)),  # with 40 a wavefront is longer than a block
    *(StateCase(cell=cell, sizes=True) for cell in BUILT_IN_CELLS[1:]),
    *(StateCase(sizes=True, options=("recompute",), dtype=dtype) for dtype in ("float64", "bfloat16")),
    StateCase((2, 3, 2), sizes=True, options=("recompute", "layer_norm", "peephole")),
    *(StateCase(sizes=True, dtype=dtype) for dtype in ("float32", "float16", "bfloat16")),
]


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: StateCase, backend: str) -> None:
    case.check(backend)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_a_cell_that_does_not_see_h(backend: str) -> None:
    StateCase(cell=get_cell(f"{EXAMPLE}:input-gated").name, sizes=True).check(backend)


def test_threads_share_a_sweep_with_states(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_SWEEP_OPERATIONS", "MIN_WAVEFRONT_OPERATIONS"):
        monkeypatch.setattr(threads, name, 1)
    plan.plans.clear()
    torch.set_num_threads(2)
    for sizes in (True, False):  # plans of ragged batches are not kept
        StateCase(batch=40, directions=[(1, 1), (-1, 1)], sizes=sizes).check("fused")  # one direction each
        StateCase(batch=40, directions=[(1, -1)], sizes=sizes).check(
            "fused"
        )  # the rows of a wavefront shared
    assert {made.division.threads for made in plan.plans.values()} == {2}
    plan.plans.clear()


def test_inference_with_states_keeps_c_of_two_wavefronts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of every position: the kernel writes the final states where lines end."""
    layer, x = make_layer((4, 5), directions="all"), torch.randn(2, 4, 5, 2, dtype=torch.float64)
    shapes: list[tuple[int, ...]] = []
    new = launch._new

    def recorded(like: Tensor, *shape: int) -> Tensor:
        shapes.append(shape)
        return new(like, *shape)

    monkeypatch.setattr(launch, "_new", recorded)
    with torch.no_grad():
        layer(x, return_state=True)
    longest = 4  # positions of a wavefront
    assert shapes == [(2, 4, 5, 4, UNITS), (4, 2 * longest * 2, UNITS)]


@pytest.mark.parametrize("packed", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("layers", [1, 2])
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
    found = [y, *(torch.stack([getattr(s, name)[0] for s in final]) for name in ("h", "c"))]
    for one, other in zip(found, [expected, of_layers(h_n), of_layers(c_n)], strict=True):
        torch.testing.assert_close(one, other)
    weights = [torch.randn_like(t) for t in found]
    ours = torch.autograd.grad(found, (h_0, c_0), weights)
    torch.testing.assert_close(
        ours,
        torch.autograd.grad([expected, of_layers(h_n), of_layers(c_n)], (h_0, c_0), weights),
    )


def test_sizes_are_those_of_samples_alone() -> None:
    """States enter and leave at a sample's own far ends, and what a face holds outside is ignored."""
    layer, grid = make_layer((4, 5), directions="all"), (4, 5)
    x = torch.randn(2, *grid, 2, dtype=torch.float64)
    faces = random_faces(2, grid, 4)
    sizes = torch.tensor([[4, 5], [2, 3]])
    with torch.no_grad():
        for face, extent in zip(faces, (3, 2, 3, 2), strict=True):
            face[1, extent:] = float("nan")
    y, last = run(layer, x, faces, sizes)
    alone = [face[1:, :extent] for face, extent in zip(faces, (3, 2, 3, 2), strict=True)]
    y_alone, last_alone = run(layer, x[1:, :2, :3], alone)
    torch.testing.assert_close(y[1:, :2, :3], y_alone)
    for face, one, extent in zip(last, last_alone, (3, 2, 3, 2), strict=True):
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
    batched = BoundaryState(*([face[None] for face in faces] for faces in state))
    torch.testing.assert_close(again, layer(x[None], initial_state=(batched,))[0])


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
def test_no_states_are_zeros(backend: str) -> None:
    layer, x = make_layer((3, 4), directions="all", backend=backend), torch.randn(2, 3, 4, 2).double()
    y = layer(x)
    zeros = [torch.zeros_like(face) for face in random_faces(2, (3, 4), 4)]
    for state in (to_state(zeros), (BoundaryState(),), (BoundaryState((None, zeros[1]), (None, None)),)):
        torch.testing.assert_close(layer(x, initial_state=state), y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes_of_states(dtype: torch.dtype) -> None:
    layer, x = make_layer((3, 4), dtype), torch.randn(2, 3, 4, 2).to(dtype)
    _, (state,) = layer(x, return_state=True)
    assert {face.dtype for face in state.h} == {dtype}
    assert {face.dtype for face in state.c} == {torch.float32}
    for given in (dtype, torch.float32):
        converted = BoundaryState(*([face.to(given) for face in faces] for faces in state))
        assert layer(x, initial_state=(converted,)).dtype == dtype
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", dtype):
        y, (state,) = layer(x, initial_state=(state,), return_state=True)
    assert {y.dtype, *(face.dtype for face in state.h)} == {dtype}
    assert {face.dtype for face in state.c} == {torch.float32}


def test_compiled_exported_and_differentiated_twice() -> None:
    layer, x = make_layer((3, 4), directions="all"), torch.randn(2, 3, 4, 2, dtype=torch.float64)
    state = to_state([face.detach() for face in random_faces(2, (3, 4), 4)])
    y, (last,) = layer(x, initial_state=state, return_state=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y_compiled, (last_compiled,) = compiled(x, initial_state=state, return_state=True)
    torch.testing.assert_close((y_compiled, last_compiled), (y, last))
    weights = list(layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(y_compiled.sum() + last_compiled.c[1].sum(), weights),
        torch.autograd.grad(y.sum() + last.c[1].sum(), weights),
    )
    exported = torch.export.export(layer, (x, None, state, True)).module()
    torch.testing.assert_close(exported(x, None, state, True), (y, (last,)))


def test_derivatives_against_differences() -> None:
    layer = make_layer((2, 2), directions=[(1, -1)])
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64).requires_grad_()
    faces, sizes = random_faces(2, (2, 2), 1), torch.tensor([[2, 2], [2, 1]])

    def function(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        y, last = run(layer, x, list(others[:4]), sizes)
        return y, *last

    inputs = (x, *faces, *layer.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_inside_functional_transforms() -> None:
    layer = make_layer((3, 2), directions="all")
    xs = torch.randn(2, 3, 3, 2, 2, dtype=torch.float64)
    faces = [face.detach() for face in random_faces(3, (3, 2), 4)]
    mapped = torch.func.vmap(lambda x: run(layer, x, faces))(xs)
    for k, x in enumerate(xs):
        y, last = run(layer, x, faces)
        torch.testing.assert_close(mapped[0][k], y)
        torch.testing.assert_close([face[k] for face in mapped[1]], last)


def operator_arguments(dtype: torch.dtype = torch.float32, gradients: bool = False) -> dict[str, Any]:
    layer = make_layer((3, 4), dtype, directions=[(1, 1), (-1, 1)])
    x, states = torch.randn(2, 3, 4, 2).to(dtype), torch.float32 if dtype.itemsize == 2 else dtype
    tensors = [x, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_l0]
    given = [t.detach().requires_grad_(gradients) for t in tensors]
    first = [torch.randn(2, 7, 2, UNITS).to(d).requires_grad_(gradients) for d in (dtype, states)]
    names = ("x", "weight_ih", "weight_hh", "bias", "peephole", "norm_weight", "norm_bias", "sizes")
    inputs = dict(zip(names, [*given, None, None, None, torch.tensor([[3, 4], [2, 1]])], strict=True))
    return inputs | {
        "directions": [1, 1, -1, 1], "cell": "graves", "h_first": first[0], "c_first": first[1]
    }  # fmt: skip


@pytest.mark.parametrize("name", ["h_first", "c_first", "dh_last", "dc_last"])
def test_the_operators_check_their_states(name: str) -> None:
    given = operator_arguments()
    output, h_last, c_last, gates, c = wavefront_states(*given.values(), True, False, "auto")
    last = {"dh_last": h_last, "dc_last": c_last}
    wrong: list[Tensor] = [(given | last)[name][:, :-1], (given | last)[name].double()]
    for tensor in [*wrong, (given | last)[name].to("meta")]:
        (given if name in given else last)[name] = tensor
        with pytest.raises(InputError, match=name):
            wavefront_states_backward(
                output, output, gates, c, *given.values(), *last.values(), "auto", True
            )
        if name in given:
            with pytest.raises(InputError, match=name):
                wavefront_states(*given.values(), True, False, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_are_what_their_schemas_and_fakes_say(dtype: torch.dtype) -> None:
    given = operator_arguments(dtype, gradients=dtype == torch.float32)
    check = torch.library.opcheck
    for save in (False, True):
        # With `recompute`, since kernels leave the gates of padded positions as they find them.
        check(wavefront_states, (*given.values(), save, True, "fused"))
    output, h_last, c_last, gates, c = (
        t.detach() for t in wavefront_states(*given.values(), True, True, "fused")
    )
    plain = {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()}
    last = (torch.randn_like(h_last), torch.randn_like(c_last))
    check(
        wavefront_states_backward,
        (torch.randn_like(output), output, gates, c, *plain.values(), *last, "fused", True),
    )


def test_floating_point_operations_are_those_without_states() -> None:
    layer, x = make_layer((3, 4), torch.float32, directions="all"), torch.randn(2, 3, 4, 2)
    counts = []
    for options in ({}, {"return_state": True}):
        with FlopCounterMode(display=False) as counter:
            out = layer(x, **options)
            (out[0] if options else out).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def state(**changed: Any) -> BoundaryState:
    h = tuple(torch.zeros(shape) for shape in [(2, 5, 1, UNITS), (2, 4, 1, UNITS)])
    return BoundaryState(h, h)._replace(**changed)


MISTAKES: dict[str, tuple[Any, str]] = {
    "no tuple": (state(), r"one BoundaryState for each of 1 layers, got a BoundaryState; write \(state,\)"),
    "too many layers": ((state(), state()), "for each of 1 layers, got a tuple of 2"),
    "a pair of tensors": (((torch.zeros(1), torch.zeros(1)),), "got a tuple of 1"),
    "a tensor": (torch.zeros(2, 4), r"got a tensor of shape \(2, 4\)"),
    "too few axes": ((state(h=(None,)),), r"initial_state\[0\].h must be a tuple .* each of 2 axes"),
    "a tensor for all axes": ((state(c=torch.zeros(2, 4)),), r"initial_state\[0\].c must be a tuple"),
    "faces swapped": (
        (state(h=state().h[::-1]),),
        r"initial_state\[0\].h\[0\] must be the face across axis 0 of the grid \(4, 5\), "
        r"\(N, E2, dirs, n\) = \(2, 5, 1, 3\), got shape \(2, 4, 1, 3\)",
    ),
    "no direction": (
        (state(c=(None, torch.zeros(2, 4, UNITS))),),
        r"c\[1\] must be the face across axis 1",
    ),
    "dtype": ((state(h=(torch.zeros(2, 5, 1, UNITS).double(), None)),), r"h\[0\] must have the dtype"),
    "device": (
        (state(h=(torch.zeros(2, 5, 1, UNITS, device="meta"), None)),),
        r"h\[0\] must be on x's device",
    ),
    "no tensor": ((state(h=(3, None)),), r"h\[0\] must be a tensor or None, got 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_state_that_does_not_fit_is_refused_in_one_line(mistake: str) -> None:
    given, message = MISTAKES[mistake]
    layer = make_layer((4, 5), torch.float32)
    with pytest.raises(InputError, match=message) as refused:
        layer(torch.zeros(2, 4, 5, 2), initial_state=given)
    assert "\n" not in str(refused.value)
