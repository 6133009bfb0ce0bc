"""The outputs of a network, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mdlstm_tk.errors import InputError


def named_outputs(result: Any, network: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """What a network returned, as tensors by name.

    Args:
        result: a tensor, or a tuple, list or dict of tensors.
        network: what error messages call the network.
        names: names of the outputs. None: the keys of a dict, the fields of a named tuple, else "y", "y1",
            "y2", …

    Raises:
        InputError: `result` is of another type, or `names` has another length, or two names are equal.
    """
    values: list[Any]
    if isinstance(result, Mapping):
        own_names, values = [str(key) for key in result], list(result.values())
    elif isinstance(result, tuple | list):
        values = list(result)
        own_names = list(getattr(result, "_fields", [output_name(k) for k in range(len(values))]))
    else:
        own_names, values = [output_name(0)], [result]
    names = own_names if names is None else list(names)
    if len(names) != len(values):
        raise InputError(
            f"{network} returns {len(values)} outputs ({', '.join(own_names)}), but output_names has "
            f"{len(names)}: {', '.join(names)}"
        )
    if len(set(names)) < len(names) or not all(names):
        raise InputError(
            f"the outputs of {network} need different names, got {', '.join(map(repr, names))}; "
            "give them as output_names="
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            raise InputError(
                f"{network} returns a {type(value).__name__} as output '{name}', expected a tensor, or a "
                "tuple, list or dict of tensors; wrap it in a module that returns that"
            )
    if not values:
        raise InputError(f"{network} returns no output, expected at least one tensor")
    return dict(zip(names, values, strict=True))


def output_name(index: int) -> str:
    """The name of an output that has none of its own: "y", "y1", "y2", …"""
    return f"y{index}" if index else "y"
