"""The file formats that `mdlstm infer` reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.infer import Infer
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.io.readers import read_arrays
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
    np.testing.assert_array_equal(read_arrays(str(tmp_path / "y.csv"))[None], y)
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


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("L", (5, 8)),
        ("RGB", (5, 8, 3)),
        ("RGBA", (5, 8, 4)),
        ("LA", (5, 8, 2)),
        ("I;16", (5, 8)),
        ("1", (5, 8)),
        ("P", (5, 8, 3)),
    ],
)
def test_images_are_read_as_they_are_stored(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    image = Image.new("L", (8, 5))
    image.putpixel((2, 1), 255)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image = image.convert(mode) if mode != "I;16" else image
    image.save(tmp_path / "x.png")
    (x,) = read_arrays(str(tmp_path / "x.png")).values()
    assert x.shape == shape
    assert x.dtype == np.float32
    grey = x if x.ndim == 2 else x[..., 0]
    assert grey[1, 2] == 1
    assert grey.sum() == 1


def test_jpeg_images_and_csv_tables(tmp_path: Path) -> None:
    Image.new("RGB", (7, 1), (255, 0, 0)).save(tmp_path / "x.jpeg")
    (x,) = read_arrays(str(tmp_path / "x.jpeg")).values()
    np.testing.assert_allclose(x, np.tile([1.0, 0, 0], (1, 7, 1)), atol=0.02)
    Image.new("L", (300, 200)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match=r"300x200 .* 900000 bytes"):
        read_arrays(str(tmp_path / "big.png"), max_bytes=900_000)
    (tmp_path / "x.csv").write_bytes("\ufeff1, 2.5e-1\r\n-3,4\r\n\r\n".encode())
    np.testing.assert_array_equal(read_arrays(str(tmp_path / "x.csv"))[None], [[1, 0.25], [-3, 4]])
