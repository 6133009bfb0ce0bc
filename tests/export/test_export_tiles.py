"""Networks exported for tiles: equal to the whole grid in any tiling, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import (
    export_onnx,
    export_run,
    export_tiles,
    verify_model,
)
from mdlstm_tk.models import (
    Classifier,
    MDNet,
    Normalized,
    Segmenter,
    SnakeNet,
)
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.text import TextRecognizer
from mdlstm_tk.tiling import Stage, TileStages
from mdlstm_tk.training import Run

SHIPPED: dict[str, nn.Module] = {
    "segmenter": Segmenter(1, 3, hidden=4, windows=((2, 1), (1, 2)), directions=[(1, 1), (-1, 1)]),
    "classifier": Classifier(1, 4, hidden=2, windows=((2, 2),), directions=[(1, 1), (-1, -1)]),
    "recogniser": TextRecognizer(1, 3, hidden=2, windows=((2, 1),)),
    "normalised": Normalized(MDNet(1, 2, hidden=2, linear=True), [0.5], [2.0], [3.0, 0.0], [4.0, 1.0]),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_networks_run_in_tiles(name: str, tmp_path: Path) -> None:
    network, path = SHIPPED[name], tmp_path / "m.tiles"
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = export_tiles(network, path)
    assert report.path == path and report.max_abs < 1e-5 and report.bytes == path.stat().st_size
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    session = TiledSession(path, "cpu")
    assert session.metadata == report.metadata and session.metadata.form == "tiles"
    x = np.random.default_rng(0).random((1, 13, 17, session.metadata.channels), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(session(x, tile=4), network(torch.from_numpy(x)), atol=1e-5)


def test_a_compiled_network_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1.tiles", tmp_path / "2.tiles"
    export_tiles(SHIPPED["recogniser"], first)
    export_onnx(torch.compile(SHIPPED["recogniser"], backend="eager"), second)  # type: ignore[arg-type]
    assert first.read_bytes() == second.read_bytes()


class Lying(nn.Module):
    """A network whose description can be made wrong, and always is for an x above 50."""

    def __init__(self, stages: Any, before: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.head = MDLSTM(1, 2, directions=[(1, 1), (-1, 1)]), nn.Linear(4, 2)
        self.before, self.stages = before or nn.Identity(), stages

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.layer(self.before(x))).sigmoid()
        return torch.where((x > 50).any(), y + 1, y)

    def tile_stages(self) -> Any:
        return self.stages(self)


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.roll(1, dims=1)


def right(net: Lying) -> TileStages:
    return TileStages([Stage(net.layer, net.before, net.head)], head=nn.Sigmoid())


def changed(**changes: Any) -> Any:
    return lambda net: replace(right(net), **changes)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[1] < 300 else 2 * x


class TwoOutputs(Lying):
    def forward(self, x: Tensor) -> Any:
        return x, x


REFUSED: dict[str, tuple[nn.Module, type[MDLSTMError]]] = {
    "on the example": (Lying(right), ParityError),
    "no head": (Lying(changed(head=None)), ParityError),
    "neighbours": (Lying(right, Neighbours()), ParityError),
    "pooled": (Lying(changed(pool=(0,))), ParityError),
    "no method": (nn.Sequential(MDLSTM(1, 2)), InputError),
    "no layer": (SnakeNet(1, 1), InputError),
    "channels first": (MDLSTM(1, 2, channels_last=False), InputError),
    "two outputs": (TwoOutputs(right), InputError),
    "a decision before": (Lying(right, Deciding()), InputError),
    "a decision in the head": (Lying(changed(head=Deciding())), InputError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_or_cannot_be_tiled_gets_one_line_and_no_file(name: str, tmp_path: Path) -> None:
    (network, kind), x = REFUSED[name], torch.full((1, 3, 4, 1), 60.0 if "example" in name else 0.0)
    with pytest.raises(kind) as caught:
        export_onnx(network, tmp_path / "m.tiles", x, example_range=(0.0, 1.0))
    assert ("on example_inputs" in str(caught.value)) == ("on the example" in name)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_run_is_exported_for_tiles(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained, tmp_path, form="tiles")
    assert report.path == tmp_path / "model.tiles" and report.metadata.task == "diagonal"
    outcome = verify_model(tmp_path, trained, device="cpu", seeds=1)
    assert {"ONNX Runtime, cpu"} == outcome.outcomes.keys()
    outcome.raise_if_failed()
    alone = verify_model(report.path, device="cpu", seeds=1, inputs={"mine": np.zeros((5, 6))})
    assert alone.reference == "its own graphs in one tile, as its run is not here"
    alone.raise_if_failed()
