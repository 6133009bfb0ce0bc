"""Index tables of sweeps: their size, and where they may be made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, jvp

import mdlstm_tk
from mdlstm_tk import MDLSTM, wavefront
from mdlstm_tk.backends import tables


def test_tables_take_four_bytes_an_entry() -> None:
    front = wavefront.wavefronts((30, 40))
    sweep = tables.sweep_tables((30, 40), ((1, 1),), torch.device("cpu"))
    for table in (front.order, front.predecessors, front.successors):
        assert table.dtype == np.int32
    tensors = [sweep.order, sweep.inverse_order, sweep.predecessors, sweep.successors, *sweep.previous]
    assert {tensor.dtype for tensor in tensors} == {torch.int32}
    assert front.nbytes < 21 * 30 * 40
    assert sweep.nbytes == sum(tensor.nbytes for tensor in [sweep.starts, *tensors]) < 33 * 30 * 40


def test_a_ragged_batch_has_no_wavefront_without_rows() -> None:
    for extents, counts in {((1, 1), (1, 1)): [2], ((2, 1), (1, 1)): [2, 1], ((0, 3), (0, 0)): [0]}.items():
        table = tables.ragged_tables(extents, (3, 3), ((1, 1),), torch.device("cpu"))
        assert table.counts == counts


@pytest.mark.parametrize("first", [lambda f: grad(lambda x: f(x).sum()), torch.inference_mode()])
def test_tables_made_in_a_transform_or_in_inference_mode_serve_training(first: Any) -> None:
    mdlstm_tk.clear_caches()
    layer, x = MDLSTM(2, 3, backend="torch"), torch.randn(1, 3, 4, 2)
    first(layer)(x)
    torch.testing.assert_close(jvp(layer, (x,), (x,))[0], layer(x))
    gradient = torch.autograd.grad(layer(x).square().sum(), layer.weight_ih_l0, create_graph=True)[0]
    gradient.square().sum().backward()
