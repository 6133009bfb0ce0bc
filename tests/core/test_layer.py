"""Promises of the layer beyond its backends: layout, windows, sizes, zeros."""

from __future__ import annotations

import pytest
import torch

from mdlstm_tk import MDLSTM
from mdlstm_tk._util import windows
from mdlstm_tk.cells import BUILT_IN_CELLS


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_each_cell_sees_exactly_its_own_quadrant(cell: str) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 4, cell=cell, directions="all").double()
    x = torch.randn(1, 4, 6, 1, dtype=torch.double, requires_grad=True)
    y = layer(x)  # four directions of 4 units
    for k, (down, right) in enumerate(layer.directions):
        for row, column in ((0, 0), (1, 0), (2, 3), (3, 5)):
            part = y[0, row, column, 4 * k : 4 * (k + 1)].sum()
            (seen,) = torch.autograd.grad(part, x, retain_graph=True)
            rows = torch.arange(4)[:, None] * down <= row * down
            columns = torch.arange(6)[None] * right <= column * right
            assert ((seen[0, ..., 0] != 0) == (rows & columns)).all()


@pytest.mark.parametrize("merge", ["concat", "sum", "mean"])
def test_merge(merge: str) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(2, 3, directions="all", merge=merge)
    both = MDLSTM(2, 3, directions="all")
    both.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4, 2)
    parts = both(x).unflatten(-1, (4, 3))
    expected = {"concat": parts.flatten(-2), "sum": parts.sum(-2), "mean": parts.mean(-2)}[merge]
    torch.testing.assert_close(layer(x), expected)
    assert layer.output_size == expected.shape[-1]


def test_stacking_feeds_one_layer_into_the_next() -> None:
    torch.manual_seed(0)
    stack = MDLSTM(2, 3, num_layers=2, directions="all", merge="sum")
    layers = [MDLSTM(size, 3, directions="all", merge="sum") for size in (2, 3)]
    for k, layer in enumerate(layers):
        state = {n.replace(f"_l{k}", "_l0"): p for n, p in stack.state_dict().items() if f"_l{k}" in n}
        layer.load_state_dict(state)
    x = torch.randn(2, 4, 3, 2)
    torch.testing.assert_close(stack(x), layers[1](layers[0](x)))


def test_dropout_acts_between_layers_while_training_only() -> None:
    layer = MDLSTM(1, 8, num_layers=2, dropout=0.5)
    x = torch.randn(1, 4, 4, 1)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    with pytest.warns(UserWarning, match="does nothing in one layer; raise num_layers"):
        MDLSTM(1, 8, dropout=0.5)


@pytest.mark.parametrize("short_run", [0, 100], ids=["one copy", "two copies"])
def test_windows_feed_blocks_as_features_and_pad_the_far_edge(
    short_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "SHORT_RUN", short_run)
    torch.manual_seed(0)
    layer = MDLSTM(2, 3, window=(2, 3))
    plain = MDLSTM(12, 3)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 7, 2)
    padded = torch.zeros(2, 6, 9, 2)
    padded[:, :5, :7] = x
    blocks = torch.empty(2, 3, 3, 12)
    for row in range(3):
        for column in range(3):
            block = padded[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            blocks[:, row, column] = block.reshape(2, 12)
    torch.testing.assert_close(layer(x), plain(blocks))


def test_channels_first() -> None:
    torch.manual_seed(0)
    last, first = MDLSTM(2, 3, window=2), MDLSTM(2, 3, window=2, channels_last=False)
    first.load_state_dict(last.state_dict())
    x = torch.randn(2, 4, 6, 2)
    torch.testing.assert_close(first(x.movedim(-1, 1)), last(x).movedim(-1, 1))


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_constant_input_has_sane_gradients_at_64x64(cell: str, layer_norm: bool) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 16, cell=cell, layer_norm=layer_norm)
    x = torch.stack([torch.zeros(64, 64, 1), torch.ones(64, 64, 1)]).requires_grad_()
    gradients = torch.autograd.grad(layer(x).mean(), [x, *layer.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) < 100
