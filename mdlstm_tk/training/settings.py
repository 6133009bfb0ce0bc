"""Combine the sources of a configuration: the task's defaults, a TOML file, and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_names
from mdlstm_tk.training.config import TrainConfig, read_toml
from mdlstm_tk.training.tasks import check_settings, default_config

# settings that may change when a run is resumed; any other would make it a different run
CHANGEABLE_ON_RESUME = ("steps", "minutes", "patience", "device", "workers", "tensorboard", "data", "cache")


def configure(options: Mapping[str, Any], file: str | Path | None = None) -> TrainConfig:
    """The configuration of a new run.

    Later sources win: the defaults of the task (and of the model), `file`, `options`.

    Args:
        options: values by key, from options of the command line, such as `--lr`, or from Python.
        file: a TOML file of settings.

    Raises:
        InputError: a source names an unknown setting or an invalid value, or `data` comes without `task`.
    """
    from_file = read_toml(Path(file)) if file else {}
    sources = ((from_file, str(file)), (options, "options"))
    for values, source in sources:
        TrainConfig().updated(values, source)  # refuses them before a task or network is looked up
    texts = {key: str(value) for key, value in {**from_file, **options}.items()}
    if texts.get("data") and "task" not in texts:
        raise InputError(f"data (--data) needs task (--task), one of {', '.join(kind_names())}")
    task = texts.get("task", TrainConfig.task)
    config = default = default_config(task, texts.get("data", ""), texts.get("model"))
    for values, source in sources:
        config = config.updated(values, source)
    changed = {key for key in from_file if getattr(config, key) != getattr(default, key)}
    check_settings(task, {**{key: from_file[key] for key in changed}, **options})
    config = _with_length(config, options)
    if config.minutes and "patience" not in texts:
        config = replace(config, patience=0)  # minutes are minutes, whatever suits the task
    return config


def _with_length(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A configuration with the length that was given last: steps, or minutes."""
    if not config.minutes or "steps" not in changes:
        return config
    if "minutes" in changes:
        raise InputError("steps and minutes are two lengths of a training; leave out one")
    return replace(config, minutes=0.0)


def configure_resumed(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a resumed run: its own, with the changes that resuming allows.

    Args:
        config: configuration of the run's last checkpoint.
        options: as for `configure`.

    Raises:
        InputError: a setting is changed that would make it a different run, is unknown or invalid.
    """
    resumed = config.updated(options, "options")
    for key in options:
        if key not in CHANGEABLE_ON_RESUME:
            raise InputError(
                f"a run that is resumed keeps its own {key} = {getattr(config, key)!r}; "
                f"only {', '.join(CHANGEABLE_ON_RESUME)} can change"
            )
    resumed = _with_length(resumed, options)
    if resumed.minutes and not config.minutes and "patience" not in options:
        resumed = replace(resumed, patience=0)  # as in a new run of minutes
    # data_from_run is where the old data were
    return replace(resumed, data_from_run="") if "data" in options else resumed
