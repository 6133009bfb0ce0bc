"""Initial and final states of a layer. Other tests compare sweeps with the oracle, and cut grids."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer
from helpers.own_cells import register_own_cells
from helpers.parity import random_faces, to_state
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from mdlstm_tk import MDLSTM, BoundaryState
from mdlstm_tk.cells import get_cell

pytestmark = pytest.mark.usefixtures("poisoned_memory")
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


def test_what_is_missing_counts_as_zeros() -> None:
    layer, x = make_layer((4, 6), num_layers=2), torch.randn(2, 4, 6, 2, dtype=torch.float64)
    y, states = layer(x[:, :2], return_state=True)
    entering = [{"h": (s.h[0], None), "c": (s.c[0], None)} for s in states]  # any mapping will do
    rest = layer(x[:, 2:], initial_state=entering)
    torch.testing.assert_close(torch.cat([y, rest], dim=1), layer(x, initial_state=[BoundaryState()] * 2))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sample_without_batch_axis_has_states_without_it(channels_last: bool) -> None:
    layer = make_layer((4, 5), directions="all", window=2, channels_last=channels_last)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    x = x if channels_last else x.movedim(-1, 0)
    y, (state,) = layer(x, [3, 2], return_state=True)
    batch, (batch_state,) = layer(x[None], [[3, 2]], return_state=True)
    torch.testing.assert_close([y, *tree_leaves(state)], [t[0] for t in (batch, *tree_leaves(batch_state))])
    again = layer(x, initial_state=(state,))
    torch.testing.assert_close(again, layer(x[None], initial_state=(batch_state,))[0])


@pytest.mark.parametrize("cell", ["graves", "slstm", "input-gated", "gru"])
def test_a_state_is_a_dict_of_the_states_of_its_cell(cell: str) -> None:
    with torch.no_grad():
        _, states = MDLSTM(2, 3, cell=cell)(torch.rand(1, 4, 5, 2), return_state=True)
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    kept = [torch.load(file, weights_only=True), pickle.loads(pickle.dumps(states)), copy.deepcopy(states)]
    kept.append(tree_map(lambda face: face.detach(), states))
    for (state,) in (states, *kept):
        assert isinstance(state, BoundaryState) and list(state) == ["h", *get_cell(cell).states]
        assert all(getattr(state, name) is faces for name, faces in state.items())
        torch.testing.assert_close(tree_leaves(state), tree_leaves(states), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes_of_states(dtype: torch.dtype) -> None:
    layer, x = make_layer((3, 4), dtype), torch.randn(2, 3, 4, 2).to(dtype)
    _, (state,) = layer(x, return_state=True)
    assert {face.dtype for face in state.h} == {dtype}
    assert {face.dtype for face in state.c} == {torch.float32}
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", dtype):
        y, (state,) = layer(x, initial_state=(state,), return_state=True)
    assert {y.dtype, *(face.dtype for face in state.h)} == {dtype}
    assert {face.dtype for face in state.c} == {torch.float32}


def test_states_in_graphs_and_transforms() -> None:
    layer = make_layer((3, 4), directions="all", cell="slstm")
    faces = [face.detach() for face in random_faces(2, (3, 4), 4, cell="slstm")]
    xs, first = torch.randn(2, 2, 3, 4, 2).double(), (to_state(faces, cell="slstm"),)
    arguments = xs[0], None, first, True
    expected, (last,) = layer(*arguments)
    for strict in (False, True):
        exported, _ = torch.export.export(layer, arguments, strict=strict).module()(*arguments)
        torch.testing.assert_close(exported, expected)
    compiled, (final,) = torch.compile(layer, backend="aot_eager", fullgraph=True)(*arguments)
    torch.testing.assert_close([compiled, *tree_leaves(final)], [expected, *tree_leaves(last)])
    of_weights = [
        torch.autograd.grad(y.sum() + state.c[1].sum(), list(layer.parameters()))
        for y, state in ((compiled, final), (expected, last))
    ]
    torch.testing.assert_close(*of_weights)
    stacked = tree_map(lambda face: torch.stack([face, face + 0.1]), first)
    mapped = torch.func.vmap(lambda x, first: layer(x, None, first, True))(xs, stacked)
    for k, one in enumerate(xs):
        initial = tree_map(lambda face, k=k: face[k], stacked)
        alone = tree_leaves(layer(one, None, initial, True))
        torch.testing.assert_close([face[k] for face in tree_leaves(mapped)], alone)


FACES = [torch.zeros(2, 5, 1, UNITS), torch.zeros(2, 4, 1, UNITS)]
MISTAKES: list[Any] = [
    (BoundaryState(h=FACES, c=FACES),) * 2,
    ((FACES, FACES),),
    (BoundaryState(h=FACES[:1], c=FACES),),
    (BoundaryState(h=FACES[::-1], c=FACES),),
    (BoundaryState(h=FACES, c=FACES, n=FACES),),
    (BoundaryState(h=FACES),),
    (BoundaryState(h=FACES, c=[None, FACES[1]]),),
]


def test_a_state_that_does_not_fit_is_refused() -> None:
    layer = make_layer((4, 5), torch.float32)
    for initial in MISTAKES:
        with pytest.raises((ValueError, IndexError, AttributeError)):
            layer(torch.zeros(2, 4, 5, 2), initial_state=initial)
