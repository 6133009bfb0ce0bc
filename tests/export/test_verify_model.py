"""`verify_model` and `mdlstm verify`: is the graph the network, and does the runtime compute it?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import Result, mdlstm
from helpers.crafted_models import node
from helpers.damage import damage
from helpers.networks import Conditioned, Function, ManyHeads, Tokens
from helpers.small_models import write_model
from torch import nn

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, export_run, verify_model
from mdlstm_tk.training import Run

BOTH = {"ONNX Runtime, cpu", "graph in float64"}


def verify(*arguments: object) -> Result:
    return mdlstm("verify", *arguments)


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A network with further inputs, and its file."""
    torch.manual_seed(0)
    net, path = Conditioned(), tmp_path_factory.mktemp("conditioned") / "net.onnx"
    export_onnx(net, path, (torch.randn(2, 3, 4, 2), torch.randn(2, 2), torch.tensor([3, 1])))
    return net, path


def test_a_run_folder_is_verified_with_all_its_exports(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    export_run(folder, grid=(3, 5))
    report = verify_model(folder, device="cpu", seeds=1)
    assert [path.name for path in report.models] == ["model-3x5.onnx", "model-8x8.onnx"]
    assert report.failed == []
    damage(folder / "model-3x5.onnx", folder / "model-3x5.onnx", 2)
    (folder / ".model-9x9.onnx.5f.onnx").write_bytes(b"a leftover of a killed export")
    done = verify(folder, "--seeds", "1")
    assert done.code == 3 and "FAILED" in done.out
    assert "model-3x5.onnx, 3x5" in done.err
    with pytest.raises(InputError, match="holds no model"):
        verify_model(tmp_path)


def test_a_file_is_verified_against_its_network_or_its_own_graph(
    conditioned: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    net, path = conditioned
    report = verify_model(path, net, device="cpu", seeds=1)
    assert report.outcomes.keys() == BOTH and report.failed == []
    assert net.training  # the module itself is unchanged
    done = verify(path, "--seeds", "1")
    assert done.code == 0 and "its own graph" in done.err
    damage(path, tmp_path / "damaged.onnx", 3)
    report = verify_model(tmp_path / "damaged.onnx", net, device="cpu", seeds=1)
    assert set(report.failed) == BOTH
    alone = verify_model(tmp_path / "damaged.onnx", device="cpu", seeds=1)
    assert alone.outcomes.keys() == BOTH - {"graph in float64"} and alone.failed == []  # runs as written


def test_the_users_own_arrays_are_compared(conditioned: tuple[nn.Module, Path], tmp_path: Path) -> None:
    net, path = conditioned
    x, k = np.random.default_rng(0).random((3, 4, 2), np.float32), np.array(2)
    mine = {"x": x, "z": np.ones(2, np.float32), "k": k}
    report = verify_model(path, net, inputs={"mine": mine}, device="cpu")
    assert {*report.outcomes["ONNX Runtime, cpu"]} == {"mine"} and report.failed == []
    np.savez(tmp_path / "mine.npz", **mine)
    done = verify(path, "--data", tmp_path / "mine.npz", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["ONNX Runtime, cpu"]) == [str(tmp_path / "mine.npz")]
    np.save(tmp_path / "x.npy", x)
    done = verify(path, "--data", tmp_path / "x.npy")
    assert done.code == 2 and "x, z" in done.err
    with pytest.raises(InputError, match="mine"):
        verify_model(path, net, inputs={"mine": {**mine, "x": x[:2]}})


@pytest.mark.parametrize(("size", "integers"), [(1e-9, False), (1e9, False), (1.0, True)])
def test_another_network_is_told_apart_by_outputs_of_any_size(
    size: float, integers: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, other = (
        Function(after=lambda y: (size * y > 0).int() if integers else size * y) for _ in range(2)
    )
    path = export_onnx(net, tmp_path / "net.onnx", grid=(4, 5)).path
    assert verify_model(path, net, device="cpu", seeds=1).failed == []
    assert "graph in float64" in verify_model(path, other, device="cpu", seeds=1).failed


def test_the_users_arrays_may_be_the_only_ones_that_a_network_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Tokens(-1)  # normal numbers are no indices of its table
    path = export_onnx(
        net,
        tmp_path / "m.onnx",
        grid=(3, 4),
        channels=1,
        example_range=lambda shape, generator: torch.randint(7, shape, generator=generator),
    ).path
    assert verify_model(path, net, inputs={"mine": np.ones((3, 4, 1))}, device="cpu").failed == []
    with pytest.raises(InputError, match="index out of range"):
        verify_model(path, net, device="cpu", example_range=(7, 9))


def test_a_graph_that_the_evaluator_runs_in_float32_alone_is_refused(tmp_path: Path) -> None:
    graph = [node("MeanVarianceNormalization", "x", "y", axes=[1, 2])]
    with pytest.raises(InputError, match="evaluator of onnx does not run this graph"):
        verify_model(write_model(tmp_path / "m.onnx", graph, grid=(3, 4)), device="cpu")


def test_a_wrong_output_after_the_first_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ManyHeads(tuple)
    path = export_onnx(net, tmp_path / "m.onnx", torch.randn(2, 3, 3, 4)).path
    with torch.no_grad():
        net.numbers.bias += 1
    report = verify_model(path, net, device="cpu", seeds=1)
    assert set(report.failed) == BOTH
    outcome = next(iter(report.outcomes["ONNX Runtime, cpu"].values()))
    assert outcome.max_abs == pytest.approx(1, abs=1e-4)
