"""Exported models: the same numbers at any size, standard ops alone, and nothing written on failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import CELLS
from mdlstm_tk.cli.export import export_run
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import export_onnx, float64_reference, lower, trial
from mdlstm_tk.export.capture import capture
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session
from mdlstm_tk.tasks import DiagonalTask
from mdlstm_tk.training import Run, TrainConfig, build, load_checkpoint, train


def relevant_loss(session: Session, size: int) -> float:
    batch = DiagonalTask((size, size)).batch(9, 0, 32, "validation")
    error = (session(batch.x) - batch.y) ** 2
    return float(np.mean([error[k, row, column] for k, (row, column) in enumerate(batch.second)]))


@pytest.mark.parametrize(
    "grid", [(8, 8), (5, 7), (32, 32), (1, 1), (7, 1)], ids=lambda g: "x".join(map(str, g))
)
def test_a_trained_model_is_within_1e_5_of_float64_at_any_size(
    trained: Run, tmp_path: Path, grid: tuple[int, int]
) -> None:
    checkpoint = load_checkpoint(trained.best)
    report = export_run(trained, checkpoint, grid, tmp_path / "m.onnx")
    network, _ = build(checkpoint.config)
    checkpoint.load_model(network)
    reference, session = float64_reference(network), Session(report.path, "cpu")
    for count in (1, 7):
        x = np.random.default_rng(1).random((count, *grid, 1), dtype=np.float32)
        assert np.abs(session(x) - reference(x)).max() <= 1e-5


def test_four_trained_directions_are_within_1e_5(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config = TrainConfig(size="5x7", steps=30, hidden=6, directions="all")
    train(config, run)
    checkpoint = load_checkpoint(run.best)
    network, _ = build(config)
    checkpoint.load_model(network)
    for grid in ((5, 7), (12, 3)):
        report = export_run(run, checkpoint, grid, tmp_path / f"{grid}.onnx")
        x = np.random.default_rng(0).random((7, *grid, 1), dtype=np.float32)
        assert np.abs(Session(report.path, "cpu")(x) - float64_reference(network)(x)).max() <= 1e-5


def test_the_exported_model_solves_the_task_at_larger_sizes(trained: Run, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained.best)
    for size in (8, 32):
        export_run(trained, checkpoint, (size, size), tmp_path / f"{size}.onnx")
        assert relevant_loss(Session(tmp_path / f"{size}.onnx", "cpu"), size) < 0.01


@pytest.mark.parametrize("model", ["horizontal", "snake"])
def test_the_one_dimensional_networks_export_too(model: str, tmp_path: Path) -> None:
    net = create(model, 1, 1)
    report = export_onnx(net, tmp_path / "m.onnx", grid=(5, 7), channels=1)
    assert report.max_abs < 1e-6


class Around(nn.Module):
    """A layer with options in the middle of something else."""

    def __init__(self, ndim: int, **options: object) -> None:
        super().__init__()
        self.before = nn.Linear(2, 3)
        self.layer = MDLSTM(3, 4, ndim=ndim, **options)
        self.after = nn.Linear(self.layer.output_size, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.layer(self.before(x).tanh()))


OPTIONS = {
    "layer_norm": {"layer_norm": True},
    "peephole": {"peephole": True},
    "peephole+norm": {"peephole": True, "layer_norm": True},
    "no bias": {"bias": False},
    "window": {"window": 2},
    "stacked+all+sum": {"num_layers": 2, "directions": "all", "merge": "sum"},
    "one backwards": {"directions": [(-1, 1)]},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_exports(option: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Around(2, **OPTIONS[option])
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    report = export_onnx(net, tmp_path / "m.onnx", grid=(4, 6), channels=2)
    assert report.max_abs < 1e-5


@pytest.mark.parametrize("ndim", [1, 2, 3], ids="{}D".format)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_exports_in_any_dimension(cell: str, ndim: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Around(ndim, cell=cell, directions="all")
    report = export_onnx(net, tmp_path / "m.onnx", grid=(3, 4, 2)[:ndim], channels=2)
    assert report.max_abs < 1e-5


def test_sizes_export_as_a_part_of_the_graph(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MDLSTM(1, 3, directions="all", window=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, torch.tensor([[3, 2]]).expand(x.shape[0], 2))

    report = export_onnx(Masked(), tmp_path / "m.onnx", grid=(5, 6), channels=1)
    y = Session(report.path, "cpu")(np.ones((2, 5, 6, 1), np.float32))
    assert (y[:, 2:] == 0).all()
    assert (y[:, :, 1:] == 0).all()
    assert (y[:, :2, :1] != 0).all()


def test_the_file_is_self_contained_standard_and_says_what_it_is(model: Path, trained: Run) -> None:
    proto = onnx.load(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {opset.domain for opset in proto.opset_import} == {""}
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        8,
        8,
        1,
    ]
    assert b"/site-packages/" not in model.read_bytes()
    about = Session(model, "cpu").metadata
    assert (about.grid, about.form, about.layout) == ((8, 8), "unrolled", "N H W C")
    assert (about.model, about.task) == ("md", "diagonal")
    assert len(about.checkpoint_sha256 or "") == 64
    assert 0 <= about.parity["max_abs"] < 1e-5


def test_a_parity_failure_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trial.float64_reference

    def elsewhere(module: nn.Module) -> object:
        reference = real(module)
        return lambda x: reference(x) + 1e-3

    monkeypatch.setattr(trial, "float64_reference", elsewhere)
    with pytest.raises(ParityError, match=r"was not written: ONNX Runtime is 1\.0e-03"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="form must be one of"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3), form="rolled")
    with pytest.raises(InputError, match="Linear has no MDLSTM layer"):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", grid=(3, 3))
    with pytest.raises(InputError, match="does not take a 3x3 grid of 5 channels"):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", grid=(3, 3), channels=5)
    assert list(tmp_path.iterdir()) == []


def test_parametrized_weights_are_folded_into_constants(tmp_path: Path) -> None:
    net = create("md", 1, 1)
    nn.utils.parametrizations.weight_norm(net.body, "weight_hh_l0")
    assert export_onnx(net, tmp_path / "m.onnx", grid=(3, 3)).max_abs < 1e-6


def test_a_sweep_that_cannot_be_written_out_is_named() -> None:
    captured = capture(create("md", 1, 1).eval(), {"x": torch.zeros(2, 3, 3, 1)})
    sweep = next(node for node in captured.graph.node if node.op_type == "Wavefront")
    weight = sweep.input[1]
    sweep.input[1] = "elsewhere"
    with pytest.raises(MDLSTMError, match="the weight 'elsewhere' is computed in the graph"):
        lower(captured)
    sweep.input[1] = weight
    grid = next(attribute for attribute in sweep.attribute if attribute.name == "grid")
    grid.ints[0] = -1
    with pytest.raises(MDLSTMError, match=r"the grid must be fixed to write its sweep out, got \(-1, 3\)"):
        lower(captured)


def test_a_larger_tolerance_is_taken_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trial.float64_reference
    monkeypatch.setattr(trial, "float64_reference", lambda module: lambda x: real(module)(x) + 1e-3)
    report = export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3), atol=2e-3)
    assert Session(report.path, "cpu").metadata.parity["atol"] == 2e-3
    assert report.max_abs == pytest.approx(1e-3, rel=0.01)
