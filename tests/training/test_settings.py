"""Settings: what wins, what is refused, and what a task without one of them says."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import samples, write

from mdlstm_tk.errors import InputError
from mdlstm_tk.training import TrainConfig, configure, make_task
from mdlstm_tk.training.config import ON_RESUME

FIELDS = {each.name: each for each in dataclasses.fields(TrainConfig)}


def test_options_win_over_the_file_and_the_file_over_the_task(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('task = "digits"\nlr = 0.5\nhidden = 7\n', encoding="utf-8-sig")
    config = configure(file, hidden="9", layer_norm="true")
    assert (config.task, config.lr, config.hidden, config.layer_norm) == ("digits", 0.5, 9, True)
    assert config.batch_size == 64 != TrainConfig.batch_size  # of the task
    assert configure(task="digits").windows == "1,2"


@pytest.mark.parametrize("name", FIELDS)
def test_values_out_of_range_or_of_another_type_are_refused(name: str) -> None:
    low, high = FIELDS[name].metadata["ends"]
    kind: Any = FIELDS[name].type
    metadata = FIELDS[name].metadata
    of_text = ["no word"] if metadata["words"] else ["-3"] if metadata["parse"] else []
    wrong: dict[str, list[Any]] = {
        "int": [1.5, "x", low - 1, high * 2, None, "1.0"],
        "float": ["x", low - 1, high * 2, float("nan"), None],
        "bool": ["yes", 2, None],
        "str": of_text,
    }
    for value in wrong[kind]:
        if value in (-np.inf, np.inf):
            continue
        with pytest.raises(InputError) as raised:
            TrainConfig(**{name: value})
        assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", FIELDS)
def test_a_text_of_a_value_is_the_value(name: str) -> None:
    value = getattr(TrainConfig(), name)
    assert getattr(TrainConfig(**{name: str(value)}), name) == value


def test_settings_survive_toml_and_names_are_known(tmp_path: Path) -> None:
    config = configure(task="digits", lr=1e-5, seed=2**31, windows="2,1x2", init="a b")
    assert TrainConfig(**tomllib.loads(config.to_toml())) == config
    with pytest.raises(InputError, match="hidden"):
        configure(hiden=3)
    (tmp_path / "c.toml").write_text("hidden = [")
    for file in ("c.toml", "none.toml", "."):
        with pytest.raises(InputError):
            configure(tmp_path / file)


def test_a_resumed_run_keeps_what_makes_it_a_run() -> None:
    config = TrainConfig(steps=10, minutes=2)
    for name in FIELDS:
        change = {name: getattr(config, name)}
        if name in ON_RESUME:
            config.resumed(change)
        else:
            with pytest.raises(InputError):
                config.resumed(change)
    assert config.resumed({"steps": 20}).minutes == 0
    with pytest.raises(InputError):
        config.resumed({"steps": "22", "minutes": "5"})


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("diagonal", "augment", 1.0),
        ("diagonal", "validation", 0.5),
        ("digits", "size", "9"),
        ("digits", "levels", 5),
        ("digits", "resize", "9"),
        ("textures", "crop", "9"),
        ("digits", "data", "somewhere"),
    ],
)
def test_a_setting_that_a_task_does_not_have_is_refused(task: str, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        make_task(configure(task=task, **{name: value}))


def test_minutes_end_by_the_clock_alone(tmp_path: Path) -> None:
    data = write(tmp_path, "classify", "folder", samples("classify", 6))
    config = configure(task="classify", data=str(data), minutes=3)
    assert config.patience == 0 < configure(task="classify", data=str(data)).patience
    assert configure(task="classify", data=str(data), minutes=3, patience=2).patience == 2


def test_arrays_are_not_distorted_unless_that_is_asked_for(tmp_path: Path) -> None:
    for layout, augment in (("folder", 1.0), ("arrays", 0.0), ("split arrays", 0.0)):
        data = write(tmp_path / layout, "segment", layout)
        assert configure(task="segment", data=str(data)).augment == augment
    with pytest.raises(InputError, match="resize"):
        make_task(configure(task="segment", data=str(tmp_path / "arrays" / "data.npz"), resize="8"))
