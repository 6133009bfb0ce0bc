"""The configuration of a training run. Every field is a key of `config.toml` and of `--set KEY=VALUE`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from mdlstm_tk._util.regular_files import is_unicode, read_text
from mdlstm_tk._util.sizes import parse_resize, parse_size
from mdlstm_tk._util.user_code import cell_name, names_file
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.errors import InputError

FLOAT32_MAX = 3e38  # approximately; larger settings would overflow in the network
MAX_TEXT = 10_000  # characters of a setting
MAX_LEVELS = 16  # of a network, each with its window
MAX_FILE_BYTES = 2**20  # of a file of settings

Code = Mapping[str, str]
"""The Python files that the user has named in this call or command, as "file.py:name", by setting: model,
cell. A file of settings may name others, but only these are run."""
NO_CODE: Code = {}


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of `TrainConfig`.

    Args:
        default: value of the setting where neither the task nor the user chooses another one.
        help: what the setting means, with its unit.
        **limits: `choices` (allowed texts), `above` and `below` (exclusive bounds), `least` and `most`
            (inclusive bounds), `names_code` (whether the text may be "file.py:name", which is run).
    """
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run; `list_settings` returns what each field means.

    Raises:
        InputError: a value is out of range, is not one of the setting's choices, or is not a grid size.
    """

    task: str = _setting(
        "diagonal",
        "Built-in task; or, together with data, its kind: grid, classify, segment, transcribe, density.",
    )
    data: str = _setting(
        "",
        "Path of an .npz file, a folder of images or, for kind density, of IDX files to train on; for task "
        "fashion, of the IDX files of Fashion-MNIST or MNIST; empty: a built-in task.",
    )
    data_from_run: str = _setting(
        "", "Path of data from the run folder, which training writes: where data is if both have moved."
    )
    model: str = _setting(
        "md", "Network: a registered name such as md, or file.py:name for your own.", names_code=True
    )
    size: str = _setting("8", "Grid size, as 8 or 8x12 (positions), for tasks that generate their grids.")
    resize: str = _setting(
        "",
        "Size that the images of data are resized to, as 64, 48x64, or 48x* for a height that keeps the "
        "aspect, in training and by exported models; empty: their own.",
    )
    crop: str = _setting(
        "",
        "Size of the part of each sample of data to train on, at random places; validation uses the "
        "centre; empty: whole samples.",
    )
    levels: int = _setting(
        2,
        "Levels that each channel of data of kind density is rounded to; 2 are black and white.",
        least=2,
        most=256,
    )
    cache: int = _setting(
        256, "Memory for decoded images of data in MiB; further ones are read again in each epoch.", least=0
    )
    steps: int = _setting(1000, "Total number of optimizer steps.", above=0)
    batch_size: int = _setting(16, "Samples per step, summed over all processes.", above=0, most=1_000_000)
    hidden: int = _setting(16, "Hidden units per direction.", above=0, most=1_000_000)
    layers: int = _setting(1, "Number of stacked layers.", above=0, most=1000)
    lr: float = _setting(0.04, "Peak learning rate of Adam.", above=0, most=1e6)
    weight_decay: float = _setting(
        # It keeps the state from drifting on grids larger than those trained on.
        0.5,
        "Decoupled weight decay (AdamW), applied to the recurrent weights of MDLSTM layers only.",
        least=0,
        most=1e6,
    )
    cell: str = _setting(
        "",
        f"LSTM cell: {', '.join(BUILT_IN_CELLS)}, or file.py:name for your own; "
        "empty: the network's default.",
        names_code=True,
    )
    directions: str = _setting(
        "", "Sweep directions: 1 or all; empty: the network's default.", choices=("", "1", "all")
    )
    layer_norm: bool = _setting(False, "Normalize the gates and the cell state.")
    windows: str = _setting(
        "",
        "Window of each level of the network in positions, as 2 or 2x2,2x1; larger ones need less memory; "
        "empty: the network's default, or larger ones for large images.",
    )
    dropout: float = _setting(0.0, "Probability of zeroing a layer's output in training.", least=0, below=1)
    init: str = _setting(
        "default",
        "Weight initialization: default, or original for that of the original TensorFlow code.",
        choices=("default", "original"),
    )
    schedule: str = _setting(
        "constant",
        "Learning rate after the warm-up: constant, or cosine for half a cosine down to 0.",
        choices=("constant", "cosine"),
    )
    warmup: int = _setting(0, "Steps in which the learning rate rises linearly from 0.", least=0)
    clip: float = _setting(0.0, "Maximum norm of the whole gradient; 0: no clipping.", least=0)
    average: float = _setting(
        0.0,
        "Decay of a running average of the weights, which is then evaluated and exported; 0: no average.",
        least=0,
        below=1,
    )
    precision: str = _setting(
        "fp32", "Arithmetic: fp32, or bf16 for autocast to bfloat16.", choices=("fp32", "bf16")
    )
    augment: float = _setting(
        0.0,
        "Strength of random shift, rotation, zoom and warp of training images; 0: none.",
        least=0,
        most=100,
    )
    validation: float = _setting(
        0.1,
        "Share of training samples held out if the data has no validation split.",
        least=0,
        below=1,
    )
    evaluate_every: int = _setting(
        50, "Steps between validations, each of which saves a checkpoint.", above=0
    )
    patience: int = _setting(
        0, "Validations without improvement before training stops; 0: no limit.", least=0
    )
    workers: int = _setting(
        0, "Processes that prepare batches; 0: the training process.", least=0, most=256
    )
    tensorboard: bool = _setting(False, "Also write TensorBoard event files.")
    seed: int = _setting(0, "Random seed of weights, splits, data and dropout.", least=0, most=2**63 - 1)
    device: str = _setting("auto", "Device to train on: auto, cpu, cuda or cuda:N.")

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check_limits(setting.name, getattr(self, setting.name), setting.metadata)
        windows = self.windows.split(",")
        if len(windows) > MAX_LEVELS:
            raise InputError(f"windows must be at most {MAX_LEVELS} sizes, got {len(windows)}")
        for text in filter(None, (self.size, self.crop, *windows)):
            parse_size(text)
        if self.resize:
            parse_resize(self.resize)

    @property
    def grid(self) -> tuple[int, ...]:
        """`size` as a tuple of extents. With `data` it is known once the data are read."""
        return parse_size(self.size)

    @property
    def code(self) -> Code:
        """The Python files that this configuration names, by setting.

        The user has named them, as no configuration is made of a file that names others.
        """
        settings = {key: getattr(self, key) for key in CODE_SETTINGS}
        return {key: value for key, value in settings.items() if names_file(value)}

    def network_options(self, ndim: int = 2) -> dict[str, Any]:
        """Return the keyword arguments of `mdlstm_tk.models.create` that this configuration sets.

        Args:
            ndim: axes of the grid.
        """
        options: dict[str, Any] = {"hidden": self.hidden}
        if self.layers != 1:
            options["layers"] = self.layers
        if self.cell:
            options["cell"] = cell_name(self.cell)
        if self.directions:
            options["directions"] = "all" if self.directions == "all" else 1
        if self.layer_norm:
            options["layer_norm"] = True
        if self.windows:
            options["windows"] = tuple(parse_size(window, ndim) for window in self.windows.split(","))
        if self.dropout:
            options["dropout"] = self.dropout
        if self.init != "default":
            options["init"] = self.init
        return options

    def updated(self, values: Mapping[str, Any], source: str, code: Code = NO_CODE) -> TrainConfig:
        """Replace some settings; texts are converted to the setting's type.

        Whatever becomes a configuration comes this way, files included, and a setting that names a Python
        file is taken from `code` alone.

        Args:
            values: the new values by key.
            source: where they come from, for error messages.
            code: what the user has named in this call. For values that come from the user, these values
                themselves.

        Raises:
            InputError: there is no such setting, or a value has the wrong type, is out of range, or names a
                Python file that `code` does not name.
        """
        known = [setting.name for setting in fields(self)]
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise InputError(f"{source}: there is no setting '{key:.100}'; {suggest(key, known)}")
            changes[key] = _convert(value, type(getattr(self, key)), f"{source}: {key}")
        for key in CODE_SETTINGS:
            if key in changes or key in code:
                stored = changes.get(key, getattr(self, key))
                changes[key] = _named_by_user(key, stored, source, code.get(key))
        try:
            return replace(self, **changes)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: Path, code: Code = NO_CODE) -> TrainConfig:
        """Read a `config.toml`.

        Args:
            path: the file.
            code: the Python files that the user has named in this call, by setting, if the file names any.

        Raises:
            InputError: the file cannot be read, is not TOML, has an unknown or invalid setting, or names a
                Python file that `code` does not name.
        """
        return cls().updated(read_toml(path), str(path), code)

    def to_toml(self) -> str:
        """The content of `config.toml`."""
        import tomli_w  # from the extra "train"; `mdlstm train --help` lists the settings without it

        return tomli_w.dumps(asdict(self))


CODE_SETTINGS = tuple(setting.name for setting in fields(TrainConfig) if "names_code" in setting.metadata)


class SettingHelp(NamedTuple):
    """One row of the list of settings: key, default and meaning."""

    key: str
    default: str
    help: str


def list_settings() -> list[SettingHelp]:
    """All settings of `TrainConfig`, in order. Imports neither torch nor onnx."""
    rows = []
    for setting in fields(TrainConfig):
        default = setting.default
        text = str(default).lower() if isinstance(default, bool) else str(default)
        rows.append(SettingHelp(setting.name, text, setting.metadata["help"]))
    return rows


def choices(key: str) -> tuple[str, ...]:
    """The values that a setting may have, without the empty text; () if it is not limited to some."""
    by_key = {setting.name: setting.metadata for setting in fields(TrainConfig)}
    return tuple(filter(None, by_key[key].get("choices", ())))


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: the closest known one, or all of them."""
    known = list(known)
    close = get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(known)}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: the file cannot be read, is not TOML, or is larger than `MAX_FILE_BYTES`.
    """
    text = read_text(path, MAX_FILE_BYTES)
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also of a number with too many digits
        raise InputError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise InputError(f"{path} is not TOML of settings: it is nested too deeply") from None


def _named_by_user(key: str, stored: str, source: str, named: str | None) -> str:
    """The value of a setting that may name a Python file: of files, that which the user has named.

    Args:
        key: the setting.
        stored: its value in the source.
        source: where it comes from.
        named: what the user has named in this call, if anything.

    Raises:
        InputError: the user has not named a file, but the source does; or the other way round.
    """
    if named == stored:
        return stored
    if not names_file(stored):
        if named is None:
            return stored
        raise InputError(
            f"{source} needs no Python file for {key}, which is '{stored:.100}'; leave out --{key} {named}"
        )
    name = stored.rpartition(":")[2]
    if named is None:
        raise InputError(
            f"{source} names a Python file, {key} = {stored!r:.200}, and no file runs unless you name it "
            f"yourself; if you trust it, add --{key} file.py:{name:.100} with its path"
        )
    if not names_file(named) or named.rpartition(":")[2] != name:
        raise InputError(f"--{key} must be file.py:{name:.100} as in {source}, got '{named}'")
    return named


def _check_limits(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if isinstance(value, int | float):
        most = limits.get("most", FLOAT32_MAX)
        if not abs(value) <= most:  # also refuses NaN
            raise InputError(f"{key} must be a number of at most {most}, got {value}")
        if "above" in limits and not value > limits["above"]:
            raise InputError(f"{key} must be above {limits['above']}, got {value}")
        least, below = limits.get("least"), limits.get("below")
        if (least is not None and value < least) or (below is not None and value >= below):
            bounds = f"at least {least}" + ("" if below is None else f" and below {below}")
            raise InputError(f"{key} must be {bounds}, got {value}")
    elif isinstance(value, str) and (len(value) > MAX_TEXT or "\0" in value or not is_unicode(value)):
        raise InputError(f"{key} must be at most {MAX_TEXT} characters of Unicode, got {value!r:.200}")
    elif "choices" in limits and value not in limits["choices"]:
        known = [choice for choice in limits["choices"] if choice]
        close = get_close_matches(value, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise InputError(f"{key} must be {' or '.join(known)}, got '{value:.100}'{hint}")


def _convert(value: Any, kind: type, label: str) -> Any:
    """Convert `value` to int, float, bool or str; `label` names it in error messages."""
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is not bool and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            converted = kind(value)
            if kind is not int or isinstance(value, str) or converted == value:
                return converted
        except (ValueError, OverflowError):
            pass
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    raise InputError(f"{label} must be {expected}, got {value!r:.200}")
