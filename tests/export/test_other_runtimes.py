"""Exported files in OpenVINO and tract, and with an operator as CUDA has it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.networks import Tokens
from helpers.sweeps import FORMS, GRIDS, Sweep, lowered, random_x
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.export import export_onnx, float64_reference

Feeds = Mapping[str, np.ndarray]


def in_openvino(model: onnx.ModelProto, feeds: Feeds) -> np.ndarray:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it forks, and calls its makers
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)(dict(feeds))[0]


def in_tract(model: onnx.ModelProto, feeds: Feeds, path: Path) -> np.ndarray:
    tract = pytest.importorskip("tract")
    onnx.save(model, path)
    loaded = tract.onnx().load(str(path))
    for k, array in enumerate(feeds.values()):
        kind = "f32" if array.dtype == np.float32 else "i64"
        loaded.set_input_fact(k, ",".join([*map(str, array.shape), kind]))
    return loaded.into_model().into_runnable().run(list(feeds.values()))[0].to_numpy()


def padded_feeds(grid: tuple[int, ...], dtype: type = np.float32) -> dict[str, np.ndarray]:
    sizes = [grid, tuple(max(1, extent - 1) for extent in grid)]
    return {"x": random_x(2, grid, dtype), "sizes": np.asarray(sizes, np.int64)}


@pytest.mark.parametrize(
    ("cell", "ndim", "form"),  # any two of which meet
    [(cell, 1 + d, FORMS[(k + d) % 2]) for k, cell in enumerate(BUILT_IN_CELLS) for d in range(3)],
)
def test_sweeps_agree_with_float64_in_openvino_and_tract(
    cell: str, ndim: int, form: str, tmp_path: Path
) -> None:
    grid, directions = GRIDS[ndim], 1 if ndim == 3 else "all"
    sweep = Sweep.random(cell, directions, ndim, layer_norm=ndim == 2, peephole=cell == "graves")
    feeds = padded_feeds(grid)
    exact, unrolled = sweep.exact(**feeds), lowered(sweep, "unrolled", grid, sizes=True)
    y = in_openvino(unrolled if form == "unrolled" else lowered(sweep, form, grid, sizes=True), feeds)
    assert np.abs(y - exact).max() <= 1e-5
    assert np.abs(in_tract(unrolled, feeds, tmp_path / "m.onnx") - exact).max() <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_openvino_agrees_with_float64_in_float16(form: str) -> None:
    sweep, feeds = Sweep.random("stable", dtype=np.float16), padded_feeds((3, 5), np.float16)
    y = in_openvino(lowered(sweep, form, (3, 5), sizes=True), feeds)
    assert np.abs(y - sweep.exact(**feeds)).max() <= 5e-3


def test_networks_run_in_openvino_and_tract(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MDLSTM(1, 3, window=(2, 3), num_layers=2, directions="all", merge="sum")
    model = onnx.load(export_onnx(net, tmp_path / "scan.onnx", form="scan").path)
    for grid in ((5, 7), (1, 9), (4, 3)):
        x = random_x(2, grid)[..., :1]
        exact = float64_reference(net)(x)
        assert np.abs(in_openvino(model, {"x": x}) - exact).max() <= 1e-5
    model = onnx.load(export_onnx(net, tmp_path / "unrolled.onnx", grid=(4, 3)).path)
    assert np.abs(in_openvino(model, {"x": x}) - exact).max() <= 1e-5
    assert np.abs(in_tract(model, {"x": x}, tmp_path / "t.onnx") - exact).max() <= 1e-5


class Gather(OpRun):
    """The operator as ONNX Runtime has it on CUDA: what lies beyond a table is zeros."""

    op_domain, op_schema = "", onnx.defs.get_schema("Gather")

    def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[Any]:
        exists = (indices >= -data.shape[axis]) & (indices < data.shape[axis])
        rows = np.take(data, np.where(exists, indices, 0), axis)
        if axis == 0:
            rows[~exists] = 0
        return (rows,)


def test_a_token_that_a_table_lacks_is_no_number(tmp_path: Path) -> None:
    tokens = torch.randint(7, (1, 3, 4))
    path = export_onnx(Tokens(0), tmp_path / "m.onnx", tokens, dtype="float16").path
    for token in (-1, 7, 100):
        x = tokens[..., None].numpy().astype(np.float32)
        x[0, 2, 3] = token
        (y,) = ReferenceEvaluator(onnx.load(path), new_ops=[Gather]).run(None, {"x": x})
        assert np.isnan(y[0, 2, 3]).all() and np.isfinite(y[0, :2]).all() and np.isfinite(y[0, 2, :3]).all()
