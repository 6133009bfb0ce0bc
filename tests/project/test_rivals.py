"""`benchmarks/rivals.py`: what its networks compute. No test asserts how fast anything is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.checkout import ROOT
from onnx import TensorProto, helper

sys.path.insert(0, str(ROOT / "benchmarks"))

import rivals


def seen(network: torch.nn.Module, position: tuple[int, int]) -> np.ndarray:
    """(16, 24): the positions of x whose values change the output at one position."""
    x = torch.randn(1, 16, 24, rivals.CHANNELS, requires_grad=True)
    network(x)[0, *position].sum().backward()
    assert x.grad is not None
    result: np.ndarray = x.grad[0].abs().sum(-1).numpy() > 0
    return result


def test_what_the_networks_see() -> None:
    networks, row, column = rivals.make_networks(), *np.indices((16, 24))
    assert seen(networks["MD-LSTM"], (5, 9)).all() and seen(networks["ViT block"], (5, 9)).all()
    np.testing.assert_array_equal(seen(networks["2 nn.LSTM"], (5, 9)), (row == 5) | (column == 9))
    window = seen(networks["7 convolutions"], (8, 10))
    assert not window[(abs(row - 8) > 7) | (abs(column - 10) > 7)].any()
    rows, columns = window.nonzero()
    assert np.ptp(rows) == np.ptp(columns) == 14


def test_patches_return_to_their_places() -> None:
    """Without attention, a change of one patch changes the output in this patch alone."""
    network = rivals.PatchAttention(rivals.CHANNELS, 8, 2)
    network.block = torch.nn.Identity()
    x = torch.zeros(1, 16, 24, rivals.CHANNELS)
    before = network(x)
    x[0, 9, 17] = 1
    changed = (network(x) != before).any(-1)[0].nonzero()
    assert changed.min(0).values.tolist() == [8, 16] and changed.max(0).values.tolist() == [15, 23]


@pytest.mark.slow
def test_a_table_of_all_networks() -> None:
    rows = rivals.table([(2, (8, 16))], seconds=0)
    assert [row[:2] for row in rows[:2]] == [["2, 8x16, 3", "MD-LSTM"], ["2, 8x16, 3", "MD-LSTM, scan"]]
    assert [row[1] for row in rows[2:]] == ["2 nn.LSTM", "7 convolutions", "ViT block"]
    assert {len(row) for row in rows} == {len(rivals.COLUMNS)}
    assert all(float(text) >= 0 for row in rows for text in row[2:] if text)
    assert [row.count("") for row in rows] == [0, 4, 0, 0, 0]  # torch runs the layer once, not by form
    assert [rows[0][k] for k in (3, 5, 7)] == ["1.00"] * 3


def test_an_export_that_disagrees_ends_the_script(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    x = torch.tensor([1.0, -1.0])
    rivals.runtime_step(path, x, torch.tensor([1.0, 0.0]))()
    for wrong in ([1.0, 0.01], [1.0, float("nan")]):
        with pytest.raises(SystemExit, match=r"relu\.onnx"):
            rivals.runtime_step(path, x, torch.tensor(wrong))
