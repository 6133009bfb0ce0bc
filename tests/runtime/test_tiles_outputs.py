"""`FileOutput`: a result that is written by region is that of the whole grid, in each kind and content."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdlstm_tk import kinds
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.kinds import Kind
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.batching import write_results
from mdlstm_tk.runtime.jobs import Content, Job
from mdlstm_tk.runtime.tiles.outputs import FileOutput

tifffile: Any = pytest.importorskip("tifffile")
zarr: Any = pytest.importorskip("zarr")


class Flags(Kind):
    """A kind of one's own: any of the outputs may be on at a position."""

    name, answers, formats, image_format, tile_format = "flags", "flags", ("tif", "png"), "png", "tif"

    def scores_to_probabilities(self, y: Any, axis: int) -> Any:
        return 1 / (1 + np.exp(-y))

    def decode(self, y: Any, *further: Any) -> Any:
        return (y > 0).astype(np.int16)


def read(path: str) -> Any:
    form = path.rpartition(".")[2]
    return {"npy": np.load, "zarr": lambda path: zarr.open_array(path)[:], "tif": tifffile.imread}[form](
        path
    )


@pytest.mark.parametrize(
    ("kind", "outputs"), [("segment", 3), ("segment", 300), ("flags", 3), ("flags", 1)]
)
@pytest.mark.parametrize("grid", [(7, 10), (3, 7, 10)], ids=["image", "volume"])
def test_a_result_by_region_is_that_of_the_whole_grid(
    kind: str, outputs: int, grid: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(kinds._registered, "flags", Flags())
    layout, window = ("N H W C", (1, 1)) if len(grid) == 2 else ("N D H W C", (1, 1, 1))
    names = tuple(map(str, range(outputs))) if kind == "segment" else None
    metadata = Metadata("0", None, "tiles", layout, 1, outputs, window=window, kind=kind, classes=names)
    y = np.random.default_rng(0).standard_normal((*grid, outputs)).astype(np.float32)
    y[..., :4, 299:] += 9  # the first region has other classes than the second
    count = 0
    for file_format in ("npy", "zarr", *(("tif",) if len(grid) == 2 else ())):
        contents: tuple[Content, ...] = ("outputs", "answers", "probabilities")
        for content in contents[file_format == "tif" :]:  # of kinds with answers a TIFF holds them
            target = f"{count}.{file_format}"
            scratch = Path(f"scratch-{count}")
            scratch.mkdir()
            output = FileOutput(
                scratch, file_format, (*grid, outputs), metadata, grid, content, squeeze=False
            )
            for columns in (slice(0, 4), slice(4, 10)):
                region = (*(slice(0, extent) for extent in grid[:-1]), columns)
                output[region] = y[region]
            output.finish(Path(target))
            whole = Job("x.npy", f"whole-{count}.npy", "npy", content)
            write_results(whole, {None: y}, metadata)
            expected = np.load(whole.target)
            if file_format == "tif" and expected.shape[-1:] == (1,):
                expected = expected[..., 0]
            np.testing.assert_array_equal(read(target), expected, strict=True)
            count += 1


class Single(Flags):
    """A kind whose answer is one for all positions."""

    def decode(self, y: Any, *further: Any) -> Any:
        return y.max(keepdims=True)[..., 0]


def test_answers_that_are_not_for_each_position_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds._registered, "flags", Single())
    metadata = Metadata("0", None, "tiles", "N H W C", 1, 2, window=(1, 1), kind="flags")
    output = FileOutput(tmp_path, "tif", (7, 10, 2), metadata, (7, 10), "answers", squeeze=False)
    with pytest.raises(InputError, match=r"shape \(1, 1\) for a tile of \(7, 5\) positions"):
        output[(slice(0, 7), slice(0, 5))] = np.zeros((7, 5, 2), np.float32)
    monkeypatch.setitem(kinds._registered, "flags", Flags())
    with pytest.raises(MDLSTMError, match=r"holds .* expected int16 of .*; start over with force=True"):
        FileOutput(tmp_path, "tif", (7, 10, 2), metadata, (7, 10), "answers", squeeze=False)


def test_numbers_that_are_not_finite_are_said_once(tmp_path: Path) -> None:
    metadata = Metadata("0", None, "tiles", "N H W C", 1, 2, window=(1, 1))
    output = FileOutput(
        tmp_path, "npy", (4, 6, 2), metadata, (4, 6), "outputs", squeeze=False, label="x.npy"
    )
    y = np.zeros((4, 3, 2), np.float32)
    y[0, 0] = np.inf
    with pytest.warns(UserWarning, match=r"a tile of x\.npy holds 2 NaN or infinite values"):
        output[(slice(0, 4), slice(0, 3))] = y
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output[(slice(0, 4), slice(3, 6))] = y


def test_a_tif_of_a_volume_is_refused_before_the_run(tmp_path: Path) -> None:
    metadata = Metadata(
        "0", None, "tiles", "N D H W C", 1, 2, window=(1, 1, 1), kind="segment", classes=("a", "b")
    )
    grid = (3, 7, 10)
    with pytest.raises(InputError, match=r"tif holds \(H, W\)"):
        FileOutput(tmp_path, "tif", (*grid, 2), metadata, grid, "answers", squeeze=False)
