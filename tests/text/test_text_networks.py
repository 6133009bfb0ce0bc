"""The network for lines of handwriting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.own_cells import register_own_cells
from torch import Tensor

from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.text import read_lines
from mdlstm_tk.text.networks import LineRecognizer, standardise


def lines(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> LineRecognizer:
    """A network whose batch normalisation has seen data."""
    torch.manual_seed(0)
    network = create("lines", 1, 5, kind="transcribe", hidden=3).train()
    assert isinstance(network, LineRecognizer)
    for _ in range(2):
        network(lines(2, 40, 90, 1))
    return network.eval()


@torch.no_grad()
def test_a_padded_line_is_seen_as_it_is_alone(network: LineRecognizer) -> None:
    x, sizes = lines(3, 64, 90, 1), torch.tensor([[64, 90], [50, 61], [33, 7]])
    y = network(x, sizes)
    for k, (height, width) in enumerate(sizes.tolist()):
        alone = network(x[k : k + 1, :height, :width])
        steps = alone.shape[1]
        assert steps == -(-width // network.stride[1])
        torch.testing.assert_close(y[k : k + 1, :steps], alone, rtol=0, atol=1e-6)
        assert (y[k, steps:].softmax(-1)[:, 0] > 0.999).all()


@torch.no_grad()
def test_padding_of_lines_is_not_seen_where_outputs_are_below_minus_1(fresh_registries: None) -> None:
    register_own_cells()
    network = LineRecognizer(1, 5, hidden=3, cell="h-is-c").eval()  # h = f⊙mean_d h_d + tanh(z)
    for layer in (network.grid, network.columns):
        layer.backend = "torch"
    network.grid.bias_l0[:, 3:] = -10  # z
    x, sizes = lines(2, 96, 40, 1), torch.tensor([[96, 40], [64, 40]])
    torch.testing.assert_close(network(x, sizes)[1:], network(x[1:, :64]), rtol=0, atol=1e-5)


def test_float16standardises_lines_with_more_pixels_than_it_can_count() -> None:
    x, sizes = 100 * lines(1, 300, 300, 1), torch.tensor([[300, 290]])
    expected = standardise(x, sizes)
    torch.testing.assert_close(standardise(x.half(), sizes).float(), expected, rtol=0, atol=1e-2)


def test_an_empty_line_has_a_gradient() -> None:
    x = torch.ones(2, 4, 5, 1, requires_grad=True)
    for sizes in (None, torch.tensor([[4, 5], [1, 1]])):
        (gradient,) = torch.autograd.grad(standardise(x, sizes).square().sum(), x)
        assert not gradient.any()


@torch.no_grad()
def test_brightness_and_contrast_do_not_matter(network: LineRecognizer) -> None:
    x = lines(1, 20, 40, 1)
    torch.testing.assert_close(network(0.5 * x + 7), network(x), rtol=0, atol=1e-2)


def test_only_training_has_a_second_prediction_which_the_convolutions_alone_make() -> None:
    network = Normalized(LineRecognizer(1, 5, hidden=3), [0.5], [0.2]).train()
    prediction, shortcut = network(lines(2, 16, 40, 1))
    assert prediction.shape == shortcut.shape == (2, 5, 5)
    shortcut.sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained
    assert all("shortcut" in name or "convolutions" in name for name in trained)
    assert isinstance(network.eval()(lines(2, 16, 40, 1)), Tensor)


def test_a_file_tells_how_many_columns_a_step_covers(tmp_path: Path) -> None:
    """They do not follow from a narrow line: 33 columns have five steps of 8, or of 7."""
    network = LineRecognizer(1, 3, hidden=2).eval()
    with torch.no_grad():
        network.head.bias[1] = 9
    fields = {"kind": "transcribe", "classes": ("a", "b")}
    options = {"channels": 1, "channels_last": True, "padded": True, "metadata": fields}
    path = export_onnx(network, tmp_path / "m.onnx", grid=(16, None), **options).path
    session = Session(path)
    assert session.metadata.columns_per_step == 8
    assert [step_width(5, 33, known) for known in (8, None)] == [8, 7]
    narrow, wide = (lines(16, width).numpy() for width in (33, 80))
    (alone,), (beside, _) = read_lines(session, [narrow]), read_lines(session, [narrow, wide])
    assert alone.characters[-1].right == 33  # where the image ends
    assert alone.characters[-1].right == pytest.approx(beside.characters[-1].right, abs=1e-3)
    np.save(tmp_path / "x.npy", narrow)
    (result,) = infer_paths([tmp_path / "x.npy"], path, tmp_path / "x.json")
    assert result.rows[0]["characters"][-1]["right"] == round(alone.characters[-1].right, 1)


def test_one_file_reads_lines_of_any_width(network: LineRecognizer, tmp_path: Path) -> None:
    path = tmp_path / "lines.onnx"
    export_onnx(network, path, grid=(64, None), channels=1, channels_last=True)
    session = Session(path)
    for width in (8, 21, 100):
        x = lines(2, 64, width, 1)
        with torch.no_grad():
            np.testing.assert_allclose(session(x.numpy()), network(x).numpy(), rtol=0, atol=1e-5)
