"""Arrays for a model: where the axes of a layout are, what fits a model, padding and cropping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdlstm_tk.data.task import collate
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import decode, save_array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.runner import TensorType
from mdlstm_tk.runtime.shapes import Shapes

FREE = Metadata("1.0", None, "scan", "N H W C", channels=3, outputs=4, window=(1, 1))
FIXED = replace(FREE, grid=(8, 8), channels=1)
RECOGNISER = replace(FREE, window=None, kind="transcribe", classes=("a", "b", "c"), channels=1)


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("metadata", "x", "message"),
    [
        (FIXED, zeros(8), r"\(8,\), expected \(H, W\), \(H, W, C\) or \(N, H, W, C\) with .* = \(8, 8\)$"),
        (FIXED, zeros(1, 1, 8, 8, 1), "expected"),
        (FIXED, zeros(5, 7), "5x7 .* 8x8"),
        (FIXED, np.full((8, 8), np.nan), "64 NaN or infinite"),
        (FIXED, np.array([["a"]]), "expected real numbers"),
        (FIXED, np.ma.masked_equal(zeros(8, 8), 0), r"x has masked values; .* x\.filled\(0\)"),
        (FIXED, np.broadcast_to(np.float32(0), (2**40, 8, 8, 1)), r"more than 1073741824; .*max_bytes="),
        (FREE, zeros(0, 4, 4, 3), r"empty: its shape is \(0, 4, 4, 3\)"),
        (replace(FREE, min_grid=(4, 1)), zeros(3, 6, 3), "3x6 .* at least 4x1; pad or resize it$"),
        (
            replace(FIXED, preprocessing={"channels": 1, "resize": [8, None]}),
            zeros(5, 7),
            "5x7 .* model; resize it to 8x., as images are",
        ),
        (
            replace(FIXED, preprocessing={"channels": 1, "resize": [8, None]}),
            zeros(8, 9),
            r"8x9 .* model; make one with: .*grid=\(8, 9\)",
        ),
        (replace(FREE, multiple_of=(4, 2)), zeros(5, 6, 3), "5x6 .* multiples of 4x2; .* to 8x6$"),
        (FREE, zeros(2, 3, 5, 6), r"np\.moveaxis\(x, -3, -1\)$"),
        (FREE, zeros(5, 6), r"1 channel at each position, expected 3: [^;]*$"),
        (FREE, zeros(2, 5, 6), r"6 channels at each position, expected 3: [^;]*$"),
        (replace(FREE, channels=1), zeros(2, 5, 6), r"give x\[\.\.\., None\]$"),
        (replace(FREE, channels=1), zeros(2, 5, 6, 2), r"2 channels at each position, expected 1: [^;]*$"),
        (replace(FREE, layout="N C H W"), zeros(2, 5, 6, 3), r"np\.moveaxis\(x, -1, -3\)$"),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_an_array_that_does_not_fit_is_refused(
    metadata: Metadata, x: np.ndarray[Any, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Shapes(metadata).prepare(x)


@pytest.mark.parametrize("of", ["metadata", "graph"])
def test_numbers_beyond_float16_are_refused(of: str) -> None:
    metadata = replace(FIXED, dtype="float16") if of == "metadata" else FIXED
    inputs = {"x": TensorType("float16", (None, 8, 8, 1))} if of == "graph" else None
    with pytest.raises(InputError, match="up to 65505, which this model, in float16, cannot hold"):
        Shapes(metadata, inputs).prepare(np.full((8, 8), -65505.0))


def test_samples_of_different_grids_are_padded_within_the_bound() -> None:
    parts = [zeros(3, 3, 5, 3) + 1, zeros(1, 4, 2, 3) + 2]
    nbytes = 4 * 5 * 3 * 4  # of one sample
    batch, sizes = Shapes(FREE, max_bytes=nbytes).pad(parts)
    assert sizes.tolist() == [[3, 5], [3, 5], [3, 5], [4, 2]]
    expected = zeros(4, 4, 5, 3)
    expected[:3, :3] = 1
    expected[3, :, :2] = 2
    np.testing.assert_array_equal(batch, expected)
    with pytest.raises(InputError, match=rf"{nbytes} bytes .* {nbytes - 1};"):
        Shapes(FREE, max_bytes=nbytes - 1).pad(parts)
    Shapes(FREE, max_bytes=nbytes).prepare(batch[0])
    with pytest.raises(InputError, match=f"more than {nbytes - 1};"):
        Shapes(FREE, max_bytes=nbytes - 1).prepare(batch[0])


def test_the_steps_of_a_recogniser_are_cropped_as_its_columns() -> None:
    y = np.arange(2 * 10 * 4).reshape(2, 10, 4)  # ten steps of 40 columns
    cropped = Shapes(RECOGNISER).crop({"y": y}, (64, 17), (64, 40))
    np.testing.assert_array_equal(cropped["y"], y[:, :5])
    known = Shapes(replace(RECOGNISER, columns_per_step=8)).crop({"y": y[:, :5]}, (64, 15), (64, 33))
    np.testing.assert_array_equal(known["y"], y[:, :2])


def test_a_network_without_an_axis_of_channels_gets_one_where_it_is_missing() -> None:
    shapes = Shapes(replace(FREE, channels=1, channel_axis=False))
    for shape in ((5, 6), (2, 5, 6), (2, 5, 6, 1)):
        batch = shapes.prepare(zeros(*shape))
        assert batch.samples.shape == ((2, 5, 6, 1) if shape[0] == 2 else (1, 5, 6, 1))
        assert batch.has_batch_axis == (shape[0] == 2)


def test_the_free_extents_of_a_further_input_are_those_of_x() -> None:
    metadata = replace(FREE, grid=(4, None), inputs=("x", "mask"), channels=1)
    shapes = Shapes(metadata, {"mask": TensorType("float32", (None, 4, None, 2))})
    batch = shapes.prepare(zeros(3, 4, 6, 1))
    assert shapes.prepare_extra_inputs({"mask": zeros(3, 4, 6, 2)}, batch)["mask"].shape == (3, 4, 6, 2)
    with pytest.raises(InputError, match=r"mask must have the shape \(N, 4, 6, 2\), got \(3, 4, 5, 2\)"):
        shapes.prepare_extra_inputs({"mask": zeros(3, 4, 5, 2)}, batch)


@pytest.mark.parametrize("value", [2**40, -(2**31) - 1, 1e30])
def test_integers_that_the_model_cannot_hold_are_refused(value: float) -> None:
    shapes = Shapes(replace(FREE, channels=1), {"x": TensorType("int32", (None,) * 4)})
    assert shapes.prepare(np.full((2, 2), 2**31 - 1)).samples.max() == 2**31 - 1
    with pytest.raises(InputError, match=r"x holds values from .* takes int32"):
        shapes.prepare(np.full((2, 2), value))


@pytest.mark.parametrize("value", [0, 9])
def test_valid_extents_lie_within_the_grid(value: int) -> None:
    shapes = Shapes(replace(FIXED, inputs=("x", "sizes"), multiple_of=(1, 2)))
    x = zeros(2, 8, 8, 1)
    sizes = np.array([[1, 2], [8, 8]])
    np.testing.assert_array_equal(shapes.prepare(x, sizes=sizes).sizes, sizes)
    with pytest.raises(InputError, match=r"must be integers of shape \(N, D\) = \(2, 2\)"):
        shapes.prepare(x, sizes=sizes[:1])
    with pytest.raises(InputError, match=r"multiples of \(1, 2\)"):
        shapes.prepare(x, sizes=sizes - [0, 1])
    half_free = replace(FIXED, inputs=("x", "sizes"), grid=(None, 8), min_grid=(2, 8))
    with pytest.raises(InputError, match=r"at least 2x1"):
        Shapes(half_free).prepare(x, sizes=sizes)
    small = np.array([[2, 1], [8, 8]])
    np.testing.assert_array_equal(Shapes(half_free).prepare(x, sizes=small).sizes, small)
    sizes[1, 0] = value
    with pytest.raises(InputError, match="must lie between 1 and the extents of the grid"):
        shapes.prepare(x, sizes=sizes)


@pytest.mark.parametrize("layout", ["N H W C", "N C H W"])
def test_values_outside_the_valid_extents_may_be_anything(layout: str) -> None:
    shapes = Shapes(replace(FREE, inputs=("x", "sizes"), layout=layout, channels=1))
    sizes, full = np.array([[2, 3], [4, 5]]), np.ones((2, 4, 5, 1), np.float32)
    full[0, 2:], full[0, :, 3:] = np.nan, np.inf
    x = full if layout.endswith("C") else full.reshape(2, 1, 4, 5)
    samples = shapes.prepare(x, sizes=sizes).samples
    np.testing.assert_array_equal(samples, np.where(np.isfinite(x), x, 0))
    assert np.isnan(x).any()  # the user's array is unchanged
    with pytest.raises(InputError, match="NaN or infinite"):
        shapes.prepare(x, sizes=sizes + np.array([[0, 1], [0, 0]]))


def test_features_are_behind_the_batch_or_last() -> None:
    for layout, axis in (("N C H W", 1), ("N H W C", -1)):
        shapes = Shapes(replace(FREE, layout=layout))
        assert shapes.feature_axis(zeros(2, 3, 5, 6)) == axis
        assert shapes.feature_axis(zeros(2, 4)) == -1  # an output without a grid


MASKED = np.ma.masked_array(np.ones((8, 8)), mask=np.eye(8))


@pytest.mark.parametrize(
    "take",
    [
        lambda y, path: Shapes(FIXED).prepare(y),
        lambda y, path: Shapes(FIXED).prepare([y, y]),
        lambda y, path: decode(y, RECOGNISER),
        lambda y, path: save_array(path, y),
        lambda y, path: collate("density", [(y[..., None], None)]),
    ],
)
def test_masked_entries_are_refused_wherever_arrays_are_taken(take: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has masked values; .*\.filled"):
        take(MASKED, tmp_path / "y.npy")
    assert not list(tmp_path.iterdir())
