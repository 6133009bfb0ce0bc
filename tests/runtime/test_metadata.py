"""Metadata survive the file, and damaged ones are refused or read, whatever they hold."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.metadata import Metadata, layout_of

PLAIN: dict[str, Any] = {"version": "2", "form": "scan", "layout": "N H W C", "channels": 1, "outputs": 1}
FULL = Metadata(
    version="2.0",
    form="scan",
    layout="N C H W",
    channels=3,
    outputs=2,
    grid=(None, 8),
    multiple_of=(1, 4),
    min_grid=(2, 4),
    inputs=("x", "sizes", "z"),
    output_names=("y", "aux"),
    window=(2, 2),
    further_windows=(None,),
    columns_per_step=4,
    dtype="float16",
    integer=True,
    channel_axis=False,
    kind="segment",
    classes=("cat", "dög"),
    preprocessing={"channels": 3, "resize": (None, 64)},
    unit_range=False,
    x_range=(-1.5, 7),
    model="md",
    task="pets",
    user_data=True,
    mask_values=(0, 255),
    mask_palette=(0, 0, 0, 9, 9, 9),
    example_range=(0, 9),
    input_ranges={"z": (-1.0, 1.0)},
    grids=((8, 8), (12, 8)),
    parity={"atol": 1e-5, "rtol": 1e-5, "max_abs": 2e-7},
    reference="mixed",
    checkpoint_sha256="ab",
    part="head",
    more={"threshold": 0.3, "own": {"a": (1, 2)}},
)


@pytest.mark.parametrize("metadata", [Metadata(**PLAIN), FULL])
def test_metadata_survive_a_file(metadata: Metadata) -> None:
    assert Metadata.from_props(metadata.to_props(), "m") == metadata
    same = {f.name for f in fields(Metadata) if getattr(FULL, f.name) == getattr(Metadata(**PLAIN), f.name)}
    assert same == {"form"}  # every other field is tested


WRONG: dict[str, list[Any]] = {
    "schema": [1, 3, "2"],
    "form": ["loop", 1],
    "layout": ["N H W", "H W C", "N C", 3],
    "channels": [0, -1, 1.0, True, "1", None],
    "outputs": [0],
    "grid": [[8], [0, 8], [8, 8.0], 8, "8x8", [7, 9]],
    "multiple_of": [[1], [0, 1], [None, 1], [1, 5]],
    "min_grid": [[1], [2, 9]],
    "inputs": [[], ["z"], ["x", "x"], ["x", 1], "x"],
    "output_names": [[], ["y", "y"], [1, 2]],
    "window": [[1], [0, 1], [None, 1]],
    "further_windows": [[], [[1]], [[1, 0]]],
    "columns_per_step": [0, "4"],
    "classes": [[], ["a", "a"], [1, 2], "ab"],
    "preprocessing": [{"channels": 1}, {"channels": 2}, {"channels": 3, "resize": [0, 1]}, {}, []],
    "mask_values": [[0], [0, 2**63], [0.0, 1.0]],
    "mask_palette": [[0, 0, 0], [0, 0, 0, 0, 0, 256]],
    "example_range": [[1, 0], [0], [0, None], [0, 1e39], ["a", "b"]],
    "x_range": [[2, 1]],
    "input_ranges": [{"z": [1, 0]}, [1]],
    "grids": [[[8]], [[0, 8]], [[2**16, 2**15]]],
    "parity": [{"atol": -1}, {"atol": "x"}],
    "kind": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_wrong_field_is_refused_in_one_line(name: str, value: Any) -> None:
    props = {**FULL.to_props(), f"mdlstm.{name}": json.dumps(value)}
    with pytest.raises(InputError, match=r"m\.onnx has wrong metadata") as refused:
        Metadata.from_props(props, "m.onnx")
    assert str(refused.value).isprintable()


def test_files_of_others_and_of_newer_versions_are_refused() -> None:
    with pytest.raises(InputError, match="mdlstm export"):
        Metadata.from_props({"other.schema": "2"}, "m")

    def without(*names: str) -> Metadata:
        props = Metadata(**PLAIN).to_props()
        return Metadata.from_props({k: v for k, v in props.items() if k[7:] not in names}, "m")

    for name in ("version", "layout", "channels"):
        with pytest.raises(InputError, match="wrong metadata"):
            without(name)
    later = [each.name for each in fields(Metadata) if each.name not in PLAIN]
    assert without(*later) == Metadata(**PLAIN)  # what earlier versions did not write


def test_damaged_metadata_are_refused_or_read() -> None:
    rng, props = random.Random(0), FULL.to_props()
    values = [None, True, 0, -1, 10**30, 1.5, float("nan"), "", "x", [], [[]], [None, {}], {}, {"a": []}]
    for _ in range(3000):
        damaged = dict(props)
        for name in rng.sample([*props], rng.randint(1, 3)):
            text = props[name]
            cut, other = text[: rng.randrange(len(text))], json.dumps(rng.choice(values))
            damaged[name] = rng.choice([other, cut, text + "]", "[" * 5000])
        with suppress(InputError):
            metadata = Metadata.from_props(damaged, "m")
            assert len(metadata.extents) == metadata.ndim == len(metadata.grid_like((8,) * metadata.ndim))


def test_axes_are_found_in_each_layout() -> None:
    assert layout_of(4, channels_last=False) == "N C E1 E2 E3 E4"
    for ndim in (1, 2, 3, 4):
        for last in (True, False):
            m = Metadata(**{**PLAIN, "layout": layout_of(ndim, last), "channels": 3, "window": (1,) * ndim})
            grid = tuple(range(4, 4 + ndim))
            shape = (2, *m.shape_of(grid))
            assert (m.ndim, m.channels_last, m.grid_of(shape)) == (ndim, last, grid)
            assert shape[-1 if last else 1] == 3
