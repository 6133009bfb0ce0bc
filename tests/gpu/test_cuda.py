"""On a machine with CUDA: torch and ONNX Runtime there against the CPU and float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.own_cells import register_own_cells
from helpers.parity import Case, combined
from torch.export.passes import move_to_device_pass

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
needs_provider = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no CUDA device, or this onnxruntime was built without CUDA",
)


GRIDS = {1: ((40,), (7,)), 2: ((9, 14), (5, 8)), 3: ((3, 4, 5), (2, 1, 9))}  # too big for the interpreter


@needs_cuda
@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("case", combined(GRIDS), ids=str)
def test_both_backends_agree_with_the_oracle(case: Case, backend: str, fresh_registries: None) -> None:
    register_own_cells()
    case.check(backend, "cuda")
    replace(case, units=33, batch=17, dtype="float32").check(backend, "cuda")


@needs_cuda
def test_a_sweep_waits_for_nothing_and_can_be_captured() -> None:
    layer = MDLSTM(2, 16, cell="stable", directions="all", layer_norm=True).cuda()
    x = torch.randn(4, 6, 5, 2, device="cuda", requires_grad=True)
    assert layer.backend_for(x) == ("fused", "compiled by Triton")
    leaves = [x, *layer.parameters()]

    def step() -> tuple[torch.Tensor, ...]:
        y = layer(x)
        return (y, *torch.autograd.grad(y.square().sum(), leaves))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for actual, expected in zip(replayed, step(), strict=True):
        torch.testing.assert_close(actual, expected)


@needs_cuda
def test_a_ragged_batch_waits_for_nothing_but_its_sizes() -> None:
    """And on the CPU they are there already."""
    layer, x = MDLSTM(2, 16, directions="all", window=2).cuda(), torch.randn(3, 6, 8, 2, device="cuda")

    def step(sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = layer(x, sizes)
        return (y, *torch.autograd.grad(y.square().sum(), list(layer.parameters())))

    step(torch.tensor([[6, 8], [3, 1], [1, 8]]))  # compiles
    sizes = torch.tensor([[5, 8], [2, 3], [4, 8]])
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = step(sizes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(actual, step(sizes.cuda()), strict=True):
        torch.testing.assert_close(one, other)


@needs_cuda
@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_a_graph_captured_on_the_cpu_runs_on_the_gpu(backend: str) -> None:
    layer, x = MDLSTM(2, 5, directions="all", backend=backend), torch.randn(3, 5, 8, 2)
    program = torch.export.export(layer, (x,))
    moved = move_to_device_pass(program, "cuda").module()
    torch.testing.assert_close(moved(x.cuda()).cpu(), layer(x), rtol=0, atol=1e-5)
    traced = torch.jit.trace(layer, x).cuda()
    torch.testing.assert_close(traced(x.cuda()).cpu(), layer.cpu()(x), rtol=0, atol=1e-5)


@needs_provider
@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (32, 32)])
def test_the_cuda_provider_equals_the_cpu_and_float64(grid: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create("md", 1, 1, cell="stable", directions="all")
    report = export_onnx(net, tmp_path / "m.onnx", grid=grid)
    cpu, cuda = Session(report.path, "cpu"), Session(report.path, "cuda")
    assert cuda.device == "cuda:0"
    for batch in (1, 7):
        x = np.random.default_rng(0).random((batch, *grid, 1), dtype=np.float32)
        assert np.abs(cuda(x) - cpu(x)).max() <= 1e-5
        assert np.abs(cuda(x) - float64_reference(net)(x)).max() <= 1e-5
