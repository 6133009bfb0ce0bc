"""Networks in the format of the Hugging Face Hub: folders, cards, and what is refused; all offline."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.requirements import missing
from helpers.without_packages import python_without
from torch import nn

from mdlstm_tk import InputError
from mdlstm_tk.models import Classifier, HorizontalNet, MDNet, Normalized, Segmenter, SnakeNet, create
from mdlstm_tk.models.hub import HubModel
from mdlstm_tk.models.registry import model_names

NETWORKS = [
    (kind, name)
    for kind in ("grid", "classify", "segment", "transcribe")
    for name in model_names(kind)
    if name in ("md", "horizontal", "snake", "raster", "lines")  # not those that other tests register
]
X = torch.randn(2, 6, 7, 1, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _hub() -> None:
    if find_spec("huggingface_hub") is None:
        missing("huggingface_hub is not installed")


def reload(network: HubModel, folder: Path, /, **options: Any) -> Any:
    """Save a network, and load what was saved."""
    network.save_pretrained(folder)
    return type(network).from_pretrained(folder, **options)


@pytest.mark.parametrize(("kind", "name"), NETWORKS)
def test_every_network_comes_back_equal(kind: str, name: str, tmp_path: Path) -> None:
    network = create(name, 1, 3, kind=kind, hidden=4)
    assert isinstance(network, HubModel)
    again = reload(network, tmp_path)
    assert type(again) is type(network)
    assert not again.training
    assert torch.equal(again(X), network.eval()(X))
    assert again.hub_config() == network.hub_config() == json.loads((tmp_path / "config.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": np.int64(4), "windows": ((np.int64(2), 1), np.array([1, 2]))},
        {"directions": [(1, -1), (-1, 1)], "windows": [(2, 2)]},
        {"cell": "leaky", "layer_norm": np.bool_(True)},
        {"device": torch.device("cpu"), "dtype": torch.float64},
    ],
    ids=str,
)
def test_arguments_of_every_kind_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    network = Classifier(1, 3, **options).float()
    again = reload(network, tmp_path)
    assert torch.equal(again(X), network.eval()(X))
    assert not {"device", "dtype"} & json.loads((tmp_path / "config.json").read_text()).keys()


def test_device_and_dtype_are_chosen_when_loading(tmp_path: Path) -> None:
    network = MDNet(1, 1, hidden=4)
    again = reload(network, tmp_path, dtype=torch.float64)
    torch.testing.assert_close(again(X.double()), network(X).double(), atol=1e-6, rtol=0)


def test_a_normalized_network_comes_back_with_the_network_inside(tmp_path: Path) -> None:
    network = Normalized(create("md", 1, 3, kind="segment", hidden=4), (0.1,), (2.0,), (1.0,), (3.0,))
    again = reload(network, tmp_path)
    assert isinstance(again.network, Segmenter)
    assert torch.equal(again(X), network.eval()(X))
    # also in another process, which has not imported the class
    code = "from mdlstm_tk.models import Normalized\nprint(Normalized.from_pretrained('.').network.head)"
    done = python_without((), code, cwd=tmp_path)
    assert "Linear(in_features=16" in done.stdout, done.stderr


def test_a_network_that_is_not_ours_is_given_when_loading(tmp_path: Path) -> None:
    network = Normalized(nn.Linear(1, 2), (0.1,), (2.0,))
    with pytest.raises(InputError, match=r"Linear; give network= to from_pretrained"):
        reload(network, tmp_path)
    again = reload(network, tmp_path, network=nn.Linear(1, 2))
    assert torch.equal(again(X), network(X))


def test_the_card_says_how_to_load_the_network(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    MDNet(1, 1, hidden=4).save_pretrained(tmp_path, model_card_kwargs={"repo_id": "user/net"})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "mdlstm-tk"
    assert "mdlstm" in card.data.tags
    assert 'MDNet.from_pretrained("user/net")' in card.text
    assert "| hidden | `4` |" in card.text


def test_a_network_of_another_class_is_refused(tmp_path: Path) -> None:
    """Also if its weights would fit."""
    HorizontalNet(1, 1, hidden=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a HorizontalNet"):
        SnakeNet.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    MDNet(1, 1, hidden=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not fit this MDNet") as caught:
        MDNet.from_pretrained(tmp_path, hidden=5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", [False, True], ids=["network", "inside"])
def test_a_strangers_config_runs_no_code(inside: bool, tmp_path: Path) -> None:
    network: HubModel = MDNet(1, 1, hidden=4)
    network = Normalized(network, (0.0,), (1.0,)) if inside else network
    network.save_pretrained(tmp_path)
    code = tmp_path / "code.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"graves"', json.dumps(f"{code}:cell")))
    with pytest.raises(InputError, match="import the file that registers the cell"):
        type(network).from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_networks_work_without_huggingface_hub(tmp_path: Path) -> None:
    code = """
import torch
from mdlstm_tk.models import MDNet, create
network = create("md", 1, 3, kind="classify", hidden=4)
assert network(torch.zeros(1, 3, 4, 1)).shape == (1, 3)
for call in (lambda: network.save_pretrained("x"), lambda: MDNet.from_pretrained("x"),
             lambda: network.push_to_hub("user/x")):
    try:
        call()
    except ImportError as error:
        print(type(error).__name__, error)
"""
    done = python_without(("huggingface_hub",), code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("MissingExtraError" in line and "[hub]" in line for line in lines)
    assert not any(tmp_path.iterdir())
