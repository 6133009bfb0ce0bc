"""The page that `export --web` writes, as its tests use it: open it, give it grids, read its numbers."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from playwright.sync_api import Browser, expect

from helpers.browser import DESKTOP, PATIENCE, Tab, opened, served
from mdlstm_tk.export.browser.build import write_page
from mdlstm_tk.export.browser.examples import PageExample
from mdlstm_tk.runtime import Metadata

GRID = (5, 8)
ATOL = 1e-5


def show(tab: Tab, address: str) -> None:
    """Open the page, wait until it has predicted, and unfold its numbers."""
    tab.open(address)
    expect(tab.page.locator("#message")).to_contain_text(" ms ", timeout=PATIENCE * 1000)
    tab.page.locator("summary").click()
    expect(tab.page.locator("pre")).not_to_be_empty()


@contextmanager
def page_of(
    model: Path,
    browser: Browser,
    runtime: dict[str, bytes],
    folder: Path,
    examples: Sequence[PageExample] = (),
) -> Iterator[Tab]:
    """The page of a model in a tab, which afterwards must have complained of nothing."""
    write_page(model, folder, "a model", runtime, examples)
    with served(folder) as address, opened(browser, **DESKTOP) as tab:
        show(tab, address)
        yield tab
        assert tab.errors == []


def numbers(tab: Tab) -> np.ndarray[Any, Any]:
    """The prediction, as the page prints it."""
    return np.loadtxt(io.StringIO(tab.text("pre")), delimiter=",", dtype=np.float32, ndmin=2)


def check_prediction(tab: Tab, expected: np.ndarray[Any, Any]) -> None:
    """Wait until the page has predicted this."""
    end = time.monotonic() + PATIENCE
    while True:
        got = numbers(tab)
        if got.shape == expected.shape and np.abs(got - expected).max() <= ATOL:
            return
        if time.monotonic() > end:
            np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL, err_msg=tab.text("#message"))
        tab.page.wait_for_timeout(20)


def give(tab: Tab, path: Path, array: np.ndarray[Any, Any]) -> None:
    """Save an array as .npy and choose that file in the page."""
    np.save(path, array)
    tab.page.set_input_files("#file", path)


def matrix(seed: int = 0, grid: tuple[int, ...] = GRID) -> np.ndarray[Any, Any]:
    """Random numbers from 0 to 1."""
    return np.random.default_rng(seed).random(grid)


def craft(path: Path, grid: tuple[int, ...] | None, **properties: Any) -> Path:
    """Save a model whose three channels can be told apart: y = 2x + (0, 1, 2).

    With the input `sizes`, their sum is added. The output is strided by `window`; where that is None, it is
    the mean over the grid, or over the rows if the kind is "transcribe". A kind with classes leaves out the
    (0, 1, 2), so that x decides.
    """
    kind = properties.get("kind")
    properties.setdefault("classes", ("cat", "<i>dog", "owl"))
    metadata = Metadata("0", grid, "scan", "N H W C", 3, 3, task="animals", **properties)
    area = [*(grid or ("H", "W"))]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *area, 3])]
    axes = np.array([1] if kind == "transcribe" else [1, 2])
    constants = {"offset": np.array([0, 0, 0] if kind else [0, 1, 2], np.float32), "axes": axes}
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"])]
    nodes.append(helper.make_node("Add", ["twice", "offset"], ["sum"]))
    if "sizes" in metadata.inputs:
        inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]))
        nodes.append(helper.make_node("ReduceSum", ["sizes"], ["total"], keepdims=0))
        nodes.append(helper.make_node("Cast", ["total"], ["float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", ["sum", "float"], ["more"]))
    whole = nodes[-1].output[0]
    shape: list[object] = ["batch", *area, 3]
    if metadata.window is None:
        nodes.append(helper.make_node("ReduceMean", [whole, "axes"], ["y"], keepdims=0))
        shape = ["batch", "T", 3] if kind == "transcribe" else ["batch", 3]
    else:
        constants |= {"start": np.array([0, 0]), "step": np.array(metadata.window)}
        constants["end"] = np.array([1 << 30, 1 << 30])
        nodes.append(helper.make_node("Slice", [whole, "start", "end", "axes", "step"], ["y"]))
        shape = ["batch", "Y", "X", 3]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "crafted", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata.to_props())
    onnx.save(model, str(path))
    return path
