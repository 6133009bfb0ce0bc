"""Networks exported for tiles: equal to the whole grid in any tiling, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.command import mdlstm
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, ParityError
from mdlstm_tk.export import (
    export_onnx,
    export_run,
    export_tiles,
    float64_reference,
    verify_model,
)
from mdlstm_tk.models import (
    Classifier,
    MDNet,
    Normalized,
    Segmenter,
    SnakeNet,
)
from mdlstm_tk.runtime.tiles.archive import parse_archive
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.text import TextRecognizer
from mdlstm_tk.tiling import Stage, TileStages
from mdlstm_tk.training import Run

CELLS: list[dict[str, Any]] = [
    {"cell": "graves"},
    {"cell": "graves", "peephole": True},
    {"cell": "stable", "layer_norm": True},
    {"cell": "leaky"},
    {"cell": "mean"},
    {"cell": "slstm"},
]


class RandomNet(nn.Module):
    """Stages with random options. Weights are such that states neither vanish nor grow."""

    def __init__(self, seed: int, ndim: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.ndim, self.channels = ndim, int(rng.integers(1, 3))
        self.stages, features = [], self.channels
        for k in range(int(rng.integers(1, 3))):
            directions = list(product((1, -1), repeat=ndim))
            chosen = rng.permutation(len(directions))[: rng.integers(1, 4)]
            cell = CELLS[rng.integers(len(CELLS))]
            # Layer norm over two or three units would amplify rounding errors a hundred times.
            units = int(rng.integers(2, 4)) + 3 * ("layer_norm" in cell)
            layer = MDLSTM(
                features,
                units,
                ndim=ndim,
                num_layers=int(rng.integers(1, 3)) if k == 0 else 1,
                directions=[directions[i] for i in chosen],
                merge=rng.choice(["concat", "sum", "mean"]),  # type: ignore[arg-type]
                window=tuple(rng.integers(1, 3, ndim).tolist()) if rng.random() < 0.5 else 1,
                backend="torch",  # which compiles nothing
                **cell,
            )
            features = layer.output_size
            before = nn.Tanh() if rng.random() < 0.3 else None
            after = nn.Linear(features, 3, bias=bool(rng.random() < 0.7)) if rng.random() < 0.6 else None
            features = 3 if after else features
            self.stages.append(Stage(layer, before, after))
        self.parts = nn.ModuleList(part for stage in self.stages for part in (stage.layer, stage.after))
        self.pool = tuple(d for d in range(ndim) if rng.random() < 0.2)
        self.head = nn.Sequential(nn.Linear(features, 2), nn.Sigmoid()) if rng.random() < 0.6 else None
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.uniform_(parameter, -0.5, 0.5, generator)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage.layer(x if stage.before is None else stage.before(x))
            x = x if stage.after is None else stage.after(x)
        x = x.mean([1 + d for d in self.pool]) if self.pool else x
        return x if self.head is None else self.head(x)

    def tile_stages(self) -> TileStages:
        return TileStages(self.stages, self.pool, self.head)


@pytest.mark.parametrize(  # two networks of each number of axes
    "seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 4, 5))]
)
def test_random_networks_in_tiles_equal_the_whole_grid(seed: int, tmp_path: Path) -> None:
    network = RandomNet(seed, ndim=1 + seed % 3)
    path, rng = tmp_path / "m.tiles", np.random.default_rng(seed)
    export_tiles(network, path, atol=1e-4)
    network = network.double().eval()
    session = TiledSession(path, "cpu")
    for _ in range(4):
        grid = rng.integers(1, {1: 60, 2: 20, 3: 8}[network.ndim], network.ndim)
        x = rng.standard_normal((1, *grid, network.channels)).astype(np.float32)
        actual = session(x, tile=int(rng.integers(2, 9)))
        whole = network(torch.from_numpy(x).double()).detach()
        np.testing.assert_allclose(actual, whole, rtol=1e-5, atol=1e-5)


SHIPPED: dict[str, nn.Module] = {
    "grid": MDNet(2, 1, hidden=3, layers=2, directions=[(1, -1)]),
    "segmenter": Segmenter(1, 3, hidden=4, windows=((2, 1), (1, 2))),
    "classifier": Classifier(1, 4, hidden=2, windows=((2, 2),), directions=[(1, 1), (-1, -1)]),
    "recogniser": TextRecognizer(1, 3, hidden=2, windows=((2, 1),)),
    "layer": MDLSTM(1, 2, directions=[(-1, 1)]),
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


def test_each_member_takes_and_returns_what_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "m.tiles"
    export_tiles(SHIPPED["segmenter"], path)
    archive = parse_archive(path.read_bytes(), "m.tiles")
    assert (archive.upsample, archive.pool, archive.metadata.window) == ((2, 2), (), (1, 1))
    first, second = archive.stages
    assert (first.channels, first.features, first.units, first.added) == (1, 4, 2, True)
    assert (second.channels, second.features, second.units, second.added) == (4, 3 * 4, 4, True)
    for stage in archive.stages:
        assert [sweep.direction for sweep in stage.sweeps] == [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        file, extents = stage.sweeps[1].file, [-(-5 // stage.window[0]), -(-6 // stage.window[1])]
        shapes = {f"{name}{d}": (3, extents[1 - d], stage.units) for d in (0, 1) for name in "hc"}
        session = onnxruntime.InferenceSession(archive.graphs[file])  # each member is a model
        zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        feeds = {"x": np.zeros((3, 5, 6, stage.channels), np.float32), **zeros}
        names = [output.name for output in session.get_outputs()]
        result = dict(zip(names, session.run(names, feeds), strict=True))
        assert result.pop("part").shape == (3, *extents, stage.features)
        assert {name.removesuffix("_n"): face.shape for name, face in result.items()} == shapes


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    layer, first, second = MDLSTM(1, 2, ndim=3), tmp_path / "1.tiles", tmp_path / "2.tiles"
    assert export_tiles(layer, first).metadata.layout == "N D H W C"
    export_onnx(torch.compile(layer, backend="eager"), second, form="tiles")
    assert first.read_bytes() == second.read_bytes()


class Lying(nn.Module):
    """A network whose description can be made wrong."""

    def __init__(self, stages: Any, before: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.head = MDLSTM(1, 2, directions=[(1, 1), (-1, 1)]), nn.Linear(4, 2)
        self.before, self.stages = before or nn.Identity(), stages

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.before(x))).sigmoid()

    def tile_stages(self) -> Any:
        return self.stages(self)


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.roll(1, dims=1)


def right(net: Lying) -> TileStages:
    return TileStages([Stage(net.layer, net.before, net.head)], head=nn.Sigmoid())


def changed(**changes: Any) -> Any:
    return lambda net: replace(right(net), **changes)


def test_a_wrong_description_gets_no_file(tmp_path: Path) -> None:
    for network, message in (
        (Lying(changed(head=None)), r"is off .* tile_stages\(\)"),
        (Lying(right, Neighbours()), "each position from"),
        (Lying(changed(pool=(0,))), r"has shape \(3, .* expected \(3, "),
    ):
        with pytest.raises(ParityError, match=message) as caught:
            export_tiles(network, tmp_path / "m.tiles")
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[1] < 300 else 2 * x


class TwoOutputs(Lying):
    def forward(self, x: Tensor) -> Any:
        return x, x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(MDLSTM(1, 2)), "no method tile_stages"),
        (SnakeNet(1, 1), "no MDLSTM"),
        (MDLSTM(1, 2, channels_last=False), "other inputs or outputs"),
        (TwoOutputs(right), "other inputs or outputs"),
        (Lying(lambda net: [net.layer]), "must return TileStages"),
        (Lying(right, Deciding()), "asks whether"),
        (Lying(changed(head=Deciding())), "asks whether"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_networks_that_cannot_be_tiled_are_refused_with_the_reason(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        export_tiles(network, tmp_path / "m.tiles")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_grid_of_many_axes_runs_in_tiles(tmp_path: Path) -> None:
    network = Lying(right)
    network.layer = MDLSTM(1, 2, ndim=6, directions=[(1,) * 6, (-1, *(1,) * 5)])
    path = export_tiles(network, tmp_path / "m.tiles").path
    x = np.random.default_rng(0).random((2, 3, 2, 3, 2, 2, 1), dtype=np.float32)
    session = TiledSession(path, "cpu")
    np.testing.assert_allclose(session(x, tile=2), float64_reference(network)(x), atol=1e-5)


def test_tiles_are_verified_on_the_example(tmp_path: Path) -> None:
    """Where alone this network differs from the one that it describes."""

    class Lies(MDLSTM):
        def forward(self, x: Tensor, *others: Any) -> Any:
            y = super().forward(x, *others)
            return torch.where((x > 50).any(), y + 1, y)

        def tile_stages(self) -> TileStages:
            return TileStages([Stage(self)])

    example = torch.zeros(1, 3, 4, 1)
    export_onnx(Lies(1, 2), tmp_path / "m.tiles", example, example_range=(0.0, 1.0))
    with pytest.raises(ParityError, match="on example_inputs"):
        export_onnx(Lies(1, 2), tmp_path / "n.tiles", example + 60, example_range=(0.0, 1.0))


def test_a_run_is_exported_for_tiles(trained: Run, tmp_path: Path) -> None:
    done = mdlstm("export", trained.folder, "--form", "tiles", "--size", "8")
    assert done.code == 2 and "leave out grid" in done.err
    report = export_run(trained, tmp_path, form="tiles")
    assert report.path == tmp_path / "model.tiles" and report.metadata.task == "diagonal"
    outcome = verify_model(tmp_path, trained, device="cpu", seeds=1)
    assert {"ONNX Runtime, cpu"} == outcome.outcomes.keys()
    outcome.raise_if_failed()
    alone = verify_model(report.path, device="cpu", seeds=1, inputs={"mine": np.zeros((5, 6))})
    assert alone.reference == "its own graphs in one tile, as its run is not here"
    alone.raise_if_failed()
