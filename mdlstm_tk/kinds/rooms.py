"""Rooms: packages of `mdlstm_tk` that hold an application whole, and add it to the rest by their `room.py`.

A room is found by that file alone. So the rest works as before if the folder of a room is removed. Nothing
here imports NumPy or PyTorch, and a `room.py` imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mdlstm_tk.errors import MDLSTMError


class BuiltInTask(NamedTuple):
    """A task that comes with the package.

    Attributes:
        place: of its class.
        settings: attributes of a `TrainConfig` that the class is called with.
        options: further arguments.
    """

    place: str
    settings: tuple[str, ...]
    options: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Room:
    """The things that an application adds. Those that are loaded when they are used are named as
    "module:attribute", below `mdlstm_tk`.

    Attributes:
        kinds: kinds of tasks by name.
        tasks: built-in tasks by name.
        networks: built-in networks by name, and for each the classes by kind of task.
        settings: of training by key, each as the arguments of a field of `TrainConfig`.
        runtime_names: names that `mdlstm_tk.runtime` offers, too.
        verbs: of the command line by name: the panel of the help, and the function.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, BuiltInTask] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runtime_names: Mapping[str, str] = field(default_factory=dict)
    verbs: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@cache
def all_rooms() -> tuple[Room, ...]:
    """The rooms that are there, in the order of their names."""
    folder = Path(__file__).parent.parent
    names = sorted(file.parent.name for file in folder.glob("*/room.py"))
    return tuple(import_module(f"mdlstm_tk.{name}.room").ROOM for name in names)


def of_rooms(attribute: str) -> dict[str, Any]:
    """An attribute of all rooms in one dictionary."""
    return {name: value for room in all_rooms() for name, value in getattr(room, attribute).items()}


def load(place: Any) -> Any:
    """The object of a place "module:attribute" below `mdlstm_tk`. An object that is no text, which a kind
    outside of the package gives, stays as it is.

    Raises:
        MDLSTMError: it is in a room that is not there.
    """
    if not isinstance(place, str):
        return place
    module, attribute = place.split(":")
    room = f"mdlstm_tk.{module.partition('.')[0]}"
    try:
        return getattr(import_module(f"mdlstm_tk.{module}"), attribute)
    except ModuleNotFoundError as error:
        if error.name != room:
            raise
        raise MDLSTMError(
            f"this mdlstm-tk has no {room}, which {attribute} is in; install it whole"
        ) from None
