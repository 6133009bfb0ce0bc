"""The network for lines of handwriting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.text import read_lines
from mdlstm_tk.text.networks import LineRecognizer, normalise_valid, standardise


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


SIZES = torch.tensor([[6, 9], [3, 9], [6, 1]])


def test_batches_are_normalised_as_if_there_were_valid_positions_alone() -> None:
    """Outputs, gradients and statistics are those of torch for rows of the valid positions."""
    norms: list[Any] = [kind(2, momentum=0.1).double() for kind in (nn.BatchNorm2d, nn.BatchNorm1d)]
    x, factors = (torch.randn(3, 2, 6, 9, dtype=torch.float64) for _ in range(2))
    valid = valid_mask((6, 9), SIZES)
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.tensor([0.7, -1.3]))
            norm.bias.copy_(torch.tensor([0.2, 0.4]))
    padded, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = normalise_valid(norms[0], padded * 1, SIZES).relu()
    expected = norms[1](plain.movedim(1, -1)[valid]).relu()
    torch.testing.assert_close(y.movedim(1, -1)[valid], expected)
    assert not y.movedim(1, -1)[~valid].any()
    (y * factors).sum().backward()
    (expected * factors.movedim(1, -1)[valid]).sum().backward()
    torch.testing.assert_close(padded.grad, plain.grad)
    for one, other in zip(norms[0].parameters(), norms[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(norms[0].buffers(), norms[1].buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_padding_changes_nothing_that_is_learned() -> None:
    """Predictions, gradients and statistics of a batch in training, however wide it is padded."""
    sizes, learned = torch.tensor([[40, 90], [32, 50]]), []
    for width, filler in ((90, 0.0), (140, 7.0)):
        torch.manual_seed(0)
        network = LineRecognizer(1, 5, hidden=3).double()
        x = torch.full((2, 40, width, 1), filler, dtype=torch.float64)
        for k, (height, columns) in enumerate(sizes.tolist()):
            x[k, :height, :columns] = lines(2, 40, 90, 1)[k, :height, :columns]
        predictions = network(x, sizes)
        sum(y[:, :12].square().sum() for y in predictions).backward()
        learned.append([*(y[:, :12] for y in predictions), *(p.grad for p in network.parameters())])
        learned[-1] += [*network.buffers()]
    for one, other in zip(*learned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_lines_are_standardised_whatever_they_hold(network: LineRecognizer) -> None:
    """In float16, which cannot count so many pixels; and an empty line has a gradient."""
    x, sizes = 100 * lines(1, 300, 300, 1), torch.tensor([[300, 290]])
    torch.testing.assert_close(
        standardise(x.half(), sizes).float(), standardise(x, sizes), rtol=0, atol=1e-2
    )
    empty = torch.ones(2, 4, 5, 1, requires_grad=True)
    for sizes in (None, torch.tensor([[4, 5], [1, 1]])):
        (gradient,) = torch.autograd.grad(standardise(empty, sizes).square().sum(), empty)
        assert not gradient.any()
    with torch.no_grad():
        x = lines(1, 20, 40, 1)
        torch.testing.assert_close(network(0.5 * x + 7), network(x), rtol=0, atol=1e-2)


def test_only_training_has_a_second_prediction_which_the_convolutions_alone_make() -> None:
    network = Normalized(LineRecognizer(1, 5, hidden=3), [0.5], [0.2]).train()
    prediction, shortcut = network(lines(2, 16, 40, 1))
    assert prediction.shape == shortcut.shape == (2, 5, 5)
    shortcut.sum().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained and all("shortcut" in name or "convolutions" in name for name in trained)
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
    assert [step_width(5, 33, known) for known in (session.metadata.columns_per_step, None)] == [8, 7]
    narrow, wide = (lines(16, width).numpy() for width in (33, 80))
    (alone,), (beside, _) = read_lines(session, [narrow]), read_lines(session, [narrow, wide])
    assert alone.characters[-1].right == 33  # where the image ends
    assert alone.characters[-1].right == pytest.approx(beside.characters[-1].right, abs=1e-3)
    np.save(tmp_path / "x.npy", narrow)
    (result,) = infer_paths([tmp_path / "x.npy"], path, tmp_path / "x.json")
    assert result.rows[0]["characters"][-1]["right"] == round(alone.characters[-1].right, 1)
