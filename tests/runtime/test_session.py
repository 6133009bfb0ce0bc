"""`Session` on small models that are computed by hand: axes, padding, batches, and what it refuses."""

from __future__ import annotations

import pickle
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.crafted_models import crafted, node, tensor
from helpers.small_models import classifier, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError
from mdlstm_tk.io.metadata import layout_of
from mdlstm_tk.runtime import Session, ort

RNG = np.random.default_rng(0)
HALVED = [  # to (N, H, W, C) → (N, ⌈H/2⌉, ⌈W/2⌉, C)
    node("Transpose", "x", "planes", perm=[0, 3, 1, 2]),
    node("AveragePool", "planes", "means", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    node("Transpose", "means", "y", perm=[0, 2, 3, 1]),
]


@st.composite
def doubled(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[int, ...]], bool]:
    """The metadata of a model that doubles x, grids that it takes, and whether it takes sizes."""
    ndim, last, padded = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
    grid = draw(st.none() | st.tuples(*[st.none() | st.integers(2, 5)] * ndim))
    of_grid = grid or (None,) * ndim
    extents = [st.integers(1, e or 5) if padded or e is None else st.just(e) for e in of_grid]
    grids = draw(st.lists(st.tuples(*extents), min_size=1, max_size=5))
    channels, integer = draw(st.sampled_from([1, 3])), draw(st.booleans())
    fields = {
        "integer": integer,
        "grid": grid,
        "layout": layout_of(ndim, last),
        "channels": channels,
        "outputs": channels,
        "window": (1,) * ndim,
        "inputs": ("x", "sizes") if padded else ("x",),
        "axes": ndim + 2,
    }
    return fields, grids, padded


@settings(max_examples=60)
@given(case=doubled(), batch_size=st.none() | st.integers(1, 3), data=st.data())
def test_each_array_gets_its_own_answer_in_its_own_axes(
    tmp_path: Path, case: Any, batch_size: int | None, data: Any
) -> None:
    fields, grids, padded = case
    session = Session(write_model(tmp_path / "m.onnx", **fields), "cpu")
    m, arrays = session.metadata, []
    for grid in grids:
        x = RNG.random((data.draw(st.integers(1, 4)), *m.shape_of(grid)), dtype=np.float32)
        x = np.rint(9 * x) if m.integer else x
        x = x if data.draw(st.booleans()) else x[0]  # without the batch axis
        if m.channels == 1 and x.ndim == m.ndim + 1 and data.draw(st.booleans()):
            x = np.squeeze(x, -1 if m.channels_last else 0)
        arrays.append(data.draw(st.sampled_from([x, x.astype(np.float64), np.asfortranarray(x)])))
    together = session.run_many(arrays, batch_size)
    for x, y in zip(arrays, together, strict=True):
        np.testing.assert_array_equal(y, 2 * x.astype(np.float32), strict=True)
        np.testing.assert_array_equal(session(x), y, strict=True)
    if m.integer:
        with pytest.raises(InputError, match="whole"):
            session(x + 0.5)
    if padded:
        x = np.rint(9 * RNG.random((2, *m.shape_of(m.grid_like((4,) * m.ndim))), dtype=np.float32))
        sizes = np.array([[1] * m.ndim, m.grid_of(x.shape)])
        y = session(x, sizes=sizes)
        np.testing.assert_array_equal(y[1], 2 * x[1])
        np.testing.assert_array_equal(y[0][m.region(sizes[0])], 2 * x[0][m.region(sizes[0])])


def spied(session: Session) -> list[tuple[int, ...]]:
    """The shapes of x in the runs of a session, from now on."""
    shapes, graph = [], session.graph

    class Spy:
        dtypes = graph.dtypes

        def __call__(self, feeds: Any) -> Any:
            shapes.append(feeds["x"].shape)
            return graph(feeds)

    session.graph = Spy()  # type: ignore[assignment]
    return shapes


def test_which_samples_share_a_run_depends_on_shapes_alone_and_runs_are_bounded(tmp_path: Path) -> None:
    for order in (range(5), [3, 1, 4, 0, 2]):
        session = Session(write_model(tmp_path / "m.onnx"), "cpu")
        runs, arrays = spied(session), [RNG.random((k % 2 + 2, 3)) for k in range(5)]
        session.run_many([arrays[k] for k in order], batch_size=2)
        assert sorted(runs) == [(1, 2, 3, 1), (2, 2, 3, 1), (2, 3, 3, 1)]
    session = Session(write_model(tmp_path / "m.onnx", inputs=("x", "sizes")), "cpu")
    runs = spied(session)
    session.run_many([np.zeros((300, 300)), *[np.zeros((8, 8))] * 70, np.zeros((300, 300))])
    assert max(n * h * w for n, h, w, _ in runs) <= 64 * 64 * 64
    session.run_many([np.zeros((32, 32))] * 65)
    assert runs[-2:] == [(64, 32, 32, 1), (1, 32, 32, 1)]


@pytest.mark.parametrize("grid", [None, (6, 8)])
def test_padded_outputs_are_cropped_to_their_windows(tmp_path: Path, grid: Any) -> None:
    fields = {"grid": grid, "window": (2, 2), "inputs": ("x", "sizes")}
    session = Session(write_model(tmp_path / "m.onnx", HALVED, **fields), "cpu")
    alone = Session(write_model(tmp_path / "a.onnx", HALVED, window=(2, 2)), "cpu")
    arrays = [RNG.random((h, w), dtype=np.float32) for h, w in [(6, 8), (2, 4), (4, 2), (6, 6), (2, 2)]]
    for x, y in zip(arrays, session.run_many(arrays), strict=True):
        assert y.shape == (ceil(x.shape[0] / 2), ceil(x.shape[1] / 2))
        np.testing.assert_allclose(y, alone(x), atol=1e-6)
    steps = [*HALVED[:2], node("ReduceMean", "means axes", "rows", keepdims=0)]
    steps += [node("Transpose", "rows", "t", perm=[0, 2, 1]), node("MatMul", "t weights", "y")]
    constants = {"axes": np.int64([2]), "weights": np.float32([[1, 0, -1]])}
    fields = {"kind": "transcribe", "classes": ("a", "b"), "window": None, "inputs": ("x", "sizes")}
    path = write_model(
        tmp_path / "r.onnx", steps, constants, outputs=3, axes=3, columns_per_step=2, **fields
    )
    lines = [RNG.random((4, w), dtype=np.float32) for w in (9, 2, 5, 4)]
    assert [len(y) for y in Session(path, "cpu").run_many(lines)] == [5, 1, 3, 2]


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {  # metadata, x, and a word of the reason
    "no channels": ({"channels": 3, "outputs": 3}, np.zeros((4, 4)), "C = 3"),
    "other channels": ({"channels": 3, "outputs": 3}, np.zeros((4, 4, 2)), "C = 3"),
    "too many axes": ({}, np.zeros((1, 1, 4, 4, 1)), "shape"),
    "empty": ({}, np.zeros((0, 4)), "shape"),
    "a batch without channels": ({}, np.zeros((2, 4, 4)), r"x\[..., None\]"),
    "another grid": ({"grid": (8, 8)}, np.zeros((4, 6)), "--size 4x6"),
    "one extent": ({"grid": (8, None)}, np.zeros((7, 9)), "8x\\*"),
    "larger than padded": ({"grid": (8, 8), "inputs": ("x", "sizes")}, np.zeros((9, 8)), "8x8"),
    "too small": ({"min_grid": (3, 3)}, np.zeros((2, 9)), "3x3"),
    "no multiple": ({"multiple_of": (4, 1)}, np.zeros((6, 5)), "4x1"),
    "NaN": ({}, np.full((4, 4), np.nan), "NaN"),
    "infinity": ({}, np.full((4, 4), np.inf), "infinity"),
    "beyond float32": ({}, np.full((4, 4), 1e39), "float32"),
    "beyond float16": ({"dtype": "float16"}, np.full((4, 4), 70000.0), "65504"),
    "fractions": ({"integer": True}, np.full((4, 4), 0.5), "whole"),
    "tokens beyond float32": ({"integer": True}, np.full((4, 4), 2**24 + 1), "whole"),
    "complex": ({}, np.zeros((4, 4), complex), "complex"),
    "texts": ({}, np.full((4, 4), "1"), "U1"),
    "objects": ({}, np.full((4, 4), None), "object"),
    "masked": ({}, np.ma.masked_equal(np.eye(4), 1), "masked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_array_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    fields, x, word = REFUSED[name]
    session = Session(write_model(tmp_path / "m.onnx", **fields), "cpu")
    with pytest.raises(InputError, match=word) as refused:
        session(x)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "sizes", [[[0, 1]], [[5, 1]], [[1, 1], [1, 1]], [[1.5, 1]], [[-1, 1]], [1, 1], [[2, 3]], [[3, 2]]]
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, sizes: Any) -> None:
    fields = {"inputs": ("x", "sizes"), "multiple_of": (1, 2), "min_grid": (1, 4)}
    session = Session(write_model(tmp_path / "m.onnx", **fields), "cpu")
    with pytest.raises(InputError):
        session(np.zeros((1, 4, 4, 1)), sizes=sizes)
    assert session(np.zeros((1, 4, 4, 1)), sizes=[[2, 4]]).shape == (1, 4, 4, 1)
    plain = Session(write_model(tmp_path / "p.onnx"), "cpu")
    with pytest.raises(InputError, match="--padded"):
        plain(np.zeros((1, 4, 4, 1)), sizes=[[2, 4]])


IMAGES = {"preprocessing": {"channels": 1, "resize": None}}


@pytest.mark.parametrize(
    ("fields", "low", "high", "warns"),
    [
        (IMAGES, 0, 1, False),
        (IMAGES, -0.1, 1.2, False),
        (IMAGES, 0, 255, True),
        (IMAGES, 0, 251.5, True),
        (IMAGES, -1, 1, True),
        ({**IMAGES, "unit_range": False}, 0, 255, False),
        ({"x_range": (-3, 3)}, -4, 5, False),
        ({"x_range": (-3, 3)}, 0, 7, True),
        ({"x_range": (-3, 3)}, -7, 0, True),
        ({}, -1e6, 1e6, False),
    ],
)
def test_numbers_far_outside_of_training_are_warned_of(
    tmp_path: Path, fields: dict[str, Any], low: float, high: float, warns: bool
) -> None:
    session = Session(write_model(tmp_path / "m.onnx", **fields), "cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = session(np.linspace(low, high, 16).reshape(4, 4))
    assert bool(caught) == warns
    np.testing.assert_allclose(y.max(), 2 * high, rtol=1e-6)


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path) -> None:
    fields = {"inputs": ("x", "z"), "output_names": ("y", "twice"), "further_windows": ((1, 1),)}
    session = Session(write_model(tmp_path / "m.onnx", [node("Add", "x z", "y")], **fields), "cpu")
    x, z = RNG.random((2, 3, 3, 3, 1)).astype(np.float32)
    outputs = session(x, z=z)
    assert [*outputs] == ["y", "twice"]
    np.testing.assert_array_equal(outputs["twice"], x + z)
    np.testing.assert_array_equal(session(x[0, ..., 0], z=z[0])["y"], (x + z)[0, ..., 0])
    for wrong in ({}, {"z": z, "w": z}, {"z": z[:1]}, {"z": z.astype(complex)}):
        with pytest.raises(InputError):
            session(x, **wrong)
    with pytest.raises(MDLSTMError, match="ONNX Runtime"):
        session(x, z=z[:, :2])
    session = Session(write_model(tmp_path / "m.onnx", channel_axis=False), "cpu")
    assert session(np.ones((2, 3, 4))).shape == (2, 3, 4, 1)
    assert session(np.ones((3, 4))).shape == (3, 4, 1)


def test_sessions_are_pickled_and_called_from_threads(tmp_path: Path) -> None:
    session = Session(classifier(tmp_path / "m.onnx"), "cpu", threads=2)
    copy = pickle.loads(pickle.dumps(session))
    arrays = [RNG.random((8, k + 1)) for k in range(20)]
    with ThreadPoolExecutor(4) as executor:
        for y, x in zip(executor.map(copy, arrays), arrays, strict=True):
            np.testing.assert_array_equal(y, session(x))


NO_MODEL: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, r"m\.onnx"),
    "empty": (b"", r"m\.onnx"),
    "text": (b"no model", r"m\.onnx"),
    "cannot be loaded": (crafted([node("Neg", "missing", "y")]).SerializeToString(), "ONNX Runtime"),
    "other inputs": (crafted(inputs='["x", "sizes"]').SerializeToString(), "export it again"),
    "other outputs": (crafted(output_names='["z"]').SerializeToString(), "export it again"),
    "an older schema": (crafted(schema="1").SerializeToString(), "export it again"),
}


@pytest.mark.parametrize("name", NO_MODEL)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    content, word = NO_MODEL[name]
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=word):
        Session(tmp_path / "m.onnx", "cpu")


def test_an_output_that_contradicts_the_metadata_is_an_error(tmp_path: Path) -> None:
    session = Session(write_model(tmp_path / "m.onnx", outputs=3), "cpu")
    with pytest.raises(MDLSTMError, match="contradicts"):
        session(np.zeros((2, 2)))


def test_asking_for_cuda_without_it_is_an_error(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    path = write_model(tmp_path / "m.onnx")
    assert Session(path).device == "cpu"
    with pytest.raises(DeviceError, match="--device cpu"):
        Session(path, "cuda:1")
    for wrong in ("gpu", "cuda:", "cuda:x", ""):
        with pytest.raises(InputError, match="device"):
            Session(path, wrong)


def test_ctrl_c_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Expand", "x shape", "big")]
    for k in range(400):
        nodes.append(node("Sin", nodes[-1].output[0], f"t{k}"))
    nodes += [node("ReduceMax", "t399", "m", keepdims=0), node("Add", "x m", "y")]
    model = crafted(nodes, [tensor("shape", [1, 1000, 1000, 1])], shape=(None, 1, 1, 1), grid="[1, 1]")
    session = Session(model.SerializeToString(), "cpu")
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(ort, "LONG_VALUES", 0)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session(np.ones((1, 1, 1, 1)))
