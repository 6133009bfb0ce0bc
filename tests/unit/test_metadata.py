"""The metadata of a model: every field is checked, by itself, with the others and with the graph."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mdlstm_tk.data import TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.metadata_checks import MAX_BYTES, TensorType, check_agreement

BASE = Metadata("0.3", (8, 6), "unrolled", "N H W C", channels=3, outputs=4)
CLASSIFIER = replace(
    BASE,
    window=None,
    kind="classify",
    classes=("a", "b", "c", "=d"),
    preprocessing={"channels": 3, "resize": [8, 6]},
    checkpoint_sha256="0" * 64,
    parity={"atol": 1e-5, "rtol": 1e-5, "max_abs": 0},
)
SEGMENTER = replace(
    BASE, kind="segment", classes=("0", "1", "2", "3"), mask_values=(0, 7, 9, -1), mask_palette=(0,) * 12
)
RECOGNISER = replace(BASE, window=None, kind="transcribe", classes=("a", " ", "é"))
SEVERAL = replace(
    BASE,
    grid=None,
    form="scan",
    inputs=("x", "sizes", "extra"),
    output_names=("y", "aux"),
    further_windows=(None,),
    multiple_of=(4, 4),
)
VALID = {
    "numbers": BASE,
    "classifier": CLASSIFIER,
    "segmenter": SEGMENTER,
    "recogniser": RECOGNISER,
    "several": SEVERAL,
    "channels first, 3-D": replace(BASE, grid=(1, 2, 3), window=(1, 1, 1), layout="N C D H W"),
    "five axes": replace(BASE, grid=None, window=None, layout="N E1 E2 E3 E4 E5 C"),
}
NOT_TEXT: tuple[Any, ...] = (
    3,
    None,
    "",
    [],
    {},
    True,
    "a\x1b[2J",
    "a\nb",
    "a\tb",
    "\u202ea",
    "\udce9",
    "a" * 20_000,
)
NOT_EXTENTS: tuple[Any, ...] = (
    3,
    "8",
    [],
    [0, 8],
    [-1, 8],
    [8.0, 6],
    [True, 8],
    [2**31, 8],
    [8],
    [8, 6, 4],
    [[8], 6],
    {},
)
WRONG: dict[str, tuple[Any, ...]] = {
    "version": NOT_TEXT,
    "grid": NOT_EXTENTS,
    "form": ("", "loop", 1, None, []),
    "layout": (
        "",
        "3",
        3,
        "N H W",
        "H W C",
        "N C",
        "N H H C",
        "N H W D C",
        None,
        ["N", "H", "W", "C"],
        "N  H W C",
    ),
    "channels": (0, -1, 1.0, True, "1", None, 2**40, [1]),
    "outputs": (0, -1, 4.0, False, None, 2**40),
    "inputs": (
        [],
        "x",
        ["y"],
        ["x", "x"],
        ["x", ""],
        ["x", "a\x1b"],
        ["x", 3],
        ["x", *map(str, range(100))],
        None,
    ),
    "window": NOT_EXTENTS,
    "output_names": ([], "y", ["y", "y"], ["y\n"], [None], None, ["a" * 2000]),
    "further_windows": ([[1, 1]], [None], 3, None, "a"),
    "multiple_of": NOT_EXTENTS,
    "dtype": ("float64", "", None, 4, ["float32"]),
    "model": tuple(value for value in NOT_TEXT if value is not None),
    "task": tuple(value for value in NOT_TEXT if value is not None),
    "kind": ("", "other", 3, [], {}, ["classify"]),
    "classes": (
        [],
        ["a"],
        ["a", "a", "b", "c"],
        ["a", "b", "c", ""],
        ["a", "b", "c", "\x1b"],
        ["a", "b", "c", 3],
        "abcd",
    ),
    "mask_values": ([1], [1, 2, 3, 3], [1, 2, 3, 4.0], [1, 2, 3, 2**40], "abcd", [True, 2, 3, 4]),
    "mask_palette": ([0] * 4, [256] * 12, [-1] * 12, [0.0] * 12, "a", {}),
    "preprocessing": (
        *(3, [], {}, {"channels": 3}, {"channels": 2, "resize": None}, {"channels": True, "resize": None}),
        *(
            {"channels": 3, "resize": [0, 1]},
            {"channels": 3, "resize": [2**20, 2**20]},
            {"channels": 3, "resize": 4},
        ),
        *(
            {"channels": 1, "resize": None},
            {"channels": 3, "resize": None, "more": 1},
            {"channels": 3, "resize": ["a", 1]},
        ),
    ),
    "text_direction": ("", "RTL", "up", 3, ["ltr"]),
    "drawing": (
        *(3, [], {}, {"size": [8, 8], "state": 8}),
        *(
            {"size": [8, 8], "levels": 2, "state": 8, **wrong}
            for wrong in (
                *({"size": [8]}, {"size": [8, 0]}, {"size": [8, 2**20]}, {"state": 0}, {"state": True}),
                *({"levels": 1}, {"levels": 2.0}, {"more": 1}),
                {},  # of a model that draws no rows
            )
        ),
    ),
    "checkpoint_sha256": ("", "0" * 63, "g" * 64, 3, ["0"] * 64, "0" * 65),
    "part": tuple(value for value in NOT_TEXT if value is not None),
    "parity": (
        3,
        [],
        None,
        {"atol": "1"},
        {"atol": True},
        {"atol": float("nan")},
        {"atol": 10**400},
        {"max_abs": -1},
        {"other": 1},
    ),
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


def props(metadata: Metadata, **changes: Any) -> dict[str, str]:
    return metadata.to_props() | {f"mdlstm.{name}": json.dumps(value) for name, value in changes.items()}


@pytest.mark.parametrize("kind", VALID)
def test_valid_metadata_are_read_as_they_were_written(kind: str) -> None:
    VALID[kind].check()
    assert Metadata.from_props(VALID[kind].to_props(), "m.onnx") == replace(
        VALID[kind], preprocessing=VALID[kind].preprocessing
    )


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda part: f"{part!a:.30}")
def test_a_wrong_field_is_named(name: str, value: Any) -> None:
    base = {"classes": CLASSIFIER, "mask_values": SEGMENTER, "mask_palette": SEGMENTER}.get(name, BASE)
    with pytest.raises(
        InputError, match=f"'{name}' of m.onnx.*; expected .*; export the model again"
    ) as error:
        Metadata.from_props(props(base, **{name: value}), "m.onnx")
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_every_field_has_a_rule_and_wrong_values() -> None:
    fields = {key.removeprefix("mdlstm.") for key in BASE.to_props()} - {"schema"}
    assert fields == WRONG.keys()


DRAWING = Metadata(
    version="1",
    grid=None,
    form="scan",
    layout="N T C",
    channels=1,
    outputs=1,
    inputs=("x", "above", "given", "temperature", "state"),
    window=(1,),
    output_names=("y", "logits", "next_state"),
    further_windows=(None, None),
    kind="density",
    drawing={"size": [8, 8], "levels": 2, "state": 16},
)
TOGETHER = {
    "classes": (RECOGNISER, {"classes": ["a", "b", "c", "d"]}),
    "window": (SEGMENTER, {"window": None}),
    "preprocessing": (CLASSIFIER, {"channels": 1}),
    "further_windows": (SEVERAL, {"further_windows": [[1, 2, 3]]}),
    "grid": (BASE, {"layout": "N T C"}),
    "inputs": (DRAWING, {"inputs": ["x"]}),
    "output_names": (DRAWING, {"output_names": ["y", "logits", "z"]}),
    "drawing": (DRAWING, {"kind": "grid"}),
    "outputs": (DRAWING, {"outputs": 2}),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_fields_agree_with_one_another(name: str) -> None:
    base, changes = TOGETHER[name]
    with pytest.raises(InputError, match=f"'{name}'"):
        Metadata.from_props(props(base, **changes), "m.onnx")


def test_classes_are_needed_for_kinds_that_name_them() -> None:
    with pytest.raises(InputError, match="'classes'"):
        Metadata.from_props(props(CLASSIFIER, classes=None), "m.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mdlstm.grid": "{"}, "'grid' of m.onnx is not JSON"),
        ({"mdlstm.parity": "[" * 100_000}, "'parity' of m.onnx is not JSON"),
        ({"mdlstm.channels": "1" * 10_000}, "'channels'"),
        ({"mdlstm.other\x1b": "1"}, r"unknown field 'other\\x1b'"),
        ({"mdlstm.version": json.dumps("a" * MAX_BYTES)}, "characters"),
        *(
            ({"mdlstm.schema": value}, "schema")
            for value in ("3", "[2]", "2.0", "true", '"\\u001b[2J"', "null")
        ),
    ],
)
def test_what_is_no_field_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Metadata.from_props(BASE.to_props() | changes, "m.onnx")
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_missing_fields_are_named() -> None:
    for name in ("version", "grid", "form", "layout", "channels", "outputs"):
        values = BASE.to_props()
        del values[f"mdlstm.{name}"]
        with pytest.raises(InputError, match=f"lack '{name}'"):
            Metadata.from_props(values, "m.onnx")
    with pytest.raises(InputError, match="was not exported"):
        Metadata.from_props({"other": "1"}, "m.onnx")


def test_what_reading_refuses_is_not_written() -> None:
    with pytest.raises(InputError, match=r"'classes' of the export.*change it before"):
        replace(CLASSIFIER, classes=("a", "b", "c", "\x1b")).check()


def test_an_image_to_resize_counts_as_a_sample() -> None:
    assert BASE.sample_bytes == 8 * 6 * 3 * 4
    anything = replace(BASE, grid=None)
    assert anything.sample_bytes == 0
    resized = replace(anything, preprocessing={"channels": 3, "resize": [100, 100]})
    assert resized.sample_bytes == 100 * 100 * 3 * 4


FLOAT, INT = "float32", "int64"
X = {"x": TensorType(FLOAT, (None, 8, 6, 3))}
Y = {"y": TensorType(FLOAT, (None, 8, 6, 4))}
AGREEING = {
    "numbers": (BASE, X, Y),
    "free extents": (BASE, X, {"y": TensorType("float16", (None, None, None, None))}),
    "classifier": (CLASSIFIER, X, {"y": TensorType(FLOAT, (None, 4))}),
    "recogniser": (RECOGNISER, X, {"y": TensorType(FLOAT, (None, None, 4))}),
    "several": (
        SEVERAL,
        {
            "x": TensorType(FLOAT, (None, None, None, 3)),
            "sizes": TensorType(INT, (None, 2)),
            "extra": TensorType(FLOAT, (None, 5)),
        },
        {"aux": TensorType("bool", (None,)), "y": TensorType(FLOAT, (None, None, None, 4))},
    ),
    "channels first": (
        replace(BASE, layout="N C H W"),
        {"x": TensorType(FLOAT, (None, 3, 8, 6))},
        {"y": TensorType(FLOAT, (None, 4, 8, 6))},
    ),
}
CONTRADICTIONS: dict[str, tuple[Metadata, dict[str, TensorType], dict[str, TensorType], str]] = {
    "further input": (BASE, X | {"z\x1b": X["x"]}, Y, r"'inputs'"),
    "other output": (BASE, X, {"z": Y["y"]}, "'output_names'"),
    "no output": (BASE, X, {}, "'output_names'"),
    "other grid": (BASE, {"x": TensorType(FLOAT, (None, 8, 8, 3))}, Y, "'x' in the graph"),
    "other channels": (BASE, {"x": TensorType(FLOAT, (None, 8, 6, 4))}, Y, "'x' in the graph"),
    "fixed batch": (BASE, {"x": TensorType(FLOAT, (2, 8, 6, 3))}, Y, "'x' in the graph"),
    "other rank": (BASE, {"x": TensorType(FLOAT, (None, 8, 6))}, Y, "'x' in the graph"),
    "integers": (BASE, {"x": TensorType(INT, (None, 8, 6, 3))}, Y, "'x' in the graph"),
    "fixed grid": (replace(BASE, grid=None), X, Y, "'x' in the graph"),
    "sizes as floats": (
        *(
            SEVERAL,
            AGREEING["several"][1] | {"sizes": TensorType(FLOAT, (None, 2))},
            AGREEING["several"][2],
        ),
        "'sizes' in the graph",
    ),
    "extra input of strings": (
        *(
            SEVERAL,
            AGREEING["several"][1] | {"extra": TensorType("string", (None, 5))},
            AGREEING["several"][2],
        ),
        "'extra' in the graph",
    ),
    "float16": (BASE, {"x": TensorType("float16", (None, 8, 6, 3))}, Y, "'x' in the graph"),
    "strings": (BASE, X, {"y": TensorType("string", (None, 8, 6, 4))}, "'y' in the graph"),
    "sequence": (BASE, X, {"y": TensorType("seq(tensor(float))", ())}, "'y' in the graph"),
    "other outputs": (BASE, X, {"y": TensorType(FLOAT, (None, 8, 6, 5))}, "'y' in the graph"),
    "zero outputs": (BASE, X, {"y": TensorType(FLOAT, (None, 8, 6, 0))}, "'y' in the graph"),
    "no grid": (BASE, X, {"y": TensorType(FLOAT, (None, 4))}, "'y' in the graph"),
    "classifier with a grid": (CLASSIFIER, X, Y, "'y' in the graph"),
    "recogniser without steps": (RECOGNISER, X, {"y": TensorType(FLOAT, (None, 4))}, "'y' in the graph"),
    "one number": (replace(BASE, window=None), X, {"y": TensorType(FLOAT, (None,))}, "'y' in the graph"),
}


@pytest.mark.parametrize("case", AGREEING)
def test_metadata_that_describe_the_graph_are_accepted(case: str) -> None:
    check_agreement(*AGREEING[case], "m.onnx")


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_metadata_that_contradict_the_graph_are_refused(case: str) -> None:
    *arguments, message = CONTRADICTIONS[case]
    metadata, inputs, outputs = arguments
    with pytest.raises(InputError, match=message):
        check_agreement(metadata, inputs, outputs, "m.onnx")


@pytest.mark.parametrize("classes", [("a", "b\x1b[2J"), ("a", "b\n"), ("\u202ea", "b"), ("a", "a")])
def test_classes_that_cannot_be_exported_are_refused_in_training_data(classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        TaskSpec("own", "classify", 1, 2, (8, 8), classes)
    assert str(error.value).isprintable()
