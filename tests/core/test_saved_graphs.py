"""Graphs that torch saved with the operator in them, loaded by a process that only imports the operator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.requirements import missing
from torch import Tensor

from mdlstm_tk import MDLSTM

LOAD = """
import mdlstm_tk.layer
import torch
x, expected = torch.load("tensors.pt")
for net in ({expressions},):
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(net(x[:1]), expected[:1], rtol=0, atol=1e-6)
"""


@pytest.fixture
def network() -> tuple[MDLSTM, Tensor]:
    """A layer and its input."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 4, directions="all", cell="stable").eval()
    return layer, torch.linspace(-1, 1, 2 * 3 * 4 * 2).view(2, 3, 4, 2)


def exported(layer: MDLSTM, x: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))


def load(expressions: str, layer: MDLSTM, x: Tensor, folder: Path) -> None:
    """Load graphs in a process of its own and compare their outputs with the layer's."""
    with torch.no_grad():
        torch.save((x, layer(x)), folder / "tensors.pt")
    code = LOAD.format(expressions=expressions)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and shapes become constants
def test_an_exported_program_and_a_trace(network: tuple[MDLSTM, Tensor], tmp_path: Path) -> None:
    torch.export.save(exported(*network), tmp_path / "net.pt2")
    torch.jit.trace(*network).save(str(tmp_path / "net.ts"))
    load("torch.export.load('net.pt2').module(), torch.jit.load('net.ts')", *network, tmp_path)


def test_an_exported_layer_with_windows_takes_any_extents() -> None:
    torch.manual_seed(0)
    layer, sizes = MDLSTM(2, 3, window=(2, 3)), torch.tensor([[5, 4], [2, 3]])
    extents = {1: torch.export.Dim("height", min=3), 2: torch.export.Dim("width", min=4)}
    program = torch.export.export(
        layer, (torch.randn(2, 5, 4, 2), sizes), dynamic_shapes={"x": extents, "sizes": {}}
    )
    for grid in ((5, 4), (6, 6), (9, 10)):
        x = torch.randn(2, *grid, 2)
        torch.testing.assert_close(program.module()(x, sizes), layer(x, sizes), rtol=0, atol=0)


@pytest.mark.weekly
@pytest.mark.timeout(900)  # a C++ compiler reads all of torch's headers
def test_a_package_of_aot_inductor(
    network: tuple[MDLSTM, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        missing("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    quickly = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    torch._inductor.aoti_compile_and_package(
        exported(*network), package_path=str(tmp_path / "net.pt2"), inductor_configs=quickly
    )
    load("torch._inductor.aoti_load_package('net.pt2')", *network, tmp_path)
