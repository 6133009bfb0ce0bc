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
from helpers.networks import Conditioned, Function, ManyHeads, Tokens, warped
from helpers.small_models import write_model

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, export_run, verify_model
from mdlstm_tk.training import Run


def verify(*arguments: object) -> Result:
    return mdlstm("verify", *arguments)


def test_a_scan_is_verified_on_odd_grids(trained: Run, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    export_run(trained, model, form="scan")
    done = verify(model, "--against", trained.folder, "--seed", "3", "--seeds", "1", "--json")
    assert done.code == 0, done.err
    assert all(f'"{size}, seed 3"' in done.out for size in ("1x1", "1x7", "7x1", "5x8", "8x5"))


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


def test_a_file_of_any_module_is_verified_against_it_or_its_own_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Conditioned()
    examples = (torch.randn(2, 3, 4, 2), torch.randn(2, 2), torch.tensor([3, 1]))
    path = export_onnx(net, tmp_path / "net.onnx", examples).path
    runtimes = {"ONNX Runtime, cpu", "graph in float64"}
    report = verify_model(path, net, device="cpu", seeds=1)
    assert report.outcomes.keys() == runtimes and report.failed == []
    assert net.training  # the module itself is unchanged
    report = verify_model(path, device="cpu", seeds=1)
    assert report.outcomes.keys() == {"ONNX Runtime, cpu"} and report.failed == []
    first, *_, last = str(report).splitlines()
    assert first.endswith("against its own graph in float64")
    assert last == "tolerance: 1e-05·s + 1e-05·|y|"
    damage(path, tmp_path / "damaged.onnx", 3)
    report = verify_model(tmp_path / "damaged.onnx", net, device="cpu", seeds=1)
    assert set(report.failed) == runtimes
    assert verify_model(tmp_path / "damaged.onnx", device="cpu", seeds=1).failed == []  # runs as written
    done = verify(path, "--seeds", "1")
    assert done.code == 0 and "its own graph" in done.err


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_another_network_is_told_apart_by_outputs_of_any_size(
    size: float, integers: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, other = (
        Function(after=lambda y: (size * y > 0).int() if integers else size * y) for _ in range(2)
    )
    path = export_onnx(net, tmp_path / "net.onnx", grid=(4, 5)).path
    assert verify_model(path, net, device="cpu", seeds=1).failed == []
    failed = verify_model(path, other, device="cpu", seeds=1).failed
    assert "graph in float64" in failed


def test_the_users_own_arrays_are_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Conditioned()
    z = torch.randn(2, 2)
    path = export_onnx(net, tmp_path / "net.onnx", (torch.randn(2, 3, 4, 2), z)).path
    x = np.random.default_rng(0).random((3, 4, 2), np.float32)
    mine = {"x": x, "z": z[0].numpy()}
    report = verify_model(path, net, inputs={"mine": mine}, device="cpu")
    assert {*report.outcomes["ONNX Runtime, cpu"]} == {"mine"} and report.failed == []
    np.savez(tmp_path / "mine.npz", **mine)
    done = verify(path, "--data", tmp_path / "mine.npz", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["ONNX Runtime, cpu"]) == [str(tmp_path / "mine.npz")]
    np.save(tmp_path / "x.npy", x)
    done = verify(path, "--data", tmp_path / "x.npy")
    assert done.code == 2 and "x, z" in done.err
    with pytest.raises(InputError, match=r"mine .*\(2, 4, 2\)|2x4"):
        verify_model(path, net, inputs={"mine": {"x": x[:2], "z": mine["z"]}})


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
    assert set(report.failed) == {"ONNX Runtime, cpu", "graph in float64"}
    outcome = next(iter(report.outcomes["ONNX Runtime, cpu"].values()))
    assert outcome.max_abs == pytest.approx(1, abs=1e-4)


def test_operators_outside_the_list_need_trust(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_onnx(warped(), tmp_path / "net.onnx", grid=(3, 4)).path
    with pytest.raises(InputError, match="GridSample"):
        verify_model(path, warped(), device="cpu")
    done = verify(path, "--trusted", "--device", "cpu")
    assert done.code == 2 and "--against" in done.err
    assert "ONNX Runtime, cpu" in verify_model(path, warped(), device="cpu", seeds=1, trusted=True).outcomes
