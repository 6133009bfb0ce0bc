"""`Metadata`: fields have their types and agree with one another and with the graph."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from helpers.crafted_models import FLOAT, INT64, crafted, info, node

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.kinds.tag import TagMetadata
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.metadata import layout_of
from mdlstm_tk.text import Decoding
from mdlstm_tk.text.transcribe import RecogniserMetadata

BASE = Metadata("0.3", (8, 6), "unrolled", "N H W C", channels=3, outputs=4)
CLASSIFIER = replace(
    BASE,
    window=None,
    kind="classify",
    classes=("a", "b", "c", "=d"),
    preprocessing={"channels": 3, "resize": [8, 6]},
    checkpoint_sha256="0" * 64,
    parity={"atol": 1e-5, "rtol": 1e-5, "max_abs": 0.0},
)
SEGMENTER = replace(
    BASE, kind="segment", classes=("0", "1", "2", "3"), mask_values=(0, 7, 9, -1), mask_palette=(0,) * 12
)
NUMBERS = replace(BASE, window=None, kind="regress", classes=("a", "b", "c", "d"))
RECOGNISER = replace(BASE, window=None, kind="transcribe", classes=("a", " ", "é"))
SEVERAL = replace(
    BASE,
    grid=None,
    form="scan",
    inputs=("x", "sizes", "extra"),
    output_names=("y", "aux"),
    further_windows=(None,),
    multiple_of=(4, 4),
    min_grid=(4, 8),
)
DENSITY = replace(
    BASE,
    grid=(6,),
    layout="N T C",
    window=(1,),
    outputs=3,
    kind="density",
)


@pytest.mark.parametrize(
    "metadata",
    [
        BASE,
        replace(BASE, dtype="int8"),  # as version 1.0 wrote it
        CLASSIFIER,
        SEGMENTER,
        NUMBERS,
        RECOGNISER,
        SEVERAL,
        DENSITY,
        replace(BASE, grid=(48, None), form="scan"),
        replace(BASE, grid=(1, 2, 3), window=(1, 1, 1), layout="N C D H W"),
        replace(BASE, grid=None, window=None, layout=layout_of(5, channels_last=True)),
    ],
    ids=lambda metadata: f"{metadata.layout} {metadata.kind} {metadata.grid}",
)
def test_metadata_survive_the_file(metadata: Metadata) -> None:
    metadata.check()
    assert Metadata.from_props(metadata.to_props(), "m").to_props() == metadata.to_props()


WRONG: list[tuple[Metadata, str, Any, str]] = [
    (BASE, "version", 3, "a text"),
    (BASE, "grid", [8], "2 positive extents"),
    (BASE, "grid", [0, 8], "2 positive extents"),
    (BASE, "grid", [True, 8], "an integer"),
    (BASE, "grid", "8x8", "a list"),
    (BASE, "form", "loop", "one of unrolled, scan, tiles"),
    (BASE, "layout", "H W", "like 'N H W C'"),
    (BASE, "channels", 0, "a positive integer"),
    (BASE, "channels", 1.5, "an integer"),
    (BASE, "inputs", ["z"], "'x'"),
    (BASE, "output_names", ["y", "y"], "different names"),
    (BASE, "further_windows", [None], "0 windows"),
    (BASE, "multiple_of", [2, 4], r"divisors of the grid \(8, 6\)"),
    (BASE, "min_grid", [9, 1], r"at most the grid \(8, 6\)"),
    (CLASSIFIER, "classes", ["a", "a", "b", "c"], "4 different names"),
    (CLASSIFIER, "classes", None, "4 different names"),
    (CLASSIFIER, "preprocessing", {"channels": 1}, "images with 3 channels"),
    (CLASSIFIER, "preprocessing", {"channels": 3, "resize": [0, 8]}, "images with 3 channels"),
    (CLASSIFIER, "preprocessing", 7, "an object"),
    (CLASSIFIER, "parity", {"atol": "small"}, "a number"),
    (CLASSIFIER, "parity", {"atol": float("inf")}, "numbers of at least 0"),
    (CLASSIFIER, "parity", {"atol": float("nan")}, "numbers of at least 0"),
    (BASE, "example_range", [0, 10**26], "the lowest and the highest value"),
    (BASE, "example_range", [-1.7e308, 1.7e308], "the lowest and the highest value"),
    (BASE, "grids", [[10**12, 10**12]], "fewer than 2147483648 positions"),
    (RECOGNISER, "classes", ["a", "b", "c", "d"], "3 different names"),
    (RECOGNISER, "classes", ["a", "", "b"], "characters, none of which is empty"),
    (RECOGNISER, "classes", ["a", "\n", "b"], "characters, none of which is empty or a control"),
    (RECOGNISER, "classes", ["a", "\ud800", "b"], "characters, none of which is empty or a control"),
    (RECOGNISER, "columns_per_step", 0, "a positive integer"),
    (RECOGNISER, "temperature", 0, "a positive number"),
    (RECOGNISER, "lm_weight", float("nan"), "a finite number"),
    (RECOGNISER, "lm_weight", 10**400, "a number"),
    (NUMBERS, "classes", ["file", "b", "c", "d"], "other names than file, array"),
    (SEGMENTER, "window", None, "a segmenter has a grid"),
    (SEGMENTER, "mask_values", [1, 2], "4 values"),
    (SEGMENTER, "mask_values", [0, 1, 2, 2**70], "4 values of 64 bits"),
    (SEGMENTER, "mask_palette", [300] * 12, "from 0 to 255"),
    (DENSITY, "window", [2], "a density has a number for each value"),
]


@pytest.mark.parametrize(("base", "name", "value", "expected"), WRONG, ids=lambda value: str(value)[:20])
def test_wrong_fields_are_named(base: Metadata, name: str, value: Any, expected: str) -> None:
    props = base.to_props() | {f"mdlstm.{name}": json.dumps(value)}
    with pytest.raises(InputError, match=f"'{name}' of m is .*{expected}.*export the model again"):
        Metadata.from_props(props, "m")


def test_props_that_are_not_those_of_an_export() -> None:
    props = BASE.to_props()
    with pytest.raises(InputError, match=r"m was not exported by mdlstm-tk"):
        Metadata.from_props({"author": "me"}, "m")
    with pytest.raises(InputError, match=r"schema '9', .*newer mdlstm-tk"):
        Metadata.from_props(props | {"mdlstm.schema": "9"}, "m")
    with pytest.raises(InputError, match="lack 'channels'"):
        Metadata.from_props({key: value for key, value in props.items() if "channels" not in key}, "m")
    with pytest.raises(InputError, match="'grid' of m is"):
        Metadata.from_props(props | {"mdlstm.grid": "[" * 100_000}, "m")
    assert Metadata.from_props(props | {"mdlstm.later": "1", "author": "me"}, "m") == BASE


def test_recognisers_without_a_decoding_have_the_default() -> None:
    names = {"mdlstm.temperature", "mdlstm.lm_weight", "mdlstm.character_bonus", "mdlstm.lm_temperature"}
    props = replace(RECOGNISER, temperature=2.0).to_props()
    assert Metadata.from_props(props, "m").decoding == Decoding(2.0)
    older = {key: value for key, value in props.items() if key not in names}
    assert Metadata.from_props(older, "m").decoding == Decoding()


def test_metadata_of_a_kind_stay_of_its_class() -> None:
    metadata = replace(RECOGNISER, text_direction="rtl")  # type: ignore[call-arg]
    copies = copy.deepcopy(metadata), pickle.loads(pickle.dumps(metadata)), replace(metadata, version="0.3")
    for each in (metadata, *copies, Metadata.from_props(metadata.to_props(), "m")):
        assert type(each) is RecogniserMetadata and each == metadata
    with pytest.raises(InputError, match="metadata of kind classify have no field 'text_direction'"):
        replace(CLASSIFIER, text_direction="rtl")  # type: ignore[call-arg]
    assert type(replace(CLASSIFIER, kind="tag")) is TagMetadata
    for kind in ("classify", "tag", None):
        with pytest.raises(InputError, match=f"metadata of .*{kind or 'no kind'} are .*, not Recogniser"):
            replace(RECOGNISER, kind=kind)


def test_a_grid_of_other_axes_is_refused() -> None:
    with pytest.raises(InputError, match=r"takes grids of 2 axes, got \(3,\)"):
        BASE.grid_like((3,))


def test_metadata_of_another_graph_are_refused() -> None:
    for name, value, message in (
        ("inputs", '["x", "k"]', r"the inputs x, but its metadata name x, k"),
        ("output_names", '["z"]', r"the outputs y, but its metadata name z"),
        ("grid", "[3, 2]", r"\(None, 2, 2, 1\), but its metadata say \(None, 3, 2, 1\)"),
        ("grid", "null", r"\(None, 2, 2, 1\), but its metadata say \(None, None, None, 1\)"),
        ("channels", "2", "its metadata say"),
        ("layout", '"N T C"', "'grid'"),
    ):
        edited = crafted(**{name: value})
        with pytest.raises(InputError, match=message):
            Session(edited.SerializeToString(), "cpu")
    model = crafted([node("Cast", "x", "y", to=INT64)])
    model.graph.output[0].CopyFrom(info("y", INT64, (None, 2, 2, 1)))
    assert Session(model.SerializeToString(), "cpu")([[0, 1], [2, 3]]).dtype == "int64"
    model = crafted([node("ReduceSum", "x", "y", keepdims=0)])
    model.graph.output[0].CopyFrom(info("y", FLOAT, ()))
    for other in (model, crafted(window="[2, 2]"), crafted(outputs="7")):
        with pytest.raises(MDLSTMError, match="contradicts its metadata"):
            Session(other.SerializeToString(), "cpu")([[0, 1], [2, 3]])
