"""The numbers by which a kind turns outputs into answers, such as a threshold: training chooses them on the
validation data, and they are kept in the folder of a run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING

from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.training.run_folder import Run

DECODING_FILE = "decoding.json"  # of a run


def read_decoding(run: Run, defaults: Mapping[str, float], step: int | None) -> dict[str, float]:
    """The numbers that were chosen when the training of a run last ended; the defaults if there are none.

    Args:
        run: has been trained.
        defaults: by name.
        step: of the weights that they are for; a warning says if they were chosen for others, or never.

    Raises:
        InputError: the file holds something else.
    """
    path = run.folder / DECODING_FILE
    values = run.read_json(path)
    chosen = values.pop("step", None)
    if step not in (None, chosen):
        state = f"was calibrated at step {chosen}" if values else "has not been calibrated"
        warnings.warn(
            f"{run.folder} {state}, and its weights are of step {step}, so answers and confidences may be "
            "wrong; let its training end",
            stacklevel=3,
        )
    try:
        numbers = {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError, OverflowError):
        numbers = {"": 0.0}
    if not (numbers.keys() <= defaults.keys() and all(map(isfinite, numbers.values()))):
        raise InputError(f"{path} holds no decoding; delete it to use the default")
    return {**defaults, **numbers}


def write_decoding(run: Run, values: Mapping[str, float], step: int) -> None:
    """Write `decoding.json`, for the weights of a step."""
    run.write(run.folder / DECODING_FILE, json.dumps({**values, "step": step}) + "\n")
