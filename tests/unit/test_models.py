"""The networks, and the registry that a user extends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import Normalized, create, names, options_of
from mdlstm_tk.models.registry import resolve
from mdlstm_tk.runtime import Session


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("md", "md"),
        ("MD_LSTM", "md"),
        ("md_lstm", "md"),
        ("HORIZONTAL_SD_LSTM", "horizontal"),
        ("Snake_SD_LSTM", "snake"),
    ],
)
def test_the_seeds_names_are_accepted_in_any_case(given: str, name: str) -> None:
    assert resolve(given) == name
    assert name in names()


def seen(model: str, row: int, column: int) -> torch.Tensor:
    """Which cells of a 4×6 grid the prediction at one cell depends on."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(create(model, 1, 1)(x)[0, row, column, 0], x)
    return gradient[0, ..., 0] != 0


def test_what_each_network_can_see() -> None:
    rows, columns = torch.arange(4)[:, None], torch.arange(6)[None]
    assert (seen("md", 2, 3) == ((rows <= 2) & (columns <= 3))).all()
    assert (seen("horizontal", 2, 3) == ((rows == 2) & (columns <= 3))).all()
    assert (seen("snake", 2, 3) == ((rows < 2) | ((rows == 2) & (columns <= 3)))).all()


@pytest.mark.parametrize("model", ["md", "horizontal", "snake"])
def test_untrained_networks_predict_about_the_mean(model: str) -> None:
    net = create(model, 1, 1)
    net.start_at(0.08)
    y = net(torch.rand(4, 8, 8, 1) * 0.1)
    assert y.mean().item() == pytest.approx(0.08, abs=0.05)


@pytest.mark.parametrize("model", ["md", "horizontal", "snake"])
def test_the_seeds_start_leaves_the_output_at_one_half(model: str) -> None:
    net = create(model, 1, 1, init="seed")
    net.start_at(0.08)
    assert net(torch.zeros(1, 8, 8, 1)).mean().item() == pytest.approx(0.5, abs=0.2)


def test_an_own_network_joins_from_an_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from mdlstm_tk.models import register\n"
        "@register('tiny')\n"
        "class Tiny(torch.nn.Linear):\n"
        "    def __init__(self, channels, outputs, *, hidden=16):\n"
        "        super().__init__(channels, outputs)\n"
    )
    net = create(f"{tmp_path / 'mine.py'}:tiny", 3, 2, hidden=4)
    assert net(torch.zeros(1, 2, 2, 3)).shape == (1, 2, 2, 2)


def test_unknown_networks_and_options_are_named() -> None:
    with pytest.raises(InputError, match="no model 'gru'; choose one of md, horizontal, snake"):
        create("gru", 1, 1)
    with pytest.raises(
        InputError, match="model 'snake' has no option 'cell'; it has hidden, layers, linear, init"
    ):
        create("snake", 1, 1, cell="leaky")
    with pytest.raises(InputError, match=r"there is no file nowhere\.py"):
        create("nowhere.py:net", 1, 1)


MODELS = [
    (kind, model)
    for kind in ("grid", "classify", "segment", "transcribe")
    for model in names(kind)
    if model in ("md", "horizontal", "snake", "raster", "conv")
]
SIZES = torch.tensor([[9, 14], [5, 7], [1, 1], [1, 7], [9, 1]])


@pytest.mark.parametrize("windows", [(), ((2, 3), (2, 1))], ids=["plain", "windows"])
@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_padded_samples_give_what_they_give_alone(kind: str, model: str, windows: tuple[Any, ...]) -> None:
    if windows and "windows" not in options_of(model, kind):
        return
    torch.manual_seed(0)
    options = {"windows": windows} if windows else {}
    net = create(model, 2, 5, kind=kind, hidden=6, **options)
    x = torch.randn(5, 9, 14, 2)
    y = net(x, SIZES)
    for k, (height, width) in enumerate(SIZES.tolist()):
        alone = net(x[k : k + 1, :height, :width])[0]
        inner = y[k][tuple(map(slice, alone.shape))]
        torch.testing.assert_close(inner, alone, atol=1e-5, rtol=1e-4)
        if kind == "transcribe":
            assert (y[k, len(alone) :].argmax(-1) == 0).all()
            assert (y[k, len(alone) :].log_softmax(-1)[..., 0].abs() < 1e-6).all()


def test_readers_see_the_whole_grid_and_one_dimensional_ones_do_not() -> None:
    def seen_by(model: str) -> torch.Tensor:
        torch.manual_seed(0)
        x = torch.randn(1, 4, 6, 1, requires_grad=True)
        net = create(model, 1, 3, kind="segment", hidden=4)
        (gradient,) = torch.autograd.grad(net(x)[0, 1, 2, 0], x)
        return gradient[0, ..., 0] != 0

    rows = torch.arange(4)[:, None].expand(4, 6)
    assert seen_by("md").all()
    assert seen_by("snake").all()
    assert (seen_by("horizontal") == (rows == 1)).all()


def test_the_raster_network_sees_what_comes_before_in_reading_order() -> None:
    rows, columns = torch.arange(4)[:, None], torch.arange(6)[None]
    before = (rows < 2) | ((rows == 2) & (columns <= 3))
    assert (seen("raster", 2, 3) == before).all()
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 1, requires_grad=True)
    deep = create("raster", 1, 1, layers=3)
    (gradient,) = torch.autograd.grad(deep(x)[0, 2, 3, 0], x)
    assert ((gradient[0, ..., 0] != 0) == before).all()


def test_a_segmenter_with_windows_labels_each_cell_of_a_block_by_itself() -> None:
    net = create("md", 1, 2, kind="segment", hidden=4, windows=((2, 3),))
    net.head.weight.data.zero_()
    net.head.bias.data = torch.arange(12.0)  # (2, 3) cells of a block × 2 classes
    y = net(torch.zeros(1, 3, 7, 1))[0, ..., 0]
    block = torch.arange(0, 12.0, 2).view(2, 3)
    assert torch.equal(y, block.repeat(2, 3)[:3, :7])


def test_scaled_networks_take_and_give_raw_numbers() -> None:
    inner = create("md", 2, 1, linear=True)
    net = Normalized(inner, (1.0, 2.0), (0.5, 4.0), (10.0,), (3.0,))
    x = torch.randn(2, 3, 4, 2)
    scaled = (x - torch.tensor([1.0, 2.0])) / torch.tensor([0.5, 4.0])
    torch.testing.assert_close(net(x), inner(scaled) * 3 + 10)
    sizes = torch.tensor([[3, 4], [2, 2]])
    torch.testing.assert_close(net(x, sizes)[1, :2, :2], net(x[1:, :2, :2])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["classify", "segment", "transcribe"])
def test_readers_export_for_any_size_with_padding_and_raw_input(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create("md", 1, 5, kind=kind, hidden=4, cell="leaky", windows=((2, 2),))
    net = Normalized(net, (0.3,), (0.2,)).eval()
    report = export_onnx(net, tmp_path / "m.onnx", form="scan", padded=True, channels=1)
    session = Session(report.path, "cpu")
    x, sizes = torch.rand(2, 6, 11, 1), torch.tensor([[6, 11], [3, 4]])
    with torch.no_grad():
        expected = net(x, sizes).numpy()
    np.testing.assert_allclose(session(x.numpy(), sizes=sizes.numpy()), expected, atol=1e-5)


def test_networks_are_for_kinds_of_tasks() -> None:
    assert names("grid")[:4] == ["md", "horizontal", "snake", "raster"]
    assert "conv" in names("segment")
    assert "conv" not in names("classify")
    with pytest.raises(InputError, match="model 'conv' is for tasks of kind segment, this one is of kind"):
        create("conv", 1, 2, kind="classify")
    assert "cell" in options_of("snake", "classify")
    assert "cell" not in options_of("snake", "grid")
