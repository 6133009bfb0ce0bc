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

POSITIVE = ("steps", "batch_size", "hidden", "layers", "lr")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: a registered network, or "file.py:name".
        size: of the matrices, "8" or "8x12".
        steps: of the optimiser.
        batch_size: matrices in a step.
        hidden: n, units of each direction.
        layers: stacked on each other.
        lr: Adam's learning rate.
        weight_decay: of the recurrent weights of MDLSTM layers alone, decoupled (Loshchilov & Hutter
            2019). It keeps the state from drifting once a grid is larger than those trained on.
        cell: "graves", "mean", "stable" or "leaky"; "" leaves it to the network.
        directions: "1" or "all"; "" leaves it to the network.
        layer_norm: normalise gates and state.
        init: "default", or "seed" for the start of the seed's TensorFlow code.
        seed: of weights and data.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    model: str = "md"
    size: str = "8"
    steps: int = 1000
    batch_size: int = 16
    hidden: int = 16
    layers: int = 1
    lr: float = 0.02
    weight_decay: float = 0.5
    cell: str = ""
    directions: str = ""
    layer_norm: bool = False
    init: str = "default"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.weight_decay < 0 or self.seed < 0:
            raise InputError(
                f"weight_decay and seed must be at least 0, got {self.weight_decay} and {self.seed}"
            )
        if self.init not in ("default", "seed"):
            raise InputError(f"init must be default or seed, got '{self.init}'")
        if self.directions not in ("", "1", "all"):
            raise InputError(f"directions must be 1 or all, got '{self.directions}'")
        parse_size(self.size)

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
        return cls().updated(_read_toml(path), str(path))

    def to_toml(self) -> str:
        """As `config.toml` holds it."""
        return tomli_w.dumps(asdict(self))


def _read_toml(path: Path) -> dict[str, Any]:
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
