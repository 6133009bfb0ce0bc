"""`mdlstm_tk.runtime.io.readers`: the types of files, and the arrays that a model takes for them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata, load_image
from mdlstm_tk.runtime.io import READABLE
from mdlstm_tk.runtime.io.readers import Arrays, read_input

RNG = np.random.default_rng(0)
METADATA = {
    "grey": Metadata("0", None, "scan", "N H W C", 1, 1),
    "colour": Metadata("0", None, "scan", "N H W C", 3, 1),
    "channels first": Metadata("0", None, "scan", "N C H W", 3, 1),
    "resized": Metadata(
        "0", None, "scan", "N H W C", 1, 1, preprocessing={"channels": 1, "resize": [3, 4]}
    ),
}
SHAPES = {"grey": (5, 8), "colour": (5, 8, 3), "channels first": (3, 5, 8), "resized": (3, 4)}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_becomes_the_array_that_the_model_takes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 5), "red").convert(mode).save(path)
    grey, colour = 76 / 255, [1, 0, 0] if mode == "RGB" else [76 / 255] * 3
    for name, metadata in METADATA.items():
        x = load_image(path, metadata)
        assert (x.dtype, x.shape) == (np.float32, SHAPES[name])
        last = np.moveaxis(x, 0, -1) if name == "channels first" else x
        expected = np.broadcast_to(grey if x.ndim == 2 else colour, last.shape)
        np.testing.assert_allclose(last, expected, atol=1e-6)
        np.testing.assert_array_equal(read_input(str(path)).arrays_for(metadata)[None], x)


def test_models_that_take_no_images_say_so(tmp_path: Path) -> None:
    Image.new("L", (8, 5)).save(tmp_path / "x.png")
    for metadata, message in (
        (Metadata("0", None, "scan", "N H W C", 2, 1), "takes 2"),
        (Metadata("0", None, "scan", "N L C", 1, 1, window=(1,)), "1 axis"),
    ):
        with pytest.raises(InputError, match=message):
            load_image(tmp_path / "x.png", metadata)


def test_models_of_other_numbers_take_images_of_floats_alone(tmp_path: Path) -> None:
    metadata = Metadata("0", None, "scan", "N H W C", 1, 1, unit_range=False)
    pixels = np.linspace(300, 400, 20).reshape(4, 5)
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "floats.tif")
    np.testing.assert_allclose(load_image(tmp_path / "floats.tif", metadata), pixels, rtol=1e-6)
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(pixels.astype(dtype)).save(tmp_path / "scaled.png")
        with pytest.raises(InputError, match="trained on others"):
            load_image(tmp_path / "scaled.png", metadata)


def test_a_density_model_takes_levels_from_0_to_1(tmp_path: Path) -> None:
    metadata = Metadata("0", None, "scan", "N H W C", 1, 1, kind="density")
    for value, message in (
        (2.5, "; divide them by the highest"),
        (-1.0, r"from -1 to 0.*\[0, 1\]$"),
    ):
        np.save(tmp_path / "x.npy", [[0, value]])
        with pytest.raises(InputError, match=message):
            read_input(str(tmp_path / "x.npy")).arrays_for(metadata)


@pytest.mark.parametrize("axes", [(), (1,)], ids=["without channels", "with channels"])
def test_a_density_sees_samples_without_padding(axes: tuple[int, ...], tmp_path: Path) -> None:
    """What it pads counts neither among the values nor in their range."""
    x = np.full((1, 9, 9, *axes), 7.0)
    x[0, :4, :3] = 1
    np.savez(tmp_path / "x.npz", x=x, sizes=[[4, 3]])
    metadata = Metadata("0", None, "scan", "N H W C", 1, 1, kind="density", inputs=("x", "sizes"))
    (sample,) = read_input(str(tmp_path / "x.npz")).arrays_for(metadata).values()
    assert sample.shape == (4, 3, 1) and (sample == 1).all()


def test_the_limit_of_pillow_stays_as_the_program_has_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match=r"200x300 .* 959999; allow more with max_bytes=\.\.\."):
        read_input(str(tmp_path / "big.png"), max_bytes=959_999)
    read_input(str(tmp_path / "big.png"), max_bytes=960_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"more than 2000 pixels.*PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_input(str(tmp_path / "big.png"))
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_input(str(tmp_path / "big.png")).arrays[None].shape == (200, 300, 3)


TABLES: dict[str, tuple[bytes, tuple[int, ...] | str]] = {
    "a mark, spaces and empty lines": ("\ufeff1, 2.5e-1\r\n-3,4\r\n\r\n".encode(), (2, 2)),
    "a million columns": (b"1," * 10**6 + b"1", (1, 10**6 + 1)),
    "a number of a million digits": (b"0" * 10**6 + b"1,2", (1, 2)),
    "a word of a million letters": (b"a" * 10**6, "table"),
    "rows that differ": (b"1,2\n" * 1000 + b"1", "row 1001"),
    "a row without numbers": (b"1,2\r\n\r\n3,4\r\n", "no numbers in row 2"),
    "a first row without numbers": (b"\n\n5\n", "no numbers in row 1"),
    "a comment": (b"# 1\n", "table"),
    "nothing": (b"", "is empty"),
    "nothing but a mark": ("\ufeff\n".encode(), "is empty"),
    "bytes that are not UTF-8": (b"1,\xff", "table"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_are_read_or_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, expected = TABLES[case]
    (tmp_path / "x.csv").write_bytes(data)
    if not isinstance(expected, str):
        assert read_input(str(tmp_path / "x.csv")).arrays[None].shape == expected
        return
    with pytest.raises(InputError, match=expected) as error:
        read_input(str(tmp_path / "x.csv"))
    assert len(str(error.value)) < 500


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
    reading, writing = os.pipe()
    os.write(writing, (tmp_path / "x").read_bytes())
    os.close(writing)
    with open(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        files = [read_input(source) for source in ("-", str(tmp_path / "x"))]
    for file in files:
        assert (file.is_image, list(file.arrays)) == (expected.is_image, list(expected.arrays))
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(file.arrays[name], array, strict=True)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs POSIX pipes")
def test_an_array_on_standard_input_is_read_before_the_stream_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, saved(".npy", tmp_path / "x.npy").read_bytes())  # and the pipe stays open
    np.testing.assert_array_equal(read_input(f"/dev/fd/{reading}").arrays[None], np.eye(3))
    os.close(writing)
    os.close(reading)


def test_files_of_other_types_are_refused(tmp_path: Path) -> None:
    for name in ("x.mat", "x.zarr"):
        with pytest.raises(InputError, match=r"unsupported file type '\.(mat|zarr)'"):
            read_input(name)
    images = tmp_path / "t10k-images-idx3-ubyte"
    images.write_bytes(b"\0\0\x08\x03" + bytes(12))
    for name in (str(images), f"{images}.gz", str(tmp_path / "train-images.idx3-ubyte")):
        with pytest.raises(InputError, match=r"is an IDX file, .* no model reads; .*npy"):
            read_input(name)
    with pytest.raises(InputError, match="there is no file"):
        read_input("none.npy")


def arrays_in(path: Path) -> Arrays:
    return read_input(str(path)).arrays_for(METADATA["grey"])


def test_a_file_to_train_on_is_read_as_its_samples(tmp_path: Path) -> None:
    x, texts = RNG.random((3, 4, 5)), np.array(["a", "bc", "d"])
    path = tmp_path / "train.npz"
    np.savez(path, x=x, y=texts)
    (samples,) = arrays_in(path).values()
    np.testing.assert_array_equal(samples, x[..., None], strict=True)
    np.savez(path, x=x, y=np.eye(3), names=texts)
    assert set(arrays_in(path)) == {"x"}
    np.savez(path, x=x, y=texts, sizes=[[4, 5], [2, 1], [1, 3]])
    arrays = arrays_in(path)
    assert {name: a.shape for name, a in arrays.items()} == {
        "x[0]": (4, 5, 1),
        "x[1]": (2, 1, 1),
        "x[2]": (1, 3, 1),
    }
    np.testing.assert_array_equal(arrays["x[2]"][..., 0], x[2, :1, :3])
    no_integers = ([[extent] * 2] * 3 for extent in (np.nan, 2.9, 2.0))
    for sizes in ([[4, 5]], [[4, 6]] * 3, [[0, 1]] * 3, *no_integers, 3):
        np.savez(path, x=x, sizes=sizes, **({} if sizes == 3 else {"y": texts}))
        with pytest.raises(InputError, match="sizes"):
            arrays_in(path)
    np.savez(path, x=x, y=x, z=x)  # another file: all arrays are inputs
    assert set(arrays_in(path)) == {"x", "y", "z"}


def test_answers_at_positions_are_of_the_samples_alone(tmp_path: Path) -> None:
    """With and without y, and for models that take sizes or do not."""
    x, sizes = RNG.random((2, 4, 5)), [[4, 5], [2, 1]]
    segmenter = replace(METADATA["grey"], kind="segment", outputs=2, classes=("a", "b"))
    for y in ({}, {"y": x > 0.5}):
        np.savez(tmp_path / "x.npz", x=x[..., None], sizes=sizes, **y)
        for inputs in (("x",), ("x", "sizes")):
            arrays = read_input(str(tmp_path / "x.npz")).arrays_for(replace(segmenter, inputs=inputs))
            assert [array.shape for array in arrays.values()] == [(4, 5, 1), (2, 1, 1)]


def test_a_model_that_takes_y_gets_it(tmp_path: Path) -> None:
    x, y = RNG.random((2, 3, 4, 5))
    np.savez(tmp_path / "x.npz", x=x, y=y)
    file, metadata = read_input(str(tmp_path / "x.npz")), replace(METADATA["grey"], inputs=("x", "y"))
    assert file.holds_inputs(metadata) and not file.is_to_train_on(metadata)
    for name, array in (("x", x), ("y", y)):
        np.testing.assert_array_equal(file.arrays_for(metadata)[name], array)


def test_a_file_to_train_on_without_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((0, 4, 5)), y=np.zeros(0), sizes=np.zeros((0, 2), int))
    with pytest.raises(InputError, match="no sample"):
        arrays_in(path)
