"""`write_results`: the formats of numbers, masks, labels and texts."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Metadata, decode, save_array
from mdlstm_tk.runtime.batching import write_results
from mdlstm_tk.runtime.io import FORMATS, Format
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.io.writers import write_arrays
from mdlstm_tk.runtime.jobs import InputPath, ResultOptions, plan_jobs
from mdlstm_tk.runtime.postprocessing import probabilities
from mdlstm_tk.text.ctc import best_path

GRID = Metadata("0", None, "scan", "N H W C", 1, 1)
CLASSIFIER = replace(GRID, outputs=3, window=None, kind="classify", classes=("a", "b", "c"))
RECOGNISER = replace(GRID, outputs=3, window=None, kind="transcribe", classes=("a", "b"))
SEGMENTER = replace(GRID, outputs=3, kind="segment", classes=("a", "b", "c"))
RNG = np.random.default_rng(0)


def write(path: Path, y: Any, metadata: Metadata = GRID, **options: Any) -> Path:
    """Write one array in the format of the suffix."""
    files, chosen = [InputPath("x.npy", "x.npy")], ResultOptions(**options)
    (job,) = plan_jobs(files, metadata, str(path), options=chosen, is_single=True)
    write_results(job, {None: y}, metadata, chosen)
    return path


def test_each_format_holds_the_numbers(tmp_path: Path) -> None:
    y = RNG.random((8, 5), dtype=np.float32)
    np.testing.assert_array_equal(np.load(write(tmp_path / "y.npz", y))["y"], y, strict=True)
    np.testing.assert_array_equal(np.load(write(tmp_path / "y.npy", y)), y, strict=True)
    np.testing.assert_array_equal(np.float32(read_input(str(write(tmp_path / "y.csv", y))).arrays[None]), y)
    np.testing.assert_array_equal(np.float32(json.loads(write(tmp_path / "y.json", y).read_text())), y)
    with Image.open(write(tmp_path / "y.png", y)) as image:
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image) / 255, y, atol=0.5 / 255 + 1e-6)
    with pytest.warns(UserWarning, match="from -1 to 2, and were cut"):
        path = write(tmp_path / "z.png", np.float32([[[-1, 0.5, 2]]]))
    with Image.open(path) as image:
        assert image.getpixel((0, 0)) == (0, 128, 255)
    arrays = {
        "file": y,
        "v": np.zeros((2, 8, 8, 1)),
        "u": y,
    }  # numpy.savez fails for an array called "file"
    for suffix in ("npz", "json"):
        write_arrays(str(tmp_path / f"two.{suffix}"), dict(arrays), suffix)  # type: ignore[arg-type]
    assert list(np.load(tmp_path / "two.npz")) == list(arrays)
    assert list(json.loads((tmp_path / "two.json").read_text())) == list(arrays)
    first = write(tmp_path / "again.npz", y).read_bytes()
    assert write(tmp_path / "again.npz", y).read_bytes() == first


@pytest.mark.parametrize(
    ("arrays", "file_format", "message"),
    [
        ({"a": np.eye(2), "b": np.eye(2)}, "npy", 'npy .* 2; give output_format="npz"'),
        ({None: np.zeros((1, 8, 8, 1))}, "csv", r"\(1, 8, 8, 1\)"),
        ({None: np.zeros((8, 8, 1, 1))}, "png", r"\(8, 8, 1, 1\)"),
        ({None: np.full((2, 2), np.nan)}, "json", "NaN .* json"),
        ({None: np.full((2, 2), np.nan)}, "png", "NaN .* png"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    arrays: Any, file_format: Format, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_arrays(str(tmp_path / "y"), arrays, file_format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "value", "message"),
    [
        *(
            (suffix, value, "1 NaN or infinite value;")
            for suffix in ("npy", "npz", "csv")
            for value in (np.nan, np.inf)
        ),
        (
            "png",
            2,
            r"y.png holds values in \[0, 1\], but those of the result are from 0 to 2, and were cut",
        ),
        ("png", -0.01, "from -0.01 to 0, and were cut"),
    ],
)
def test_numbers_that_a_file_should_not_hold_are_said_once(
    suffix: str, value: float, message: str, tmp_path: Path
) -> None:
    y = np.zeros((3, 4), np.float32)
    y[1, 2] = value
    with pytest.warns(UserWarning, match=message) as warned:
        write(tmp_path / f"y.{suffix}", y)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / f"y.{suffix}", np.float32([[0, 1.0009], [-0.0009, 0.5]]))


@pytest.mark.parametrize("dtype", [object, "U6", [("a", "f4")], "datetime64[s]", complex], ids=str)
def test_what_is_no_number_is_never_written(dtype: Any, tmp_path: Path) -> None:
    array = np.zeros((1, 1), dtype)
    for file_format in FORMATS:
        with pytest.raises(InputError):
            write_arrays(str(tmp_path / "y"), {None: array}, file_format)
    with pytest.raises(InputError, match="real numbers"):
        save_array(tmp_path / "y.npy", array)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["N H W C", "N C H W"])
@pytest.mark.parametrize(
    ("values", "palette", "mode"),
    [
        (None, None, "L"),
        ((0, 7, 9), None, "L"),
        ((0, 128, 255), (0, 0, 0, 255, 0, 0, 9, 8, 7), "P"),
        ((1, 299, 65535), None, "I;16"),
    ],
    ids=["indices", "grey", "palette", "16 bits"],
)
def test_masks_have_the_values_and_the_palette_of_the_training_masks(
    values: tuple[int, ...] | None, palette: tuple[int, ...] | None, mode: str, layout: str, tmp_path: Path
) -> None:
    metadata = replace(SEGMENTER, layout=layout, mask_values=values, mask_palette=palette)
    logits = RNG.standard_normal((9, 3, 3)).astype(np.float32)  # a width of 3 is not taken for colours
    expected = np.array(values or (0, 1, 2))[logits.argmax(-1)]
    y = logits if metadata.channels_last else np.moveaxis(logits, -1, 0)
    with Image.open(write(tmp_path / "y.png", y, metadata)) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), expected)
        if values and palette:
            colours = dict(zip(values, np.reshape(palette, (3, 3)).tolist(), strict=True))
            assert list(image.convert("RGB").getpixel((0, 0))) == colours[expected[0, 0]]
    table = write(tmp_path / "y.csv", y, metadata)
    np.testing.assert_array_equal(np.loadtxt(table, delimiter=","), expected)
    write(tmp_path / "p.npy", y, metadata, probabilities=True)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy").sum(2 if layout[-1] == "C" else 0), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ((0, 1, 70000), (9, 3, 3)),
        ((-1, 0, 1), (9, 3, 3)),
        ((-1, 0, 2**62 + 1), (9, 3, 3)),
        ((0, 1, 2), (2, 9, 3, 3)),
    ],
)
def test_masks_that_png_cannot_hold_go_to_json(
    values: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    metadata = replace(SEGMENTER, mask_values=values)
    y = RNG.standard_normal(shape)
    with pytest.raises(InputError, match='output_format="json"'):
        write(tmp_path / "y.png", y, metadata)
    written = json.loads(write(tmp_path / "y.json", y, metadata).read_text())
    assert written == np.array(values)[y.argmax(-1)].tolist()


@pytest.mark.parametrize(
    ("metadata", "shapes"),
    [
        (CLASSIFIER, [(2, 4), (2, 2), (), (1, 1, 3), (0, 3), (3, 0), (2, 2, 2, 3)]),
        (RECOGNISER, [(2, 5, 4), (2, 5, 2), (3,), (), (0, 5, 3), (2, 0, 3), (2, 2, 2, 3)]),
        (SEGMENTER, [(2, 4, 5, 4), (3,), (), (2, 3), (2, 0, 5, 3), (1, 1, 1, 1, 3)]),
    ],
    ids=["classify", "transcribe", "segment"],
)
def test_other_shapes_than_the_metadata_promise_are_one_error(
    metadata: Metadata, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    for shape in shapes:
        with pytest.raises(MDLSTMError, match="shape"):
            decode(np.zeros(shape, np.float32), metadata)
        with pytest.raises(MDLSTMError, match="shape"):
            write(tmp_path / "y.json", np.zeros(shape, np.float32), metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_classes_of_any_numbers(dtype: type) -> None:
    y = np.array([[0, 1, 0], [1, 0, 0]], dtype)
    assert [answer.text for answer in decode(y, CLASSIFIER)] == ["b", "a"]
    np.testing.assert_allclose(probabilities(y).sum(-1), 1, rtol=1e-2)
    assert [answer.text for answer in decode(y[:, None], RECOGNISER)] == ["a", ""]


@pytest.mark.parametrize("metadata", [CLASSIFIER, RECOGNISER, SEGMENTER], ids=lambda each: each.kind)
@pytest.mark.parametrize("scores", [[np.nan, 1, 0], [0, np.inf, 0], [-np.inf] * 3], ids=str)
def test_scores_that_tell_no_class_are_refused(scores: Any, metadata: Metadata, tmp_path: Path) -> None:
    shape = {"classify": (2, 3), "transcribe": (2, 5, 3)}.get(str(metadata.kind), (4, 5, 3))
    y = np.zeros(shape, np.float32)
    y[(*(-1 for _ in shape[:-1]), ...)] = scores
    with pytest.raises(InputError, match="the model diverged"):
        write(tmp_path / "y.json", y, metadata)
    if metadata.kind != "transcribe":
        with pytest.raises(InputError, match="the model diverged"):
            write(tmp_path / "y.npy", y, metadata, probabilities=True)
    assert not list(tmp_path.iterdir())


def test_the_best_path_joins_repeats_and_drops_blanks() -> None:
    logits = RNG.standard_normal((50, 30, 5)).astype(np.float32)
    for row in logits:
        path = [key for key, _ in groupby(row.argmax(-1).tolist())]
        assert best_path(row).tolist() == [k for k in path if k > 0]


def test_probabilities() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [1000.0, -1000.0, 0.0]], np.float32)
    expected = np.exp([1, 3, 2]) / np.exp([1, 3, 2]).sum()
    np.testing.assert_allclose(probabilities(logits), [expected, [1, 0, 0]], rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.float16, np.float64])
def test_an_image_of_any_numbers(dtype: type, tmp_path: Path) -> None:
    with Image.open(write(tmp_path / "y.png", np.array([[0, 1]], dtype))) as image:
        assert np.asarray(image).tolist() == [[0, 255]]
