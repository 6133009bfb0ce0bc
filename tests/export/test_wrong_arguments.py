"""Arguments of export and of own cells, with wrong types and values: one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.networks import Function

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx, export_run, float64_reference, lower, verify_model
from mdlstm_tk.export.run_export import export_run_sizes

NO_RANGE = [(1, 0), "ab", 3, (float("nan"), 1), (1,), (-1.7e308, 1.7e308)]
NO_FLAG = ["yes", 2, None, 0.5]
NO_COUNT = [1.5, "a", -1, [1], True, float("nan")]
NO_NAMES = [3, [1], [None], 0.5]
NO_NUMBER = ["a", [1], True, float("nan"), -1.0]
NO_PATH = [3, None, [1], 0.5]
NO_MAPPING = [3, "ab", [1, 2]]
NO_EXTENTS = ["ab", (0, 1), (2.5, 3), 3.5, [(1, 2)], ("a", 1), (-1, 4), (float("nan"), 2)]
RAGGED = [[1.0, 2.0], [3.0]]
META = torch.zeros(1, 3, 4, 1, device="meta")
# NumPy refuses others itself
NO_ARRAY = [None, "ab", {"x": 1}, object(), np.complex64(1), bytearray(b"ab"), []]
NO_TENSORS = [3, "ab", RAGGED, {"x": 1}, np.zeros((1, 3, 4, 1)), META, [], [None], [torch.zeros(2), 3]]
OF_EXPORT: dict[str, list[Any]] = {
    "path": [3, [1], 0.5],
    "grid": [*NO_EXTENTS, 3, ()],
    "form": ["loop", 3, []],
    "padded": NO_FLAG,
    "multiple_of": [0, *NO_EXTENTS, (1, 2, 3)],
    "dtype": ["float64", torch.float32, None, 3],
    "atol": NO_NUMBER,
}
TRACED = torch.jit.trace(MDLSTM(1, 2).eval(), torch.zeros(1, 3, 4, 1))


def filled_with(value: Any) -> Callable[..., Any]:
    return lambda shape, generator: np.full(shape, value)


ARGUMENTS: dict[str, dict[str, list[Any]]] = {
    "export_onnx": {
        **OF_EXPORT,
        "module": [3, None, "net", lambda x: x, MDLSTM, torch.nn.LazyLinear(3), TRACED],
        "path": NO_PATH,
        "example_inputs": NO_TENSORS,
        "extra_inputs": [*NO_MAPPING, {"h": [1.0]}, {1: torch.zeros(1)}, {"h": META}],
        "grid_inputs": [*NO_NAMES, ["no"], None],
        "output_names": [*NO_NAMES, "y", ["y", "y"], [""]],
        "channels": [*NO_COUNT, 0],
        "channels_last": ["yes", 2, 0.5],
        "example_range": [*NO_RANGE, lambda shape, generator: None, *map(filled_with, ("a", 1j))],
        "verify_inputs": [
            *NO_MAPPING,
            *({name: np.zeros((1, 3, 4, 1))} for name in ("example_inputs", "3x4, random × 1, seed 0")),
        ],
        "metadata": [*NO_MAPPING, {"classes": 3}],
    },
    "export_run": {**OF_EXPORT, "run": NO_PATH, "force": NO_FLAG},
    "export_run_sizes": {"grids": [[], 3, "ab", None]},
    "float64_reference": {"module": [3, None, "net", TRACED]},
    "reference": {"x": NO_ARRAY},
    "lower": {"model": [*NO_PATH, "m.onnx"], "form": ["loop", 3, ["scan"]]},
    "verify_model": {
        "device": ["gpu", 3, None, torch.device("cpu")],
        "trusted": NO_FLAG,
        "model": NO_PATH,
        "against": [3, 0.5, [1], {}],
        "inputs": [3, "ab", [1], {}, [], *({"inputs": value} for value in NO_ARRAY)],
        "example_range": NO_RANGE,
        "seeds": [*NO_COUNT, 0],
        "seed": NO_COUNT,
    },
}


@pytest.fixture(scope="module")
def calls(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    """Calls that succeed, but for what the argument that is given spoils."""
    folder = tmp_path_factory.mktemp("arguments")
    x = np.zeros((1, 3, 4, 1), np.float32)

    def with_defaults(call: Callable[..., Any], **defaults: Any) -> Callable[..., Any]:
        return lambda **arguments: call(**{**defaults, **arguments})

    return {
        "export_onnx": with_defaults(export_onnx, module=Function(), path=folder / "m.onnx", grid=(3, 4)),
        "export_run": with_defaults(export_run, run=model.parent, path=folder / "run.onnx"),
        "export_run_sizes": with_defaults(export_run_sizes, run=model.parent, grids=[None]),
        "float64_reference": lambda module: float64_reference(module)(x),
        "reference": float64_reference(MDLSTM(1, 2)),
        "lower": with_defaults(lower, model=onnx.load(model)),
        "verify_model": with_defaults(verify_model, model=model, device="cpu", seeds=1),
    }


def wrong() -> Iterator[Any]:
    for function, arguments in ARGUMENTS.items():
        for argument, values in arguments.items():
            yield pytest.param(function, argument, values, id=f"{function}-{argument}")


@pytest.mark.parametrize(("function", "argument", "values"), [*wrong()])
def test_a_wrong_argument_is_named_in_one_line(
    function: str, argument: str, values: list[Any], calls: dict[str, Callable[..., Any]]
) -> None:
    failures = []
    for value in values:
        given = {argument: value}
        if argument == "example_inputs":
            given["grid"] = None
        text = f"{argument}={str(value)[:60]}"
        try:
            calls[function](**given)
        except MDLSTMError as error:
            message = str(error)
            if argument not in message or "\n" in message:
                failures.append(f"{text}: {message}")
        except Exception as error:
            failures.append(f"{text}: {type(error).__name__}: {str(error)[:300]}")
        else:
            failures.append(f"{text}: accepted")
    assert not failures, "\n".join(failures)
