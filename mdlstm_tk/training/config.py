"""The configuration of a training run. Every field is a key of `config.toml` and an option of
`mdlstm train`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from mdlstm_tk._util.sizes import for_axes, parse_device, parse_resize, parse_size
from mdlstm_tk._util.text import suggestion
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_names

# the settings in each panel of `mdlstm train --help`; all others are in that of the run
PANELS: dict[str, tuple[str, ...]] = {
    "Data": ("task", "data", "size", "resize", "crop", "augment", "validation", "levels"),
    "Network": ("model", "cell", "directions", "hidden", "layers", "windows", "dropout", "layer_norm"),
    "Optimization": (
        *("steps", "minutes", "batch_size", "lr", "schedule", "warmup", "weight_decay", "clip", "average"),
        *("precision", "init"),
    ),
}
# settings for which tasks bring defaults of their own
BY_TASK = (
    *("size", "resize", "model", "cell", "directions", "hidden", "layers", "windows", "dropout"),
    *("steps", "lr", "batch_size", "schedule", "clip", "weight_decay", "warmup", "average", "augment"),
    *("validation", "best_by", "evaluate_every", "patience"),
)
BY_TASK_TEXT = "depends on the task"
# settings that some networks do not have
OPTIONAL_NETWORK_SETTINGS = ("layers", "cell", "directions", "layer_norm", "windows", "dropout")


def parse_windows(text: str, ndim: int = 1) -> tuple[tuple[int, ...], ...]:
    """Parse the windows of the levels of a network: "2,2x1" is ((2, 2), (2, 1)) for grids of two axes.

    Args:
        text: a size for each level, as for `parse_size`, separated by commas.
        ndim: number of grid axes, for all of which a single extent stands.

    Raises:
        InputError: one of the texts between commas is no size.
    """
    return tuple(for_axes(parse_size(window), ndim) for window in text.split(","))


def _setting(
    default: Any,
    help: str,
    *,
    empty: str = "",
    min: float | None = None,
    max: float = 1e9,
    above: float | None = None,
    below: float | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field of `TrainConfig`.

    Args:
        default: value of the setting where neither the task nor the user chooses another one.
        help: one sentence about the setting, with its unit.
        empty: the meaning of the empty text.
        min, max, above, below: bounds of a number; the last two exclude the bound itself.
        parse: raises `InputError` for a text that is not valid. The empty text always is.
    """
    bounds = (min, max, above, below)
    return field(default=default, metadata={"help": help, "empty": empty, "bounds": bounds, "parse": parse})


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run; `list_settings` returns what each field means.

    Texts are converted to the type of their field. The defaults suit no task in particular;
    `default_config` returns those of a task.

    Raises:
        InputError: a value is of another type, is out of range, or is not one of the setting's choices.
    """

    task: str = _setting(
        "diagonal",
        f"Kind of the data, if there are any ({', '.join(kind_names())}); else a registered task.",
    )
    data: str = _setting(
        "",
        "Path of the data to train on: an .npz file, a folder of images, or files that the task reads.",
        empty="a task that brings its own data",
    )
    data_from_run: str = _setting(
        "", "Path of data from the run folder, which training writes: where data is if both have moved."
    )
    size: str = _setting(
        "",
        "Grid size, as 8 or 8x12 (positions), of tasks that generate their grids.",
        empty="that of the data",
        parse=parse_size,
    )
    resize: str = _setting(
        "",
        "Size that the images of data are resized to, as 64, 48x64, or 48x* for a height that keeps the "
        "aspect, in training and by exported models.",
        empty="their own",
        parse=parse_resize,
    )
    crop: str = _setting(
        "",
        "Size of the part of each sample of data to train on, at random places; validation uses the "
        "centre.",
        empty="whole samples",
        parse=parse_size,
    )
    cache: int = _setting(
        256, "Memory for decoded images of data in MiB; further ones are read again in each epoch.", min=0
    )
    model: str = _setting("md", "Registered network.")
    cell: str = _setting("", "Registered LSTM cell.", empty="the network's default")
    directions: Literal["", "1", "all"] = _setting(
        "", "Sweep directions: 1 or all.", empty="the network's default"
    )
    hidden: int = _setting(16, "Hidden units per direction.", min=1, max=1_000_000)
    layers: int = _setting(1, "Number of stacked layers.", min=1, max=1000)
    windows: str = _setting(
        "",
        "Window of each level of the network in positions, as 2 or 2x2,2x1; larger ones need less memory.",
        empty="the network's default, or larger ones for large images",
        parse=parse_windows,
    )
    dropout: float = _setting(0.0, "Probability of zeroing a layer's output in training.", min=0, below=1)
    layer_norm: bool = _setting(False, "Normalize the gates and the cell state.")
    steps: int = _setting(1000, "Total number of optimizer steps.", min=1)
    minutes: float = _setting(
        0.0,
        "Minutes to train for, validations included, instead of a number of steps; patience ends it only "
        "if given, too; 0: steps.",
        min=0,
    )
    batch_size: int = _setting(16, "Samples per step, summed over all processes.", min=1, max=1_000_000)
    lr: float = _setting(0.01, "Peak learning rate of Adam.", above=0, max=1e6)
    schedule: Literal["constant", "cosine"] = _setting(
        "constant", "Learning rate after the warm-up: constant, or cosine for half a cosine down to 0."
    )
    clip: float = _setting(0.0, "Maximum norm of the whole gradient; 0: no clipping.", min=0)
    init: str = _setting(
        "",
        "Run folder whose best weights training starts from; characters or classes that both have keep "
        "their outputs.",
        empty="random weights",
    )
    precision: Literal["fp32", "bf16"] = _setting(
        "fp32", "Arithmetic: fp32, or bf16 for autocast to bfloat16."
    )
    weight_decay: float = _setting(
        0.0,
        "Decoupled weight decay (AdamW), applied to the recurrent weights of MDLSTM layers only.",
        min=0,
    )
    warmup: int = _setting(0, "Steps in which the learning rate rises linearly from 0.", min=0)
    average: float = _setting(
        0.0,
        "Decay of a running average of the weights, which is then evaluated and exported; 0: no average.",
        min=0,
        below=1,
    )
    augment: float = _setting(
        0.0,
        "Strength of the random distortion of training images, such as shift, rotation, zoom and warp; "
        "what is distorted depends on the task. 0: none.",
        min=0,
        max=100,
    )
    validation: float = _setting(
        0.1, "Share of training samples held out if the data has no validation split.", min=0, below=1
    )
    best_by: str = _setting(
        "",
        "Measure of the validation data that chooses the best weights, such as f1_macro.",
        empty="the first measure of the task",
    )
    evaluate_every: int = _setting(
        50, "Steps between validations, each of which saves a checkpoint.", min=1
    )
    patience: int = _setting(
        0, "Validations without improvement before training stops; 0: no limit.", min=0
    )
    workers: int = _setting(0, "Processes that prepare batches; 0: the training process.", min=0, max=256)
    tensorboard: bool = _setting(False, "Also write TensorBoard event files.")
    seed: int = _setting(0, "Random seed of weights, splits, data and dropout.", min=0, max=2**63 - 1)
    device: str = _setting("auto", "Device to train on: auto, cpu, cuda or cuda:N.", parse=parse_device)
    levels: int = _setting(
        2,
        "Levels that each channel of data of kind density is rounded to; 2: black and white.",
        min=2,
        max=256,
    )

    def __post_init__(self) -> None:
        for key in _TYPES:
            object.__setattr__(self, key, convert(key, getattr(self, key)))

    @property
    def grid(self) -> tuple[int, ...]:
        """`size` as a tuple of extents, for tasks that generate grids; one extent stands for two axes.

        What is known of a run's samples, their number of axes as well, is in `TaskSpec.size`.

        Raises:
            InputError: there is no size. With `data` it is known once the data are read.
        """
        if not self.size:
            raise InputError(f"the task '{self.task}' generates its grids and needs a size, such as 8")
        return for_axes(parse_size(self.size), 2)

    def network_options(self, names: Collection[str], ndim: int) -> dict[str, Any]:
        """The keyword arguments of `mdlstm_tk.models.create` that this configuration sets.

        Args:
            names: of the options that the network has, see `mdlstm_tk.models.model_options`. What it has is
                given whatever its own default is; what it lacks, only if it was asked for.
            ndim: number of grid axes of the samples.
        """
        settings = {key: getattr(self, key) for key in OPTIONAL_NETWORK_SETTINGS}
        options = {
            key: value
            for key, value in settings.items()
            if value != "" and (key in names or value != _DEFAULTS[key])
        }
        if self.directions == "1":
            options["directions"] = 1
        if self.windows:
            options["windows"] = parse_windows(self.windows, ndim)
        return {"hidden": self.hidden, **options}

    def updated(self, values: Mapping[str, Any], source: str) -> TrainConfig:
        """Replace some settings; texts are converted to the setting's type.

        Args:
            values: the new values by key.
            source: where they come from, for error messages.

        Raises:
            InputError: there is no such setting, or a value has the wrong type or is out of range.
        """
        for key in values:
            if key not in _TYPES:
                raise InputError(f"{source}: there is no setting '{key}'; {suggestion(key, _TYPES)}")
        try:
            return replace(self, **values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a `config.toml`.

        Raises:
            InputError: the file cannot be read, is not TOML, or has an unknown or invalid setting.
        """
        return cls().updated(read_toml(Path(path)), str(path))

    def to_toml(self) -> str:
        """The content of `config.toml`."""
        import tomli_w  # from the extra "train", which is not needed to list the settings

        return tomli_w.dumps(asdict(self))


_TYPES: dict[str, Any] = get_type_hints(TrainConfig)
_SETTINGS = {each.name: each.metadata for each in fields(TrainConfig)}
_DEFAULTS = {each.name: each.default for each in fields(TrainConfig)}


def convert(key: str, value: Any) -> Any:
    """Return the value of a setting in its type.

    Args:
        key: the setting.
        value: a value, or its text.

    Raises:
        InputError: it is of another type, out of range, or not one of the choices.
    """
    kind = _TYPES[key]
    if get_origin(kind) is Literal:
        if str(value) in get_args(kind):
            return str(value)
        names = [choice for choice in get_args(kind) if choice]
        raise InputError(f"{key} must be {' or '.join(names)}, got '{value}'")
    if kind is str:
        if not isinstance(value, str | int):
            raise InputError(f"{key} must be a text, got {value!r}")
        text, parse = str(value), _SETTINGS[key]["parse"]
        try:
            text.encode()
            if text and parse:
                parse(text)
        except UnicodeEncodeError:  # the name of a file whose bytes are not UTF-8
            raise InputError(f"{key} must be UTF-8, got {text!r}; rename the file or folder") from None
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
        return text
    if kind is bool:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise InputError(f"{key} must be true or false, got {value!r}")
    return _number(key, value, kind)


def _number(key: str, value: Any, kind: type) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    low, high, above, below = _SETTINGS[key]["bounds"]
    is_number = number is not None and not isinstance(value, bool)
    if is_number and (isinstance(value, str) or number == value):
        in_range = (low is None or number >= low) and (above is None or number > above)
        if in_range and number <= high and (below is None or number < below):
            return number
    lower = f"above {above}" if low is None else f"of at least {low}"
    upper = f"at most {high:.12g}" if below is None else f"below {below}"
    name = "a whole number" if kind is int else "a number"
    raise InputError(f"{key} must be {name} {lower} and {upper}, got {value!r}")


class SettingHelp(NamedTuple):
    """One row of the list of settings.

    Attributes:
        key: the key of `config.toml`.
        default: as text, or "depends on the task".
        help: one sentence.
        empty: the meaning of the empty text, for settings that may be empty.
        panel: panel of the setting's option in `mdlstm train --help`.
    """

    key: str
    default: str
    help: str
    empty: str
    panel: str

    @property
    def value(self) -> Any:
        """The default in the type of the setting; None if it depends on the task."""
        return None if self.default == BY_TASK_TEXT else convert(self.key, self.default)

    @property
    def meaning(self) -> str:
        """The sentence, with the meaning of the empty text."""
        return f"{self.help.rstrip('.')}; empty: {self.empty}." if self.empty else self.help


def list_settings(task: str | None = None) -> list[SettingHelp]:
    """All settings of `TrainConfig`, in order. Imports neither torch nor onnx.

    Args:
        task: a registered task, or a kind of the user's own data, whose defaults the list has.

    Raises:
        InputError: there is no such task or kind.
    """
    own: dict[str, Any] = {}
    if task:
        from mdlstm_tk.training.tasks import task_defaults

        own = {"task": task, **task_defaults(task)[1]}
    panels = {key: panel for panel, keys in PANELS.items() for key in keys}
    rows = []
    for key, setting in _SETTINGS.items():
        value = own.get(key, _DEFAULTS[key])
        default = str(value).removesuffix(".0") if _TYPES[key] is float else str(value)
        if not task and key in BY_TASK:
            default = BY_TASK_TEXT
        elif _TYPES[key] is bool:
            default = default.lower()
        rows.append(SettingHelp(key, default, setting["help"], setting["empty"], panels.get(key, "Run")))
    return rows


def choices(key: str) -> tuple[str, ...]:
    """The values that a setting may have, without the empty text; () if it is not limited to some.

    Tasks, networks and cells are those that are registered now.
    """
    if key == "task":
        from mdlstm_tk.training.tasks import task_names

        return tuple(task_names())
    if key == "model":
        from mdlstm_tk.models.registry import model_names

        return tuple(model_names())
    if key == "cell":
        from mdlstm_tk.cells import cell_names

        return tuple(cell_names())
    return tuple(filter(None, get_args(_TYPES[key])))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows write a BOM
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
