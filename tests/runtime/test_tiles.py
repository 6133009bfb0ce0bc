"""Tiled exports: in tiles of any size they give what the network gives for the whole grid."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import nullcontext, suppress
from functools import cache
from itertools import pairwise, product
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_tiles
from mdlstm_tk.models import create
from mdlstm_tk.runtime import TiledSession, decode, infer_paths
from mdlstm_tk.runtime.tiles.archive import Sweep
from mdlstm_tk.runtime.tiles.plan import Plan, extents_of
from mdlstm_tk.text import read_pages

RNG = np.random.default_rng(0)
MODELS = ("segmenter", "classifier", "recogniser", "downward", "single")
VALUES, PALETTE = (0, 7, 9), (0, 0, 0, 250, 0, 0, 0, 0, 250)  # of masks
DOWN: dict[str, Any] = {"directions": [(1, 1), (1, -1)], "num_layers": 2, "window": (2, 1)}
_folder = TemporaryDirectory(prefix="mdlstm-tiled-")  # is removed when the tests end


class TiledModel(NamedTuple):
    """A tiled export and its network."""

    path: Path
    network: nn.Module

    def whole(self, x: Any) -> Any:
        """y for x (*grid, C), from the network itself."""
        with torch.no_grad():
            return self.network(torch.from_numpy(np.ascontiguousarray(x[None])))[0].numpy()


@cache
def tiled_model(name: str) -> TiledModel:
    network: Any
    metadata: dict[str, Any] = {}
    match name:
        case "segmenter":  # three colours, in windows of 2×2 and two directions
            how = {"windows": [(2, 2)], "directions": [(1, 1), (-1, 1)]}
            network = create("md", 3, 3, kind="segment", hidden=4, **how)
            metadata = {"kind": "segment", "classes": ("a", "b", "c")}
            metadata |= {"mask_values": VALUES, "mask_palette": PALETTE}
        case "classifier":  # on two levels
            how = {"windows": [(2, 2), (2, 1)], "directions": [(1, 1), (-1, -1)]}
            network = create("md", 1, 3, kind="classify", hidden=4, **how)
            metadata = {"kind": "classify", "classes": ("cat", "dog", "bird")}
        case "recogniser":  # of the blank and two characters, in steps of four columns
            network = create("md", 1, 3, kind="transcribe", hidden=4, windows=[(2, 4)], directions=1)
            metadata = {"kind": "transcribe", "classes": ("a", "b")}
        case "downward" | "of two states":
            network = MDLSTM(1, 3, cell="graves" if name == "downward" else "slstm", **DOWN)
        case _:
            network = create("md", 1, 1, hidden=2, directions=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    path = Path(mkdtemp(dir=_folder.name)) / "model.tiles"
    export_tiles(network.eval(), path, metadata=metadata)
    return TiledModel(path, network)


def image(model: str, height: int = 13, width: int = 18) -> Any:
    return RNG.random((height, width, 3 if model == "segmenter" else 1), dtype=np.float32)


def tif(path: Path, pixels: Any, **options: Any) -> None:
    pytest.importorskip("tifffile").imwrite(path, pixels, **options)


@pytest.mark.parametrize("tile", [4, 512])
@pytest.mark.parametrize("model", MODELS)
def test_tiles_equal_the_whole(model: str, tile: int) -> None:
    tiled = tiled_model(model)
    x, threads = image(model), tile % 3  # 0 are all cores
    session = TiledSession(tiled.path, threads=threads)
    y = session(x, tile=tile)
    np.testing.assert_allclose(y, tiled.whole(x), atol=2e-5)
    if tile == 4:
        other = TiledSession(tiled.path.read_bytes(), threads=2)
        np.testing.assert_array_equal(other(x, tile=4), y)  # threads change no byte
        np.testing.assert_allclose(other(x, tile=4, batch_size=1), y, atol=2e-6)


@settings(max_examples=8)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 9))
def test_any_grid_in_tiles_of_any_size(height: int, width: int, tile: int) -> None:
    tiled = tiled_model("of two states")
    x = image("downward", height, width)
    np.testing.assert_allclose(TiledSession(tiled.path)(x, tile=tile), tiled.whole(x), atol=2e-5)


def test_axes_are_those_of_the_users_array(tmp_path: Path) -> None:
    tiled = tiled_model("single")
    session, x = TiledSession(tiled.path, tile=5), image("single")
    assert session(x).shape == (13, 18, 1)
    assert session(x[..., 0]).shape == (13, 18)
    assert session(np.stack([x, x])).shape == (2, 13, 18, 1)
    other, colours = tiled_model("segmenter"), image("segmenter")
    assert TiledSession(other.path)(colours[:, :1]).shape == (13, 1, 3)
    shapes = [(4,), (4, 4, 2), (0, 4, 4, 1)]
    for wrong in (*map(np.zeros, shapes), np.full((4, 4), np.nan), np.full((4, 4), "a")):
        with pytest.raises(InputError):
            session(wrong)
    np.save(tmp_path / "with.npy", x)
    np.save(tmp_path / "without.npy", x[..., 0])
    tif(tmp_path / "colours.tif", np.zeros((13, 18, 3), np.uint8), photometric="rgb")  # become grey
    for file, shape in (("with.npy", (13, 18, 1)), ("without.npy", (13, 18)), ("colours.tif", (13, 18))):
        (result,) = infer_paths([tmp_path / file], tiled.path, tmp_path / f"{file}.npy", tile=5)
        assert result.shapes == [shape], result.error


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.data())
def test_a_plan_runs_each_tile_after_those_that_it_needs(
    ndim: int, tile: int, batch_size: int, data: Any
) -> None:
    grid = data.draw(st.tuples(*[st.integers(1, (12, 12, 5)[ndim - 1])] * ndim))
    windows = data.draw(st.lists(st.tuples(*[st.integers(1, 3)] * ndim), min_size=1, max_size=3))
    signs = st.tuples(*[st.sampled_from([1, -1])] * ndim)
    sweeps = [
        Sweep("", direction, stage, k)
        for stage in range(len(windows))
        for k, direction in enumerate(data.draw(st.lists(signs, min_size=1, max_size=4, unique=True)))
    ]
    sweeps.sort(key=lambda each: (each.stage, each.rank))
    plan = Plan(grid, tile, windows, sweeps, batch_size)
    for extent, cut, unit in zip(
        grid, plan.tile_extents[0], map(prod, zip(*windows, strict=True)), strict=True
    ):
        assert cut % unit == 0 and cut <= max(tile, unit) and cut < extent + unit
        assert cut + unit > min(tile, extent)  # as large as asked
    done: set[tuple[int, Any]] = set()
    for groups in plan.steps:
        numbers = [len(tiles) for _, tiles in groups]
        assert numbers == sorted(numbers, reverse=True)  # threads end at about the same time
        for sweep, tiles in groups:
            assert 1 <= len(tiles) <= batch_size
            assert len({extents_of(plan.region(sweeps[sweep].stage, each)) for each in tiles}) == 1
            for each in tiles:
                assert all((before, each) in done for before in range(sweep))  # sums and inputs of stages
        done |= {(sweep, each) for sweep, tiles in groups for each in tiles}
        for sweep, tiles in groups:
            next_ones = [plan.following(sweep, each, axis) for each in tiles for axis in range(ndim)]
            for each in filter(None, next_ones):
                assert (sweep, each) not in done
                assert all(0 <= i < count for i, count in zip(each, plan.counts, strict=True))
    number = sum(len(tiles) for groups in plan.steps for _, tiles in groups)
    assert len(done) == number == len(sweeps) * prod(plan.counts)
    turns = sorted(
        (Sweep("", signs, 0, 0) for signs in product((1, -1), repeat=ndim)), key=lambda s: s.rank
    )
    for one, two in pairwise(turns):  # so that the sweeps of a stage overlap
        assert sum(a != b for a, b in zip(one.direction, two.direction, strict=True)) == 1


def test_files_are_read_and_written_by_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdlstm_tk.runtime.tiles.files.SIDE", 16)  # of the tiles of the result
    monkeypatch.setattr("mdlstm_tk.runtime.tiles.files.BIG", 40 * 33 * 3 * 4 - 1)
    tifffile, zarr = pytest.importorskip("tifffile"), pytest.importorskip("zarr")
    tiled = tiled_model("segmenter")
    pixels = RNG.integers(0, 256, (40, 33, 3)).astype(np.uint8)
    x = pixels / np.float32(255)
    np.save(tmp_path / "a.npy", x)
    zarr.save_array(str(tmp_path / "b.zarr"), x, zarr_format=3)
    tifffile.imwrite(tmp_path / "c.tif", pixels, tile=(16, 16), compression="zlib")
    session = TiledSession(tiled.path)
    y = session(x, tile=9)
    mask = decode(y, session.metadata)
    assert {*np.unique(mask)} <= {*VALUES}
    for name in ("a.npy", "b.zarr", "c.tif"):
        for options, expected in (({}, mask), ({"raw": True}, y), ({"probabilities": True}, None)):
            seen: list[tuple[int, int]] = []
            for form in ("npy", "zarr", "tif"):
                target = tmp_path / f"y.{form}"
                how: Any = {"tile": 9, "force": True, "report": lambda *n, seen=seen: seen.append(n)}
                how["threads"] = 1 + ("raw" not in options)  # tiles share the chunks of a zarr
                (result,) = infer_paths([tmp_path / name], tiled.path, target, **how, **options)
                assert result.error is None, result.error
                read = {
                    "npy": np.load,
                    "zarr": lambda path: zarr.open_array(str(path))[...],
                    "tif": tifffile.imread,
                }[form](target)
                if form == "tif":
                    assert tifffile.TiffFile(target).is_bigtiff == bool(options)  # numbers, not masks
                if expected is not None:
                    np.testing.assert_allclose(read, expected, atol=2e-5)
                else:
                    np.testing.assert_allclose(read.sum(-1), 1, rtol=1e-5)
            assert seen[-1][0] == seen[-1][1]
    with tifffile.TiffFile(tmp_path / "y.tif") as file:
        assert file.pages[0].is_tiled
    run = infer_paths([tmp_path / "a.npy"], tiled.path, tile=9)
    (result,) = run
    assert result.job.target.endswith("a.out.tif")
    with tifffile.TiffFile(result.job.target) as file:
        colormap = file.pages[0].colormap  # of the masks of training
        assert colormap[:, 7].tolist() == [250 * 257, 0, 0]
    names = {"a.npy", "b.zarr", "c.tif", "y.npy", "y.zarr", "y.tif", "a.out.tif"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("model", ["classifier", "recogniser"])
def test_answers_of_whole_grids_are_rows_and_other_ways_are_refused(tmp_path: Path, model: str) -> None:
    tiled = tiled_model(model)
    np.save(tmp_path / "a.npy", image(model))
    (result,) = infer_paths([tmp_path / "a.npy"], tiled.path, tmp_path / "t.json", tile=5)
    session = TiledSession(tiled.path)
    (row,) = json.loads((tmp_path / "t.json").read_text())
    expected = decode(session(np.load(tmp_path / "a.npy"), tile=5), session.metadata)[0]
    name = "label" if model == "classifier" else "text"
    assert result.error is None and row[name] == expected[name]
    with pytest.raises(InputError, match="--form scan"):
        read_pages(["page.png"], tiled_model("recogniser").path)
    with pytest.raises(InputError, match="-o"):
        infer_paths([tmp_path / "a.npy"], tiled_model("segmenter").path, "-")


def changed(data: bytes, **entries: Any) -> bytes:
    """The archive with other entries in its index."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "tiles.json":
                content = json.dumps({**json.loads(content), **entries}).encode()
            new.writestr(name, content)
    return buffer.getvalue()


WRONG: list[dict[str, Any]] = [{"schema": 9}, {"stages": []}, {"head": {"file": "nix"}}, {"stages": [{}]}]


def test_a_damaged_archive_is_refused_or_runs() -> None:
    data, x = tiled_model("single").path.read_bytes(), np.zeros((4, 4), np.float32)
    for _ in range(120):
        damaged = bytearray(data[: RNG.integers(1, len(data) + 1)] if RNG.random() < 0.3 else data)
        damaged[RNG.integers(len(damaged))] ^= int(RNG.integers(1, 256))
        with suppress(MDLSTMError):
            assert TiledSession(bytes(damaged), "cpu")(x).shape == (4, 4)
    for entries in (*WRONG, {"upsample": "x"}):
        with pytest.raises(MDLSTMError):
            TiledSession(changed(data, **entries), "cpu")(x)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("tiles.json", b" " * 10**6)
    with pytest.raises(InputError, match="compressed"):
        TiledSession(buffer.getvalue())


REFUSED = {
    "missing": ("nix.npy", lambda path: None),
    "csv": ("x.csv", lambda path: path.write_text("1,2")),
    "no array": ("x.npy", lambda path: path.write_bytes(b"x")),
    "a batch": ("x.npy", lambda path: np.save(path, np.zeros((1, 4, 4, 3)))),
    "objects": ("x.npy", lambda path: np.save(path, np.array([[{}]]), allow_pickle=True)),
    "grey": ("x.npy", lambda path: np.save(path, np.zeros((4, 4, 1)))),
    "NaN": ("x.npy", lambda path: np.save(path, np.full((4, 4, 3), np.nan))),
    "no zarr": ("x.zarr", lambda path: path.mkdir()),
    "no tif": ("x.tif", lambda path: path.write_bytes(b"II*\0")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_by_region_is_an_error(tmp_path: Path, name: str) -> None:
    file, write = REFUSED[name]
    write(tmp_path / file)
    (result,) = infer_paths([tmp_path / file], tiled_model("segmenter").path, tmp_path / "y.npy", tile=3)
    assert file in str(result.error) and "\n" not in str(result.error)
    assert not (tmp_path / "y.npy").exists() and not [*tmp_path.glob(".mdlstm*")]


UNUSUAL: list[tuple[Any, dict[str, Any]]] = [
    (np.zeros((8, 8, 3), np.uint16), {"photometric": "rgb"}),
    (np.zeros((8, 8, 4), np.uint8), {"photometric": "rgb"}),
    (np.zeros((3, 8, 8), np.uint8), {"photometric": "rgb", "planarconfig": "separate"}),
    (np.zeros((8, 8), np.uint8), {"photometric": "miniswhite"}),
    (np.zeros((8, 8), np.int16), {"photometric": "minisblack"}),
    (np.zeros((2, 8, 8), np.uint8), {"photometric": "minisblack"}),
    (np.zeros((8, 8, 3), np.uint8), {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}),
]


def test_an_unusual_tiff_is_refused_rather_than_read_wrong(tmp_path: Path) -> None:
    for k, (pixels, options) in enumerate(UNUSUAL):
        tif(tmp_path / f"{k}.tif", pixels, **options)
    Image.new("YCbCr", (16, 16)).save(tmp_path / "7.tif", compression="tiff_deflate")
    paths = [tmp_path / f"{k}.tif" for k in range(8)]
    for result in infer_paths(paths, tiled_model("segmenter").path, tmp_path / "out", tile=3):
        assert "upright" in str(result.error)
    data = tiled_model("segmenter").path.read_bytes()
    metadata = json.loads(zipfile.ZipFile(io.BytesIO(data)).read("tiles.json"))["metadata"]
    metadata["mdlstm.preprocessing"] = json.dumps({"channels": 3, "resize": [16, None]})
    (tmp_path / "m.tiles").write_bytes(changed(data, metadata=metadata))
    tif(tmp_path / "usual.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    (result,) = infer_paths([tmp_path / "usual.tif"], tmp_path / "m.tiles", tmp_path / "y.npy")
    assert "resize" in str(result.error)


@pytest.mark.parametrize(("free", "is_full"), [(3023, True), (3024, False)])
def test_a_full_disk_is_told_before_it_is_written(
    free: int, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", image("segmenter"))
    run = infer_paths([tmp_path / "a.npy"], tiled_model("segmenter").path, tmp_path / "y.npy")
    usage = type("Usage", (), {"free": free})  # the first stage makes (7, 9, 12) float32
    monkeypatch.setattr("mdlstm_tk.runtime.tiles.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(MDLSTMError, match="full") if is_full else nullcontext():
        list(run)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", *([] if is_full else ["y.npy"])}
