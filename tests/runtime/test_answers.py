"""Answers of every kind, from the outputs of networks, and tables of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_models import CLASSES, density, recogniser

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.runtime.answers import Table

Y = np.float32([[2, 1, 0], [0, 1, 3]])


def metadata(**fields: Any) -> Metadata:
    plain: dict[str, Any] = {"version": "2", "form": "scan", "layout": "N H W C", "channels": 1}
    return Metadata(**{**plain, "window": None, "outputs": 3, "classes": CLASSES, **fields})


def softmax(y: Any) -> Any:
    return np.exp(y) / np.exp(y).sum(-1, keepdims=True)


def test_a_classifier_gives_labels() -> None:
    m = metadata(kind="classify")
    p = softmax(Y.astype(np.float64))
    first, second = decode(Y, m)
    assert first == {"label": "cat", "probability": pytest.approx(p[0, 0], abs=1e-6)}
    assert second["label"] == "<b>"
    assert decode(Y[1], m) == [second]  # without a batch axis
    top = decode(Y, m, top=2)[1]
    assert top == {**second, "label_2": "dög", "probability_2": pytest.approx(p[1, 1], abs=1e-6)}
    everything = decode(Y, m, probabilities=True)[0]
    assert [*everything] == ["label", "probability", *(f"probability_{name}" for name in CLASSES)]
    assert decode(np.zeros((1, 3)), m)[0]["label"] == "cat"  # of equal ones the first
    assert len(decode(Y, m, top=9)[0]) == 6
    far = decode(np.float32([[50, 200, 60]]), m, top=3)[0]  # whose probabilities are equal in float32
    assert [far[name] for name in ("label", "label_2", "label_3")] == ["dög", "<b>", "cat"]
    with pytest.raises(InputError, match="--top"):  # as a class may be called 2
        decode(Y, m, top=2, probabilities=True)
    assert decode(Y + 1000, m) == decode(Y, m)  # without overflow


def test_tags_are_those_above_the_threshold() -> None:
    y = np.float32([[-2, 0.1, 3]])
    assert decode(y, metadata(kind="tag", more={"threshold": 0.5})) == [{"labels": "dög;<b>"}]
    assert decode(y, metadata(kind="tag", more={"threshold": 0.9})) == [{"labels": "<b>"}]
    assert decode(y - 1000, metadata(kind="tag")) == [{"labels": ""}]  # without overflow
    assert decode(np.float32([[2, -np.inf, -2]]), metadata(kind="tag")) == [{"labels": "cat"}]
    row = decode(y, metadata(kind="tag", more={"threshold": 0.05}), probabilities=True)[0]
    assert row["labels"] == "cat;dög;<b>"
    assert row["probability_dög"] == pytest.approx(1 / (1 + np.exp(-0.1)), abs=1e-6)


def test_numbers_have_the_names_of_their_columns() -> None:
    row = {"cat": 0.1, "dög": -2.0, "<b>": 1e9}
    assert decode(np.float32([[*row.values()]]), metadata(kind="regress")) == [row]
    for kind in (None, "nobody's", "grid"):
        np.testing.assert_array_equal(decode(Y, metadata(kind=kind)), Y)
    several = metadata(output_names=("y", "z"), further_windows=(None,))
    np.testing.assert_array_equal(decode({"y": Y, "z": Y + 1}, several), Y)


@pytest.mark.parametrize("layout", ["N H W C", "N C H W"])
def test_a_mask_has_the_values_of_training(layout: str) -> None:
    axis = -1 if layout == "N H W C" else 1
    classes = np.array([[[0, 2], [1, 1]]])
    y = np.moveaxis(np.eye(3, dtype=np.float32)[classes], -1, axis)
    dtypes = {(0, 7, 9): "u1", (0, 7, 900): "u2", (-1, 0, 5): "i1", (-1, 0, 200): "i2", None: "u1"}
    for values, dtype in dtypes.items():
        m = metadata(kind="segment", layout=layout, window=(1, 1), mask_values=values)
        mask = decode(y, m)
        np.testing.assert_array_equal(mask, np.asarray(values or range(3))[classes])
        assert mask.dtype == dtype
        np.testing.assert_array_equal(decode(y[0], m), mask[0])
    p = decode(y, m, probabilities=True)
    np.testing.assert_allclose(p.sum(axis), 1, rtol=1e-6)
    assert p.shape == y.shape


def test_a_density_sums_over_valid_positions(tmp_path: Path) -> None:
    session = Session(density(tmp_path / "m.onnx"), "cpu")
    x = np.float32([[[0.5], [1]], [[0], [0.25]]])
    for y in (session(x), session(x[..., 0])):
        assert decode(y, session.metadata) == [
            {"nats": 3.5, "bits_per_dim": pytest.approx(3.5 / np.log(2) / 4, abs=1e-4)}
        ]
    padded = metadata(kind="density", outputs=1, classes=None, window=(1, 1), inputs=("x", "sizes"))
    with pytest.raises(InputError, match="sizes"):
        decode(-x[None], padded)
    assert decode(-x[None], padded, sizes=[[1, 2]])[0]["nats"] == 1.5


def test_a_text_has_confidences_and_places_in_the_image(tmp_path: Path) -> None:
    session = Session(recogniser(tmp_path / "m.onnx"), "cpu")
    x = np.full((4, 6), 9, np.float32)
    x[:, 2:4] = -9  # black columns are the letter b
    row = decode(session(x), session.metadata, widths=(6, 60))[0]
    assert row["text"] == "b" and 0.9 < row["confidence"] <= 1
    (character,) = row["characters"]
    assert 15 <= character["left"] <= 20 <= character["right"] <= 45
    assert decode(session(x), session.metadata, beam=4)[0]["text"] == "b"


@pytest.mark.parametrize(
    ("fields", "y", "options", "word"),
    [
        ({"kind": "classify"}, Y * np.nan, {}, "diverged"),
        ({"kind": "tag"}, Y + np.inf, {}, "diverged"),
        ({"kind": "regress"}, Y * np.nan, {}, "diverged"),
        ({"kind": "density", "outputs": 1, "classes": None}, Y * np.nan, {}, "diverged"),
        ({"kind": "classify"}, Y, {"beam": 3}, "beam"),
        ({"kind": "regress"}, Y, {"probabilities": True}, "probabilities"),
        ({"kind": "segment"}, Y, {"top": 1}, "top"),
        ({"kind": None}, Y, {"top": 1}, "top"),
        ({"kind": "baselines"}, np.zeros((1, 2, 2, 3)), {}, "mdlstm read"),
    ],
)
def test_what_gives_no_answer_is_refused(fields: dict[str, Any], y: Any, options: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        decode(y, metadata(**fields), **options)


def test_an_output_of_another_shape_is_an_error() -> None:
    for y in (Y[:, :2], Y[None, None], np.zeros((3, 4, 5, 3))):
        with pytest.raises(MDLSTMError, match="shape"):
            decode(y, metadata(kind="classify"))


ROWS = [
    {"file": "a\tb", "label": "\x1b[2J", "p": 0.5, "more": [1]},
    {"file": 'c,"d"', "label": "é\n", "p": 1e-7, "more": []},
]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("form", ["tsv", "csv", "json"])
def test_tables_are_read_again_and_hold_no_controls(form: str, count: int) -> None:
    buffer = io.BytesIO()
    table = Table(buffer, form)
    for row in ROWS[:count]:
        table.add([row])
    table.add([])
    table.end()
    text = buffer.getvalue().decode()
    if form == "json":
        assert json.loads(text) == ROWS[:count]
        return
    assert "\x1b" not in text and text.count("\n") == (count + 1 if form == "csv" and count else count)
    if form == "csv":
        heading, *values = [*csv.reader(io.StringIO(text))] or [["file", "label", "p"]]
        assert heading == ["file", "label", "p"]
    else:
        values = [line.split("\t") for line in text.splitlines()]
    assert [row[2] for row in values] == [str(row["p"]) for row in ROWS[:count]]
