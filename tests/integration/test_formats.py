"""The file formats that `mdlstm infer` reads and writes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.infer import Infer
from PIL import Image

from mdlstm_tk.cli.infer import INPUTS
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata, Session, load_image
from mdlstm_tk.runtime.io.readers import READABLE, read_input
from mdlstm_tk.runtime.io.writers import write_arrays

RNG = np.random.default_rng(0)


@pytest.fixture
def infer(model: Path, capfd: pytest.CaptureFixture[str]) -> Infer:
    return Infer(model, capfd)


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "matrix.npy", RNG.random((8, 8)) * 0.1)
    return tmp_path / "matrix.npy"


def test_each_format_holds_the_result_or_refuses_it(infer: Infer, matrix: Path, tmp_path: Path) -> None:
    y = Session(infer.model, "cpu")(np.load(matrix))
    for form in ("npz", "csv", "png", "json"):
        assert infer(matrix, "-o", tmp_path / f"y.{form}").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["y"], y)
    np.testing.assert_array_equal(read_input(str(tmp_path / "y.csv")).arrays[None], y)
    np.testing.assert_array_equal(np.float32(json.loads((tmp_path / "y.json").read_text())), y)
    image = Image.open(tmp_path / "y.png")
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image) / 255, y, atol=0.5 / 255 + 1e-6)
    target = str(tmp_path / "z.png")
    write_arrays(target, {None: np.float32([[[-1, 0.5, 2]]])}, "png")
    assert Image.open(target).getpixel((0, 0)) == (0, 128, 255)
    np.savez(tmp_path / "two.npz", a=np.eye(8), b=np.zeros((2, 8, 8, 1)))
    assert infer(tmp_path / "two.npz", "-o", tmp_path / "two.json").code == 0
    assert set(json.loads((tmp_path / "two.json").read_text())) == {"a", "b"}
    for arrays, form, message in (
        ({"a": y, "b": y}, "npy", "npy .* 2;"),
        ({None: y[None, ..., None]}, "csv", r"\(1, 8, 8, 1\)"),
        ({None: y[..., None, None]}, "png", r"\(8, 8, 1, 1\)"),
        ({None: y * np.nan}, "json", "NaN .* json"),
        ({None: y * np.nan}, "png", "NaN .* png"),
    ):
        with pytest.raises(InputError, match=message):
            write_arrays(str(tmp_path / "bad"), arrays, form)
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.glob(".*"))


METADATA = {
    "grey": Metadata("0", None, "scan", "N H W C", 1, 1),
    "colour": Metadata("0", None, "scan", "N H W C", 3, 1),
    "channels first": Metadata("0", None, "scan", "N C H W", 3, 1),
    "resized": Metadata(
        "0", None, "scan", "N H W C", 1, 1, preprocessing={"channels": 1, "resize": [3, 4]}
    ),
}
SHAPES = {"grey": (5, 8), "colour": (5, 8, 3), "channels first": (3, 5, 8), "resized": (3, 4)}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
def test_an_image_becomes_the_array_that_the_model_takes(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 5), "red")
    if mode in ("I;16", "F"):
        dtype, value = (np.uint16, 65535) if mode == "I;16" else (np.float32, 7.5)
        image = Image.fromarray(np.full((5, 8), value, dtype))
    else:
        image = image.convert(mode)
    level = {"1": 0.0, "L": 76 / 255, "LA": 76 / 255, "I;16": 1.0, "F": 7.5}.get(mode)
    path = tmp_path / ("x.tif" if mode == "F" else "x.png")
    image.save(path)
    for name, metadata in METADATA.items():
        x = load_image(path, metadata)
        assert (x.dtype, x.shape) == (np.float32, SHAPES[name])
        colour = x if name != "channels first" else np.moveaxis(x, 0, -1)
        expected = (level or [1, 0, 0]) if colour.ndim == 3 else level or 76 / 255
        if mode == "1":  # Pillow dithers: about three of ten pixels are white
            assert set(np.unique(x)) <= {0, 1} or name == "resized"
        else:
            np.testing.assert_allclose(colour, np.broadcast_to(expected, colour.shape), atol=1e-6)
        np.testing.assert_array_equal(read_input(str(path)).arrays_for(metadata)[None], x)


def test_models_that_take_no_images_say_so(tmp_path: Path) -> None:
    Image.new("L", (8, 5)).save(tmp_path / "x.png")
    for metadata, message in (
        (Metadata("0", None, "scan", "N H W C", 2, 1), "takes 2"),
        (Metadata("0", None, "scan", "N L C", 1, 1, window=(1,)), "1 axes"),
    ):
        with pytest.raises(InputError, match=message):
            load_image(tmp_path / "x.png", metadata)


def test_large_images_and_csv_tables(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match=r"200x300 .* 900000;"):
        read_input(str(tmp_path / "big.png"), max_bytes=900_000)
    (tmp_path / "x.csv").write_bytes("\ufeff1, 2.5e-1\r\n-3,4\r\n\r\n".encode())
    np.testing.assert_array_equal(read_input(str(tmp_path / "x.csv")).arrays[None], [[1, 0.25], [-3, 4]])


def test_max_bytes_may_exceed_the_limit_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".tif", ".png", ".webp"):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        Image.new("RGB", (300, 200)).save(tmp_path / f"big{suffix}")
        assert read_input(str(tmp_path / f"big{suffix}")).arrays[None].shape == (200, 300, 3)


def saved(suffix: str, path: Path) -> Path:
    """A file of a type that `infer` reads."""
    if suffix == ".npy":
        np.save(path, np.eye(3))
    elif suffix == ".npz":
        np.savez(path, a=np.eye(3), b=np.zeros((2, 3)))
    elif suffix == ".csv":
        path.write_text(" -1,.5,1e3\n")
    else:
        Image.new("L" if suffix == ".pgm" else "RGB", (4, 3)).save(path)
    return path


@pytest.mark.parametrize("suffix", READABLE)
def test_standard_input_and_files_without_suffix_are_read_by_their_content(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(suffix, tmp_path / f"x{suffix}")
    expected = read_input(str(path))
    path.rename(tmp_path / "x")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe((tmp_path / "x").read_bytes())))
    for source in ("-", str(tmp_path / "x")):
        found = read_input(source)
        assert (found.is_image, list(found.arrays)) == (expected.is_image, list(expected.arrays))
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array, strict=True)


class Pipe(io.BytesIO):
    """A stream that cannot be sought."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs POSIX pipes")
def test_an_array_on_standard_input_is_read_before_the_stream_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, saved(".npy", tmp_path / "x.npy").read_bytes())  # and the pipe stays open
    np.testing.assert_array_equal(read_input(f"/dev/fd/{reading}").arrays[None], np.eye(3))
    os.close(writing)
    os.close(reading)


def test_shell_completion_and_help_name_every_type() -> None:
    assert set(INPUTS) == {*READABLE, ".zarr"}  # only tiled models read zarr


def test_a_file_to_train_on_is_read_as_its_samples(tmp_path: Path) -> None:
    x, texts = RNG.random((3, 4, 5)), np.array(["a", "bc", "d"])
    path = tmp_path / "train.npz"
    np.savez(path, x=x, y=texts)
    (samples,) = read_input(str(path)).arrays.values()
    np.testing.assert_array_equal(samples, x.astype(np.float32)[..., None], strict=True)
    np.savez(path, x=x, y=texts, sizes=[[4, 5], [2, 1], [1, 3]])
    arrays = read_input(str(path)).arrays
    assert {name: a.shape for name, a in arrays.items()} == {
        "x[0]": (4, 5, 1),
        "x[1]": (2, 1, 1),
        "x[2]": (1, 3, 1),
    }
    np.testing.assert_array_equal(arrays["x[2]"][..., 0], x[2, :1, :3].astype(np.float32))
    for sizes in ([[4, 5]], [[4, 6]] * 3, [[0, 1]] * 3):
        np.savez(path, x=x, y=texts, sizes=sizes)
        with pytest.raises(InputError, match="sizes"):
            read_input(str(path))
    np.savez(path, x=x, y=x, z=x)  # another file: all arrays are inputs
    assert set(read_input(str(path)).arrays) == {"x", "y", "z"}
