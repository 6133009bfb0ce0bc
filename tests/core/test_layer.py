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


def test_a_direction_is_the_flipped_grid() -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 3, directions=[(-1, 1)])
    straight = MDLSTM(1, 3)
    straight.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 8, 1)
    torch.testing.assert_close(layer(x), straight(x.flip(1)).flip(1))


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


def test_windows_feed_blocks_as_features_and_pad_the_far_edge() -> None:
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


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 5, 7, 1), (4, 2)), ((2, 4, 4, 3), (1, 2)), ((1, 5, 4, 3, 1), (2, 2, 2))]
)
def test_windows_are_joined_alike_in_one_copy_and_in_two(
    shape: tuple[int, ...], window: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, found = torch.randn(shape, requires_grad=True), []
    for short_run in (0, windows.SHORT_RUN):
        monkeypatch.setattr(windows, "SHORT_RUN", short_run)
        y = windows.space_to_depth(x, window)
        grads = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
        found.append((y, *torch.autograd.grad(y, x, grads)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_channels_first() -> None:
    torch.manual_seed(0)
    last, first = MDLSTM(2, 3, window=2), MDLSTM(2, 3, window=2, channels_last=False)
    first.load_state_dict(last.state_dict())
    x = torch.randn(2, 4, 6, 2)
    torch.testing.assert_close(first(x.movedim(-1, 1)), last(x).movedim(-1, 1))


def test_sizes_give_the_result_of_the_unpadded_samples() -> None:
    """Also where windows reach beyond them. `test_ragged.py` has more."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 3, cell="stable", directions="all", num_layers=2, window=2).double()
    extents = [(5, 8), (3, 8), (5, 1), (1, 1), (2, 7)]
    batch = torch.full((5, 5, 8, 2), torch.nan, dtype=torch.double)  # padding may hold anything
    samples = []
    for k, (height, width) in enumerate(extents):
        samples.append(torch.randn(1, height, width, 2, dtype=torch.double))
        batch[k, :height, :width] = samples[-1][0]
    y = layer(batch, torch.tensor(extents))
    total = sum(layer(sample).square().sum() for sample in samples)
    expected = torch.autograd.grad(total, list(layer.parameters()))
    found = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    for k, (sample, (height, width)) in enumerate(zip(samples, extents, strict=True)):
        height, width = -(-height // 2), -(-width // 2)
        torch.testing.assert_close(y[k, :height, :width], layer(sample)[0])
        assert (y[k, height:] == 0).all()
        assert (y[k, :, width:] == 0).all()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_constant_input_has_sane_gradients_at_64x64(cell: str, layer_norm: bool) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(1, 16, cell=cell, layer_norm=layer_norm)
    x = torch.stack([torch.zeros(64, 64, 1), torch.ones(64, 64, 1)]).requires_grad_()
    gradients = torch.autograd.grad(layer(x).mean(), [x, *layer.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) < 100


def test_gates_start_as_open_as_the_docstring_says() -> None:
    layer = MDLSTM(1, 4, cell="stable")
    bias = layer.bias_l0[0].unflatten(0, (5, 4))
    assert (bias[1] == 1).all()
    assert (bias[2] == 0).all()
    joint = torch.cat([layer.weight_hh_l0[0, 0, :4], layer.weight_hh_l0[0, 1, :4]], dim=1)
    torch.testing.assert_close(joint @ joint.T, torch.eye(4))
    assert (MDLSTM(1, 4, ndim=1).bias_l0[0, 4:8] == 1).all()
