"""The settings of a training. Each field is an option of `mdlstm train` and a key of `config.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from mdlstm_tk._util.sizes import for_axes, parse_device, parse_resize, parse_size
from mdlstm_tk._util.text import suggestion
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_names

ON_RESUME = ("steps", "minutes", "patience", "device", "workers", "tensorboard", "data", "cache")
"""The settings that may change when a run goes on."""


def parse_windows(text: str, ndim: int = 1) -> tuple[tuple[int, ...], ...]:
    """The windows of the levels of a network: "2,2x1" is ((2, 2), (2, 1)) for grids of two axes."""
    return tuple(for_axes(parse_size(window), ndim) for window in text.split(","))


DATA, NETWORK, OPTIMIZATION, RUN = "Data", "Network", "Optimization", "Run"


def _of(
    default: Any,
    panel: str,
    help: str,
    low: float = -inf,
    high: float = inf,
    *,
    parse: Any = None,
    words: Any = (),
) -> Any:
    """A setting: its default, its panel and meaning in the help, and what it may be."""
    metadata = {"panel": panel, "help": help, "ends": (low, high), "parse": parse, "words": words}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. Texts are converted to the type of their field.

    The defaults suit no task in particular; `configure` returns those of a task. "" stands for what the
    task, the network or the data decide.

    Raises:
        InputError: a value is of another type, or out of range.
    """

    task: str = _of("diagonal", DATA, f"Task, or with data its kind ({', '.join(kind_names())}).")
    data: str = _of("", DATA, "Data to train on: a folder of images, or an .npz file.")
    size: str = _of("", DATA, "Grid size, as 8 or 8x12, of tasks that generate grids.", parse=parse_size)
    resize: str = _of("", DATA, "Size of images, as 64, 48x64, or 48x* for any width.", parse=parse_resize)
    crop: str = _of("", DATA, "Size of the part of a sample to train on.", parse=parse_size)
    augment: float = _of(0.0, DATA, "Strength of the random distortion of images.", 0, 100)
    validation: float = _of(0.1, DATA, "Share of the samples to hold out, if none are given.", 0, 0.9)
    levels: int = _of(2, DATA, "Levels that density rounds each channel to.", 2, 256)
    cache: int = _of(256, DATA, "Memory for decoded images in MiB.", 0)
    model: str = _of("md", NETWORK, "Registered network.")
    cell: str = _of("", NETWORK, "Registered LSTM cell.")
    directions: str = _of("", NETWORK, "Sweep directions.", words=("1", "all"))
    hidden: int = _of(16, NETWORK, "Hidden units per direction.", 1, 1_000_000)
    layers: int = _of(1, NETWORK, "Stacked layers.", 1, 1000)
    windows: str = _of("", NETWORK, "Window of each level, as 2 or 2x2,2x1.", parse=parse_windows)
    dropout: float = _of(0.0, NETWORK, "Probability of zeroing a layer's output in training.", 0, 0.99)
    layer_norm: bool = _of(False, NETWORK, "Normalize the gates and the cell state.")
    init: str = _of("", NETWORK, "Run whose best weights training starts from.")
    steps: int = _of(1000, OPTIMIZATION, "Optimizer steps.", 1, 10**9)
    minutes: float = _of(0.0, OPTIMIZATION, "Minutes to train for, in place of steps.", 0, 1e6)
    batch_size: int = _of(16, OPTIMIZATION, "Samples per step, of all processes.", 1, 1_000_000)
    lr: float = _of(0.01, OPTIMIZATION, "Peak learning rate of Adam.", 1e-12, 1e6)
    schedule: str = _of("constant", OPTIMIZATION, "Rate after the warm-up.", words=("constant", "cosine"))
    warmup: int = _of(0, OPTIMIZATION, "Steps in which the learning rate rises from 0.", 0)
    weight_decay: float = _of(0.0, OPTIMIZATION, "Decay of the recurrent weights (AdamW).", 0)
    clip: float = _of(0.0, OPTIMIZATION, "Maximum norm of the gradient; 0: none.", 0)
    average: float = _of(0.0, OPTIMIZATION, "Decay of an average of the weights; 0: none.", 0, 1 - 1e-9)
    precision: str = _of("fp32", OPTIMIZATION, "Arithmetic.", words=("fp32", "bf16"))
    best_by: str = _of("", RUN, "Measure of the validation data that chooses the best weights.")
    evaluate_every: int = _of(50, RUN, "Steps between validations, each with a checkpoint.", 1)
    patience: int = _of(0, RUN, "Validations without improvement that end a training; 0: any.", 0)
    workers: int = _of(0, RUN, "Processes that prepare batches.", 0, 256)
    tensorboard: bool = _of(False, RUN, "Also write TensorBoard event files.")
    seed: int = _of(0, RUN, "Random seed of weights, splits, data and dropout.", 0, 2**32 - 1)
    device: str = _of("auto", RUN, "auto, cpu, cuda or cuda:N.", parse=parse_device)

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _convert(each, getattr(self, each.name)))
        if self.data:  # so that a run can be resumed in any working folder
            object.__setattr__(self, "data", str(Path(self.data).resolve()))

    @property
    def grid(self) -> tuple[int, ...]:
        """`size` for tasks that generate grids of two axes."""
        return for_axes(parse_size(self.size), 2)

    def resumed(self, changes: Mapping[str, Any]) -> TrainConfig:
        """These settings with the changes that do not make it another run.

        Raises:
            InputError: another setting is changed, or both steps and minutes.
        """
        _require_one_length(changes)
        if others := [name for name in changes if name not in ON_RESUME]:
            raise InputError(f"a run keeps its {others[0]}; only {', '.join(ON_RESUME)} can change")
        return replace(self, **{**changes, **({"minutes": 0.0} if "steps" in changes else {})})

    def to_toml(self) -> str:
        """The content of `config.toml`."""
        import tomli_w

        return tomli_w.dumps(asdict(self))


def _require_one_length(settings: Mapping[str, Any]) -> None:
    if settings.get("steps") and settings.get("minutes"):
        raise InputError("steps and minutes are two lengths of a training; leave out one")


def _convert(each: Any, value: Any) -> Any:
    """The value of a setting in the type of its field."""
    (low, high), parse, words = (each.metadata[name] for name in ("ends", "parse", "words"))
    expected = f"{each.type} from {low:g} to {high:g}" if each.type in ("int", "float") else each.type
    try:
        if each.type == "bool":
            return {"true": True, "false": False}[str(value).lower()]
        if each.type == "str":
            if value and parse:
                parse(str(value))
            if not words or str(value) in ("", *words):
                return str(value)
            expected = " or ".join(words)
        else:
            number = {"int": int, "float": float}[each.type](value)
            if low <= number <= high and (isinstance(value, str) or number == value):
                return number
    except InputError as error:
        raise InputError(f"{each.name}: {error}") from None
    except (KeyError, ValueError, TypeError, OverflowError):
        pass
    raise InputError(f"{each.name} must be {expected}, got {value!r}")


def configure(file: str | Path | None = None, **settings: Any) -> TrainConfig:
    """The settings of a new run: those that suit the task, then those of a TOML file, then those given.

    >>> configure(task="digits", steps=200)

    Raises:
        InputError: there is no such task or setting, a value is invalid, the file is no TOML, or data come
            without the task, their kind.
    """
    from mdlstm_tk.training.tasks import task_defaults

    try:
        of_file = tomllib.loads(Path(file).read_text("utf-8-sig")) if file else {}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    given = {**of_file, **settings}
    names = [each.name for each in fields(TrainConfig)]
    for name in given:
        if name not in names:
            raise InputError(f"there is no setting '{name}'; {suggestion(name, names)}")
    if given.get("data") and "task" not in given:
        raise InputError(f"data (--data) needs task (--task), one of {', '.join(kind_names())}")
    _require_one_length(settings)
    TrainConfig(**given)  # refuses values before a task or a network is looked up
    task, data = given.get("task", TrainConfig.task), str(given.get("data", ""))
    defaults = task_defaults(task, data, given.get("model"))
    if given.get("minutes"):
        defaults["patience"] = 0  # minutes are minutes, whatever suits the task
    if "steps" in settings:
        given.pop("minutes", None)
    return TrainConfig(**{**defaults, **given})
