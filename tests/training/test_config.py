"""Settings of a training run: defaults, limits, sources, tasks by name, and errors that name the fault."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from helpers.refusal import refused

from mdlstm_tk.errors import DeviceError
from mdlstm_tk.kinds import kind_names, training_of
from mdlstm_tk.training import (
    TrainConfig,
    configure,
    configure_resumed,
    default_config,
    list_settings,
    make_task,
)
from mdlstm_tk.training.comparison import configure_comparison
from mdlstm_tk.training.distributed import pick_device
from mdlstm_tk.training.tasks import BUILT_IN, OF_DATA, find_task


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "'steps'"),
        ({"steps": "many"}, "steps.*whole number.*'many'"),
        ({"steps": 1.5}, r"steps.*1\.5"),
        ({"steps": 0}, "steps.*at least 1.*0"),
        ({"steps": True}, "steps.*True"),
        ({"steps": [1]}, r"steps.*\[1\]"),
        ({"hidden": 2_000_000}, "hidden.*1000000"),
        ({"lr": float("nan")}, "lr.*nan"),
        ({"lr": "0"}, "lr.*above 0"),
        ({"dropout": 1}, "dropout.*below 1"),
        ({"layer_norm": "yes"}, "layer_norm.*true or false.*'yes'"),
        ({"size": "8by8"}, "size.*'8by8'"),
        ({"windows": "2,x"}, "windows.*'x'"),
        *(({"resize": text}, "must be") for text in ("48x", "x48", "*x*", "48x*x3", "0x*", "1x2x3", "*")),
        ({"device": "cuda:01"}, "device.*cuda:N.*'cuda:01'"),
        ({"directions": "2"}, "directions.*1 or all"),
        ({"schedule": "cosin"}, "schedule must be constant or cosine, got 'cosin'"),
        ({"data": []}, r"data.*text.*\[\]"),
        ({"data": "caf\udce9"}, "data must be UTF-8.*rename"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    refused(f"file: .*{message}", lambda: TrainConfig().updated(values, "file"))


def test_texts_become_values_of_the_fields() -> None:
    values = {"steps": "7", "lr": 1, "layer_norm": "True", "size": 8, "directions": 1}
    config = TrainConfig().updated(values, "test")
    assert (config.steps, config.lr, config.layer_norm) == (7, 1.0, True)
    assert (config.size, config.directions) == ("8", "1")
    assert isinstance(config.lr, float)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('lr = 0.5\nsteps = 5\nhidden = 5\ntask = "ising"\n')
    config = configure({"steps": "9"}, file)
    assert (config.task, config.lr, config.hidden, config.steps) == ("ising", 0.5, 5, 9)
    assert config.batch_size == 64  # of the task


@pytest.mark.parametrize("content", [b"steps = ", b"\xff", b"steps = " + b"[" * 5000])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    refused(r"config\.toml is not TOML", lambda: TrainConfig.load(path))
    refused("cannot read", lambda: TrainConfig.load(tmp_path / "absent.toml"))


def test_a_configuration_is_loaded_from_a_path_or_its_text(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("steps = 7", encoding="utf-8-sig")
    assert TrainConfig.load(path) == TrainConfig.load(str(path)) == TrainConfig(steps=7)


def test_a_setting_that_a_task_lacks_is_refused_from_every_source(tmp_path: Path) -> None:
    """Unless its value is the default, as in the file that a run of the task has written."""
    file = tmp_path / "config.toml"
    message = r"ising has no augment, got .?3.*; leave it out"
    file.write_text('task = "ising"\naugment = 3.0\n')
    refused(message, lambda: configure({}, file))
    refused(message, lambda: configure({"task": "ising", "augment": 3}))
    refused(message, lambda: configure_comparison("ising", {"augment": "3"}))
    file.write_text(configure({"task": "ising"}).to_toml())
    assert configure({"steps": 3}, file).steps == 3


def test_the_defaults_suit_no_task_in_particular() -> None:
    refused("needs a size", lambda: make_task(TrainConfig()))
    assert make_task(configure({})).spec.size == (8, 8)


def test_settings_that_tasks_change_are_shown_as_such() -> None:
    rows = {row.key: row.default for row in list_settings()}
    assert list(rows) == [field.name for field in fields(TrainConfig)]
    changed = {key for name in BUILT_IN for key in find_task(name).defaults}
    changed |= {key for kind in kind_names() for key in training_of(kind).defaults}
    assert all(rows[key] == "depends on the task" for key in changed)
    assert rows["cache"] == "256"


def test_minutes_are_not_ended_by_the_patience_of_a_task(tmp_path: Path) -> None:
    file, data = tmp_path / "a.toml", {"task": "classify", "data": "x"}
    file.write_text("patience = 4\n")
    steps = configure(data)
    assert steps.patience == 10
    for options, path, patience in (
        ({"minutes": 1.0}, None, 0),
        ({"minutes": "1", "patience": "3"}, None, 3),
        ({"minutes": "1"}, file, 4),
        ({"minutes": 0.0}, None, 10),
    ):
        assert configure({**data, **options}, path).patience == patience
    timed = configure_resumed(steps, {"minutes": 1.0})
    assert timed.patience == 0
    assert configure_resumed(steps, {"minutes": 1.0, "patience": 2}).patience == 2
    assert configure_resumed(replace(timed, patience=2), {"minutes": 2.0}).patience == 2


def test_the_length_that_is_given_last_counts(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("steps = 9\nminutes = 60.0\n")  # as the folder of a run of minutes has it
    assert configure({}, file).minutes == 60
    config = configure({"steps": "100"}, file)
    assert (config.steps, config.minutes) == (100, 0)
    resumed = configure_resumed(configure({}, file), {"steps": 100})
    assert (resumed.steps, resumed.minutes) == (100, 0)
    assert configure_resumed(resumed, {"minutes": 2.0}).minutes == 2


@pytest.mark.parametrize("key", [*OF_DATA, "levels"])
@pytest.mark.parametrize("task", [*BUILT_IN, *kind_names()])
def test_settings_that_a_task_does_not_have_are_refused(task: str, key: str) -> None:
    values = {"task": task, "data": "" if task in BUILT_IN else "x", key: 3 if key == "levels" else 0.5}
    own = BUILT_IN[task].settings if task in BUILT_IN else (*OF_DATA, "levels" * (task == "density"))
    if key in own:
        assert getattr(configure(values), key) == values[key]
    else:
        refused(f"{task} has no {key}, got {values[key]}", lambda: configure(values))


def test_a_resumed_run_keeps_its_settings() -> None:
    config = configure({"steps": 10})
    assert configure_resumed(config, {"steps": 20, "patience": "3"}).patience == 3
    refused(r"resumed.*lr = 0.04.*steps", lambda: configure_resumed(config, {"lr": 0.1}))
    refused("did you mean 'steps'", lambda: configure_resumed(config, {"stepz": "20"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x"}, r"needs task \(--task\)"),
        ({"minutes": 1.0, "steps": 5}, "are two lengths of a training"),
        ({"task": "digit"}, "'digit'; did you mean 'digits'.*import FILE"),
        ({"task": "segment"}, "kind of data"),
        ({"model": "mdd"}, "'mdd'; did you mean 'md'.*import FILE"),
        ({"task": "ising", "model": "raster"}, "'raster' is for tasks of kind grid"),
        ({"size": "100000"}, "100000"),
        ({"task": "ising", "data": "x"}, "data goes with.*'ising'"),
        ({"size": "8", "resize": "8"}, "resize goes with data"),
    ],
)
def test_what_is_not_there_or_does_not_go_together_is_named(options: dict[str, str], message: str) -> None:
    refused(message, lambda: make_task(configure(options)))


def test_defaults_of_a_task_leave_out_options_that_a_network_lacks() -> None:
    assert default_config("segment", "x").cell == "stable"
    assert default_config("segment", "x.npz").augment == 0
    assert default_config("segment", "x" * 300).augment == 1  # a name that no file can have
    assert default_config("gaussian-field", model="snake").model == "snake"


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    refused("'gpu'", lambda: pick_device("gpu"))
    with pytest.raises(DeviceError, match="cuda:99"):
        pick_device("cuda:99")
