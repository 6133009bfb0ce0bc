"""Settings of a training run: defaults, limits, sources, and errors that name what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mdlstm_tk.errors import DeviceError, InputError
from mdlstm_tk.training import TrainConfig, configure, configure_resumed, list_settings, parse_settings
from mdlstm_tk.training.distributed import pick_device


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"stepz": 3}, "'steps'"),
        ({"steps": "many"}, "steps.*'many'"),
        ({"steps": 1.5}, r"steps.*1\.5"),
        ({"steps": 0}, "steps.*0"),
        ({"hidden": 2_000_000}, "hidden.*1000000"),
        ({"lr": float("nan")}, "lr.*nan"),
        ({"dropout": 1}, "dropout.*below 1"),
        ({"patience": -1}, "patience.*-1"),
        ({"layer_norm": "yes"}, "layer_norm.*'yes'"),
        ({"size": "8by8"}, "size.*'8by8'"),
        ({"size": "0"}, "'0'"),
        ({"windows": "2,x"}, "'x'"),
        ({"directions": "2"}, "directions.*1 or all"),
        ({"init": "zeros"}, "init.*'zeros'"),
        ({"schedule": "cosin"}, "schedule.*'cosine'"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        TrainConfig().updated(values, "here")


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('task = "digits"\nhidden = 3\nsteps = 9\nlr = 1\n')
    config = configure({"steps": 4}, parse_settings(["hidden=5", "steps=7"]), file)
    assert (config.task, config.lr, config.hidden, config.steps) == ("digits", 1.0, 5, 4)
    assert config.schedule == "cosine"  # from the defaults of the task
    assert configure({}) == TrainConfig()


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    config = TrainConfig(steps=3, directions="all", layer_norm=True)
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert TrainConfig.load(tmp_path / "config.toml") == config


@pytest.mark.parametrize("text", ["steps", "=3", ""])
def test_settings_need_a_key_and_a_value(text: str) -> None:
    with pytest.raises(InputError, match="key=value"):
        parse_settings([text])


def test_resuming_changes_no_setting_that_would_make_it_another_run() -> None:
    config = TrainConfig(lr=0.5)
    resumed = configure_resumed(config, {"steps": 2000}, {"workers": "1"})
    assert (resumed.steps, resumed.workers, resumed.lr) == (2000, 1, 0.5)
    with pytest.raises(InputError, match=r"lr = 0\.5"):
        configure_resumed(config, {"lr": 1})


def test_every_setting_is_listed_with_its_meaning_and_default() -> None:
    rows = list_settings()
    assert [row.key for row in rows] == [field.name for field in fields(TrainConfig)]
    for row in rows:
        assert row.help.endswith(".")
        assert TrainConfig().updated({row.key: row.default}, "default") == TrainConfig()


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from mdlstm_tk.training import configure, list_settings; list_settings(); "
        "configure({'task': 'digits', 'steps': 3}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_devices_that_do_not_exist_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("tpu", "cuda:x", "cpu:0"):
        with pytest.raises(InputError, match=name):
            pick_device(name)
    with pytest.raises(DeviceError, match="cuda:99"):
        pick_device("cuda:99")
