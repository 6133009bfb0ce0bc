"""The networks, and the registry that a user extends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdlstm_tk.errors import InputError
from mdlstm_tk.models import create, names
from mdlstm_tk.models.registry import resolve


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
