"""`export_drawing`: runs and networks as graphs that draw what torch draws, or no file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.command import mdlstm
from helpers.drawing_models import (
    ATOL,
    KINDS,
    SIZES,
    drawing_network,
    exact_logits,
    picture,
    row_logits,
    write_drawing_model,
)
from helpers.own_cells import register_own_cells
from torch import nn

from mdlstm_tk.errors import InputError, ParityError
from mdlstm_tk.export import drawing, export_drawing
from mdlstm_tk.export.drawing import drawing_model
from mdlstm_tk.export.targets import WebPage
from mdlstm_tk.models import PixelNet, create
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import uniform_numbers
from mdlstm_tk.training import Run


@pytest.mark.parametrize(
    ("channels", "outputs", "options"),
    [
        (1, 1, {"layers": 2}),
        (3, 4, {}),
        (2, 1, {"cell": "leaky", "layer_norm": True, "layers": 3}),
        (1, 5, {"cell": "slstm", "layers": 2}),
        (1, 1, {"cell": "input-gated"}),
        (2, 2, {"cell": "gru", "layers": 2}),
    ],
)
def test_all_kinds_of_networks_are_exported_to_draw(
    channels: int, outputs: int, options: dict[str, object], fresh_registries: None
) -> None:
    register_own_cells()
    torch.manual_seed(0)
    network = create("pixel", channels, outputs, kind="density", hidden=4, **options)
    model = drawing_model(network, (4, 5))
    uniform = uniform_numbers(0, 5, (4, 5), channels)
    drawn = Session(model.SerializeToString(), "cpu").sample(5, uniform=uniform)
    assert (drawn == network.sample(5, (4, 5), uniform=torch.from_numpy(uniform)).numpy()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_onnx_runtime_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    network = drawing_network(kind)
    session = write_drawing_model(network, tmp_path / "drawing.onnx")
    for size in SIZES:
        x = picture(network, size)
        expected = exact_logits(network, x)
        assert np.ptp(expected[..., -1]) > 0.1 or size == (1, 1)
        with torch.no_grad():
            np.testing.assert_allclose(network.logits(torch.from_numpy(x)), expected, rtol=0, atol=ATOL)
        np.testing.assert_allclose(row_logits(session, x), expected, rtol=0, atol=ATOL)


def test_an_export_that_computes_other_logits_is_not_written(
    density_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = drawing.row_graph

    def wrong(network: PixelNet) -> onnx.ModelProto:
        changed = copy.deepcopy(network)
        with torch.no_grad():
            changed.heads[0][-1].bias[3] += 1e-3
        return right(changed)

    monkeypatch.setattr(drawing, "row_graph", wrong)
    for source in (density_run, drawing_network("five levels")):
        with pytest.raises(ParityError, match=r"1\.0e-03"):
            export_drawing(source, tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_is_exported_to_draw(tmp_path: Path) -> None:
    network = drawing_network("colours")
    path = export_drawing(network, tmp_path / "drawing.onnx", size=(4, 5))
    session = Session(path, "cpu")
    assert session.sample(2).shape == (2, 4, 5, 3)
    uniform = uniform_numbers(0, 2, (3, 6), 3)
    assert (
        session.sample(2, (3, 6), uniform=uniform)
        == network.sample(2, (3, 6), uniform=torch.from_numpy(uniform)).numpy()
    ).all()
    for arguments, message in (
        ((nn.Linear(1, 1), tmp_path / "n.onnx"), "Linear; only a PixelNet"),
        ((network,), "destination="),
        ((network, path), "exists"),
        ((network, tmp_path / "nowhere/n.onnx"), "no folder"),
        ((network, WebPage(tmp_path / "page")), "a page is made of a run"),
    ):
        with pytest.raises(InputError, match=message):
            export_drawing(*arguments)
    with pytest.raises(InputError, match="'drawing'"):
        export_drawing(network, tmp_path / "n.onnx", size=(0, 5))
    compiled = torch.compile(network, backend="eager")
    assert export_drawing(compiled, tmp_path, force=True).name == "model-drawing.onnx"


def test_other_networks_of_runs_do_not_draw(trained: Run) -> None:
    with pytest.raises(InputError, match=r"MDNet.*pixel"):
        export_drawing(trained)


def test_the_export_for_log_probabilities_names_the_one_that_draws(
    density_run: Run, tmp_path: Path
) -> None:
    result = mdlstm("export", density_run.folder, "--form", "scan", "-o", tmp_path / "whole.onnx")
    assert f"mdlstm export {density_run.folder} --drawing" in result.err
    result = mdlstm("export", density_run.folder, "--drawing", "-o", tmp_path)
    assert f"mdlstm sample {tmp_path / 'model-drawing.onnx'}" in result.err
    again = mdlstm("export", density_run.folder, "--drawing", "-o", tmp_path)
    assert again.code == 2 and "exists" in again.err
