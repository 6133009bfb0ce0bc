"""Exported models that draw: the same logits and images as torch, their verification, the command line."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from PIL import Image
from torch import nn

from mdlstm_tk.errors import InputError, ParityError
from mdlstm_tk.export import drawing, export_drawing
from mdlstm_tk.export.drawing import drawing_model
from mdlstm_tk.export.targets import WebPage
from mdlstm_tk.models import PixelNet, create
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import Given, read_given, uniform_numbers
from mdlstm_tk.training import Run, sample_run


@pytest.fixture(scope="module")
def drawing_file(density_run: Run) -> Path:
    """The exported graph that draws images with the run."""
    return export_drawing(density_run, density_run.folder.parent / "drawing.onnx")


@pytest.mark.parametrize("size", [None, (1, 1), (3, 11), (9, 2)])
def test_onnx_runtime_draws_what_torch_draws(
    density_run: Run, drawing_file: Path, size: tuple[int, int] | None
) -> None:
    session = Session(drawing_file, "cpu")
    assert (session.sample(7, size, seed=5) == sample_run(density_run, 7, size, seed=5)).all()
    height, width = size or (8, 8)
    values = np.random.default_rng(0).integers(0, 17, (height, width, 1)) / np.float32(16)
    given = Given(values, np.random.default_rng(1).random((height, width)) < 0.5)
    options = {"seed": 2, "given": given, "temperature": 0.5}
    drawn = session.sample(4, size, **options)
    assert (drawn == sample_run(density_run, 4, size, **options)).all()
    assert (drawn[:, given.mask] == values[given.mask]).all()


def test_given_values_count_as_their_nearest_level(density_run: Run, drawing_file: Path) -> None:
    mask = np.arange(8)[:, None].repeat(8, axis=1) < 3
    given = Given(np.full((8, 8, 1), 0.99, np.float32), mask)
    given.values[0, :4] = np.nan  # which is drawn
    with Session(drawing_file, "cpu") as session:
        drawn = session.sample(2, given=given)
    assert (drawn[:, mask & ~np.isnan(given.values[..., 0])] == 1).all()
    assert np.isfinite(drawn).all() and (drawn[:, 0, :4] < 1).any()
    assert (drawn == sample_run(density_run, 2, given=given)).all()


def test_the_command_completes_an_image_with_a_model(drawing_file: Path, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 17, (3, 8))
    half, whole = tmp_path / "half.png", tmp_path / "whole.npy"
    Image.fromarray(np.rint(levels / 16 * 255).astype(np.uint8)).save(half)
    assert mdlstm("sample", drawing_file, "--given", half, "-n", 4, "-o", whole).code == 0
    with Session(drawing_file, "cpu") as session:
        expected = session.sample(4, given=read_given(half, (8, 8), 1))
    assert (np.load(whole) == expected).all()
    assert (np.rint(expected[:, :3, :, 0] * 16) == levels).all()


def test_the_wrong_file_is_one_line_that_names_the_command_for_the_right_one(
    density_run: Run,
    drawing_file: Path,
    density_model: Path,
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(density_run.folder / "config.toml", folder)
    shutil.copy(drawing_file, folder / "model-drawing.onnx")
    shutil.copy(density_model, folder / "model-8x8.onnx")
    np.save("one.npy", np.zeros((8, 8), np.float32))
    np.save("two.npy", np.zeros((4, 8, 2), np.float32))
    before = sorted(tmp_path.rglob("*"))
    calls = [
        (("sample", drawing_file, "--given", "two.npy"), "2)"),
        (("sample", density_model), "mdlstm export RUN --drawing"),
        (("sample", folder / "model-8x8.onnx"), f"mdlstm export {folder} --drawing"),
        (("sample", trained.folder / "model-8x8.onnx"), "of kind grid"),
        (("infer", "one.npy", "-m", drawing_file), "mdlstm export RUN"),
        (("infer", "one.npy", "-m", folder / "model-drawing.onnx"), f"mdlstm export {folder}"),
        (("verify", drawing_file), "mdlstm export RUN"),
    ]
    for arguments, named in calls:
        result = mdlstm(*arguments)
        assert result.code == 2 and named in result.err, arguments
        assert len(result.err.splitlines()) == 1, arguments
    assert sorted(tmp_path.rglob("*")) == before
    # Where both files lie, each command takes its own.
    assert mdlstm("infer", "one.npy", "-m", "run").code == 0
    (folder / "model-8x8.onnx").unlink()
    assert "mdlstm sample" in mdlstm("info", folder / "model-drawing.onnx").err


def test_the_command_draws_with_a_model_and_without_torch(
    density_run: Run, drawing_file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "drawn.npy"
    code = (
        "import sys\nfrom mdlstm_tk.cli import main\ntry: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'onnx', 'numba'} & set(sys.modules)"
    )
    arguments = [sys.executable, "-c", code, "sample", drawing_file, "-n", "3", "-o", target]
    subprocess.run([str(each) for each in arguments], check=True, capture_output=True)
    assert (np.load(target) == sample_run(density_run, 3)).all()


def test_wrong_arguments_of_a_model_that_draws_are_refused(drawing_file: Path) -> None:
    session = Session(drawing_file, "cpu")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"n": 10**6, "size": (2**14, 2**14)}, "1000000 images of 16384x16384"),
        ({"n": 10**6, "size": (1, 2**14)}, "1000000 images of 1x16384"),
        ({"uniform": np.zeros((2, 8, 8), np.float32)}, r"\(2, 8, 8\)"),
        ({"given": Given(np.zeros((4, 8, 1), np.float32), np.ones((4, 8), bool))}, r"\(4, 8, 1\)"),
    ]
    for arguments, expected in cases:
        with pytest.raises(InputError, match=expected):
            session.sample(**({"n": 2} | arguments))


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
    assert Session(path, "cpu").sample(2).shape == (2, 4, 5, 3)
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


def test_the_export_for_log_probabilities_names_the_one_that_draws(
    density_run: Run, tmp_path: Path
) -> None:
    result = mdlstm("export", density_run.folder, "--form", "scan", "-o", tmp_path / "whole.onnx")
    assert f"mdlstm export {density_run.folder} --drawing" in result.err
    result = mdlstm("export", density_run.folder, "--drawing", "-o", tmp_path)
    assert f"mdlstm sample {tmp_path / 'model-drawing.onnx'}" in result.err
    again = mdlstm("export", density_run.folder, "--drawing", "-o", tmp_path)
    assert again.code == 2 and "exists" in again.err
