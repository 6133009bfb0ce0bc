"""`open_source`: what is read by region is what a reader of whole files gives."""

from __future__ import annotations

import importlib.util
import os
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiled_models import classifier, segmenter
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import TiledSession, infer_paths, load_image
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.preprocessing import decode_image
from mdlstm_tk.runtime.tiles.local import State
from mdlstm_tk.runtime.tiles.sources import open_source
from mdlstm_tk.runtime.tiles.tif import TifPixels

tifffile: Any = pytest.importorskip("tifffile")
zarr: Any = pytest.importorskip("zarr")

PIXELS = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
X = PIXELS / np.float32(255)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "dtype", "is_warned"),
    [
        *(("x.npy", "u1", True), ("x.npy", "i8", True), ("x.npy", "f4", True)),
        *(("x.tif", "u1", False), ("x.tif", "i4", True), ("x.tif", "f4", True)),
    ],
)
def test_whole_numbers_that_are_not_scaled_are_named(name: str, dtype: str, is_warned: bool) -> None:
    write = np.save if name.endswith("npy") else tifffile.imwrite
    write(name, PIXELS[..., 0].astype(dtype))
    trained_on_images: Any = {"channels": 1, "resize": None}
    metadata = TiledSession(classifier().path, "cpu").metadata
    metadata = replace(metadata, preprocessing=trained_on_images)
    with ExitStack() as stack, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_source(Path(name), metadata, 0, stack)
        source.read((slice(0, 9), slice(0, 9)))
        source.read((slice(9, 18), slice(0, 9)))
        of_tiles = len(caught)
        read_input(name).arrays_for(metadata)
    assert (of_tiles, len(caught) - of_tiles) == (is_warned, is_warned)
    assert any("divide by 255" in str(warning.message) for warning in caught) == is_warned


def test_regions_of_an_image_that_has_the_extents_of_the_model_are_not_resized() -> None:
    tifffile.imwrite("x.tif", PIXELS[..., 0])
    resize = {"channels": 1, "resize": [45, 70]}
    metadata = replace(TiledSession(classifier().path, "cpu").metadata, preprocessing=resize)
    with ExitStack() as stack:
        region = open_source(Path("x.tif"), metadata, 0, stack).read((slice(3, 40), slice(10, 70)))
        np.testing.assert_array_equal(region[..., 0], X[3:40, 10:70, 0])
        metadata = replace(metadata, preprocessing={"channels": 1, "resize": [45, None]})
        assert open_source(Path("x.tif"), metadata, 0, stack).read((slice(0, 9),) * 2).shape == (9, 9, 1)


def test_tiled_models_of_other_numbers_take_images_of_floats_alone() -> None:
    metadata = replace(TiledSession(classifier().path, "cpu").metadata, unit_range=False)
    with ExitStack() as stack:
        tifffile.imwrite("floats.tif", 300 + X[..., 0])
        source = open_source(Path("floats.tif"), metadata, 0, stack)
        np.testing.assert_array_equal(source.read((slice(0, 9), slice(0, 9)))[..., 0], 300 + X[:9, :9, 0])
        tifffile.imwrite("scaled.tif", PIXELS[..., 0])
        with pytest.raises(InputError, match="trained on others"):
            open_source(Path("scaled.tif"), metadata, 0, stack)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (PIXELS[..., 0], {}),
        (PIXELS[..., 0], {"photometric": "miniswhite", "tile": (16, 16)}),
        (PIXELS[..., 0].astype(np.uint16) * 257, {"tile": (16, 16)}),
        (PIXELS[..., 0] % 4, {"photometric": "palette", "colormap": np.arange(768).reshape(3, 256) * 80}),
        (np.dstack([PIXELS, PIXELS[::-1, :, 0]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (X[..., 0], {"tile": (16, 16)}),
        (PIXELS[..., 0] > 99, {"photometric": "minisblack"}),
        (PIXELS.astype(np.uint16) * 257 + 128, {"photometric": "rgb", "tile": (16, 16)}),
        (PIXELS[..., 0].astype(np.uint32) << 24, {}),
        (PIXELS[..., 0].astype(np.int8), {}),
        (PIXELS[..., 0].astype(np.uint16) * 257, {"byteorder": ">"}),
    ],
    ids=[
        *("grey", "white is zero", "16 bits", "palette", "opacity", "float", "1 bit"),
        *("16 bits a colour", "unsigned 32 bits", "signed 8 bits", "high byte first"),
    ],
)
def test_images_are_prepared_as_whole_ones(pixels: Any, options: dict[str, Any]) -> None:
    tifffile.imwrite("x.tif", pixels, **options)
    dtype = decode_image(Path("x.tif").read_bytes(), "x.tif").dtype
    assert TifPixels(Path("x.tif")).dtype == dtype
    for model in (segmenter(), classifier()):
        metadata = TiledSession(model.path, "cpu").metadata
        whole = load_image("x.tif", metadata)
        with ExitStack() as stack:
            source = open_source(Path("x.tif"), metadata, 0, stack)
            region = (slice(3, 40), slice(10, 70))
            expected = whole[region].reshape(37, 60, metadata.channels)
            np.testing.assert_allclose(source.read(region), expected, rtol=0, atol=1e-7, strict=True)


def test_a_file_that_cannot_be_decoded_leaves_the_others(tmp_path: Path) -> None:
    pixels = Image.fromarray(PIXELS)
    pixels.save("bad.tif", compression="tiff_lzw")  # needs imagecodecs
    data = bytearray(Path("bad.tif").read_bytes())
    for image in (b"", b"\0" * 20):  # the second one is damaged
        if image:
            tifffile.imwrite("bad.tif", PIXELS, tile=(16, 16), compression="zlib")
            data = bytearray(Path("bad.tif").read_bytes())
            with tifffile.TiffFile("bad.tif") as file:
                start = file.pages[0].dataoffsets[0]
            data[start : start + len(image)] = image
            Path("bad.tif").write_bytes(data)
        elif importlib.util.find_spec("imagecodecs"):
            continue
        tifffile.imwrite("good.tif", PIXELS)
        run = infer_paths(["bad.tif", "good.tif"], segmenter().path, "out/", device="cpu", force=True)
        errors = {result.job.source: result.error for result in run.results}
        assert errors["good.tif"] is None and "cannot read bad.tif" in str(errors["bad.tif"])


def test_a_palette_with_opacity_is_read_as_from_a_whole_image() -> None:
    image = Image.fromarray(PIXELS[..., 0] % 4).convert("P")
    image.putpalette(PIXELS.tobytes()[:768])
    image = image.convert("PA")
    image.putalpha(Image.fromarray(np.ascontiguousarray(PIXELS[..., 1])))
    image.save("x.tif")
    assert Image.open("x.tif").mode == "PA"
    metadata = TiledSession(segmenter().path, "cpu").metadata
    with ExitStack() as stack:
        source = open_source(Path("x.tif"), metadata, 0, stack)
        region = (slice(3, 40), slice(10, 70))
        np.testing.assert_allclose(source.read(region), load_image("x.tif", metadata)[region], atol=1e-7)


@pytest.mark.parametrize(
    ("source", "target", "model"),
    [("x.npy", "y.npy", segmenter), ("x.zarr", "y.zarr", segmenter), ("x.npy", None, classifier)],
)
def test_a_source_that_changes_gives_no_result(
    source: str, target: str | None, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layout stays, so that every region can be read."""
    grid = X if model is segmenter else X[..., 0].copy()
    if source == "x.npy":
        np.save(source, grid)
    else:
        zarr.create_array(source, shape=X.shape, chunks=(16, 16, 3), dtype=X.dtype)[:] = X
    save = State.save

    def change(state: State, step: int) -> None:
        if step == 2:
            array = np.load(source, mmap_mode="r+") if source == "x.npy" else zarr.open_array(source)
            array[:] = 1
            for path in (Path(source), *Path(source).rglob("*")):
                os.utime(path, (0, 0))
        save(state, step)

    monkeypatch.setattr(State, "save", change)
    run = infer_paths([source], model().path, target, device="cpu", tile=16, resume=True)
    with pytest.raises(InputError, match=f"{source} has changed while it was read"):
        list(run.results)
    assert os.listdir() == [source]
