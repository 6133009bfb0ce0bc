"""What a training run is made of. Every field is a key of `config.toml` and of `--set key=value`."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomli_w

from mdlstm_tk.errors import InputError
from mdlstm_tk.sizes import parse_size

POSITIVE = ("steps", "batch_size", "hidden", "layers", "lr", "evaluate_every")
NOT_NEGATIVE = ("seed", "weight_decay", "warmup", "clip", "patience", "augment", "workers")
SHARES = ("validation", "dropout", "average")
MOST = {"hidden": 1_000_000, "workers": 256, "seed": 2**63 - 1}
LARGEST = 3e38  # about what float32 can hold
CHOICES = {
    "directions": ("", "1", "all"),
    "init": ("default", "original"),
    "schedule": ("constant", "cosine"),
    "precision": ("fp32", "bf16"),
}


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        task: a built-in task, or the kind of `data`: "grid", "classify", "segment" or "transcribe".
        data: a file or folder to train on, see `mdlstm_tk.data.user_data`; "" for a built-in task.
        model: a registered network, or "file.py:name".
        size: of the grids, "8" or "8x12", where the task can have any.
        steps: of the optimiser.
        batch_size: samples in a step, of all processes together.
        hidden: n, units of each direction.
        layers: stacked on each other.
        lr: Adam's learning rate.
        weight_decay: of the recurrent weights of MDLSTM layers alone, decoupled (Loshchilov & Hutter
            2019). It keeps the state from drifting once a grid is larger than those trained on.
        cell: "graves", "mean", "stable" or "leaky"; "" leaves it to the network.
        directions: "1" or "all"; "" leaves it to the network.
        layer_norm: normalise gates and state.
        windows: blocks of cells that each level of a network sees as one, "2" or "2x2,2x1"; "" leaves it
            to the network.
        dropout: probability of zeroing an output of a layer.
        init: "default", or "original" for the initial weights of the original TensorFlow code.
        schedule: of the learning rate after the warm-up: "constant", or "cosine" down to 0.
        warmup: steps in which the learning rate rises from 0.
        clip: largest norm of all gradients together; 0 for any.
        average: decay of a running average of the weights, which is then what is judged and exported;
            0 for none.
        precision: "fp32", or "bf16" for autocast to bfloat16.
        augment: strength of random shift, rotation, zoom and elastic warp of training images; 0 for none.
        validation: share of the training samples to hold out, where the data has no part for it.
        evaluate_every: steps between two evaluations, each of which writes a checkpoint.
        patience: evaluations without a better score after which training stops; 0 for never.
        workers: processes that prepare batches; 0 for the training process itself.
        tensorboard: also write events for TensorBoard.
        seed: of weights, splits, data and dropout.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    task: str = "diagonal"
    data: str = ""
    model: str = "md"
    size: str = "8"
    steps: int = 1000
    batch_size: int = 16
    hidden: int = 16
    layers: int = 1
    lr: float = 0.04
    weight_decay: float = 0.5
    cell: str = ""
    directions: str = ""
    layer_norm: bool = False
    windows: str = ""
    dropout: float = 0.0
    init: str = "default"
    schedule: str = "constant"
    warmup: int = 0
    clip: float = 0.0
    average: float = 0.0
    precision: str = "fp32"
    augment: float = 0.0
    validation: float = 0.1
    evaluate_every: int = 50
    patience: int = 0
    workers: int = 0
    tensorboard: bool = False
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = MOST.get(name, LARGEST)
            if isinstance(value, int | float) and not abs(value) <= most:  # nor is NaN
                raise InputError(f"{name} must be a number of at most {most}, got {value}")
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = " or ".join(choice for choice in choices if choice)
                raise InputError(f"{name} must be {known}, got '{getattr(self, name)}'")
        parse_size(self.size)
        for window in filter(None, self.windows.split(",")):
            parse_size(window)

    @property
    def grid(self) -> tuple[int, ...]:
        """The size as extents."""
        return parse_size(self.size)

    def network_options(self) -> dict[str, Any]:
        """What `mdlstm_tk.models.create` is given beside channels and outputs."""
        options: dict[str, Any] = {"hidden": self.hidden}
        if self.layers != 1:
            options["layers"] = self.layers
        if self.cell:
            options["cell"] = self.cell
        if self.directions:
            options["directions"] = "all" if self.directions == "all" else 1
        if self.layer_norm:
            options["layer_norm"] = True
        if self.windows:
            options["windows"] = tuple(map(parse_size, self.windows.split(",")))
        if self.dropout:
            options["dropout"] = self.dropout
        if self.init != "default":
            options["init"] = self.init
        return options

    def updated(self, values: dict[str, Any], source: str) -> TrainConfig:
        """With some fields replaced; texts are read as the field's type.

        Raises:
            InputError: there is no such field, or a value has another type; names `source`.
        """
        known = {f.name: f for f in fields(self)}
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                close = get_close_matches(key, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(known)}"
                raise InputError(f"{source}: there is no setting '{key}'; {hint}")
            changes[key] = _convert(value, type(getattr(self, key)), f"{source}: {key}")
        return replace(self, **changes)

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read a `config.toml`.

        Raises:
            InputError: there is no such file, it is no TOML, or it has a setting that does not exist.
        """
        return cls().updated(read_toml(path), str(path))

    def to_toml(self) -> str:
        """As `config.toml` holds it."""
        return tomli_w.dumps(asdict(self))


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        InputError: there is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None


def _convert(value: Any, kind: type, shown: str) -> Any:
    """`value` as `kind`: int, float, bool or str."""
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is not bool and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            converted = kind(value)
            if kind is not int or isinstance(value, str) or converted == value:
                return converted
        except (ValueError, OverflowError):
            pass
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    raise InputError(f"{shown} must be {wanted}, got {value!r}")
