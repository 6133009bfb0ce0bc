"""`Session`: results, types, errors, threads, interrupts and copies."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.crafted_models import INT64, crafted, info, node, scanning, tensor, with_large_intermediate
from helpers.isolation import kill_during, power
from helpers.small_models import write_model

from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime import Session, describe_model, load_array, save_array

RNG = np.random.default_rng(0)
X = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)


def test_shapes_and_dtypes(model: Path) -> None:
    session = Session(model, "cpu")
    x = RNG.random((5, 8, 8, 1), dtype=np.float32)
    y = session(x)
    assert (y.shape, y.dtype) == ((5, 8, 8, 1), np.float32)
    np.testing.assert_allclose(session(x[0]), y[0], atol=1e-6)
    np.testing.assert_allclose(session(x[0, ..., 0]), y[0, ..., 0], atol=1e-6)
    assert session(x[0]).shape == (8, 8, 1)
    assert session(x[0, ..., 0]).shape == (8, 8)
    assert (session.device, session.provider) == ("cpu", "CPUExecutionProvider")
    for dtype in (np.float64, np.float16, np.int32, np.uint8, bool):
        np.testing.assert_array_equal(session(np.eye(8).astype(dtype)), session(np.eye(8)))


def token_model() -> bytes:
    """y is x + 1 for integers x, on grids of any size."""
    nodes = [node("Cast", "x", "f", to=1), node("Add", "f one", "y")]
    one, shape = tensor("one", 1.0, np.float32), (None, 2, None, 1)
    model = crafted(nodes, [one], shape=shape, x_type=INT64, grid="[2, null]", form='"scan"')
    return model.SerializeToString()


def test_integers_and_one_free_extent() -> None:
    session = Session(token_model(), "cpu")
    for width in (1, 5):
        x = RNG.integers(0, 9, (3, 2, width, 1))
        np.testing.assert_array_equal(session(x), x + 1)
        np.testing.assert_array_equal(session(x.astype(np.uint8)), x + 1)
        np.testing.assert_array_equal(session(x.astype(np.float64)), x + 1)
    with pytest.raises(InputError, match="takes whole numbers"):
        session(np.full((2, 2), 0.5))
    with pytest.raises(InputError, match=r"x has a 3x2 grid, which does not fit this 2x\* model"):
        session(np.zeros((3, 2), int))
    with pytest.raises(InputError, match="free extents"):
        session.warm_up()
    session.warm_up(grid=(2, 7))


def test_files_that_are_no_models_and_invalid_arguments(model: Path, tmp_path: Path) -> None:
    foreign = onnx.load(model)
    foreign.ClearField("metadata_props")
    (tmp_path / "folder.onnx").mkdir()
    for name, data, message in (
        ("none.onnx", None, "there is no model"),
        ("folder.onnx", None, "not a regular file"),
        ("broken.onnx", model.read_bytes()[:1000], "malformed"),
        ("foreign.onnx", foreign.SerializeToString(), "was not exported"),
        ("m.tiles", b"PK", "open it with mdlstm_tk.runtime.TiledSession"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=message) as error:
            Session(path, "cpu")
        assert name in str(error.value)
    with pytest.raises(InputError, match="'gpu'"):
        Session(model, "gpu")
    for threads in (-1, 10**6):
        with pytest.raises(InputError, match="threads must be from 1 to"):
            Session(model, "cpu", threads=threads)
    for timeout in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="timeout must be"):
            Session(model, "cpu", timeout=timeout)
    session = Session(model, "cpu")
    for max_bytes in (-1, 0, 10**30):
        for call in (describe_model, load_array, Session, lambda *_, **options: Session(b"", **options)):
            with pytest.raises(InputError, match=f"max_bytes={max_bytes} is out of range"):
                call(model, max_bytes=max_bytes)
    for arrays in (None, 3, "ab", {"a": X}):
        with pytest.raises(InputError, match="arrays must be a list"):
            session.run_many(arrays)  # type: ignore[arg-type]
    for batch, grid in ((0, (8, 8)), (1, (8,)), (1, (-1, 8))):
        with pytest.raises(InputError, match="batch must be at least 1 and grid 2 positive extents"):
            session.warm_up(batch, grid)


@pytest.mark.parametrize("x_type", [onnx.TensorProto.STRING, onnx.TensorProto.BFLOAT16])
def test_graphs_of_other_than_numbers_of_numpy_are_refused(x_type: int) -> None:
    cast = [node("Cast", "x", "y", to=onnx.TensorProto.FLOAT)]
    with pytest.raises(InputError, match=r"'x' of the model holds [bs].*, expected real numbers"):
        Session(crafted(cast, x_type=x_type).SerializeToString(), "cpu")


def test_timeout_stops_an_endless_loop() -> None:
    endless = scanning(node("Add", "v two", "v_out"), rows=10**9, width=0)  # takes no memory
    session = Session(endless.SerializeToString(), "cpu", timeout=0.3)
    for _ in range(2):
        with pytest.raises(StoppedError, match=r"0\.3 s; allow more with timeout="):
            session(X)


def test_an_interrupt_stops_a_run_of_the_main_thread() -> None:
    """A product of 1000×1000 matrices takes some 30 ms, all of them together longer than a test may."""
    session = Session(power(20_000), "cpu")
    with pytest.raises(KeyboardInterrupt):
        kill_during(lambda: session(np.ones((1000, 1000), np.float32)), os.getpid, signal.SIGINT)
    np.testing.assert_array_equal(session(np.eye(2)), 1 + np.eye(2))


def test_an_interrupted_run_ends_before_the_interpreter_does() -> None:
    """A thread that came back from ONNX Runtime while the interpreter ends would abort the process."""
    code = """if True:
        import os, signal, threading, time, numpy
        from mdlstm_tk.runtime.runner import INTERRUPTIBLE_VALUES, _outputs
        class Options:
            terminate = False
        def run(feeds, options):  # as a long operator, it cannot be stopped
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(1.5)
            print("ended", options.terminate, flush=True)
        try:
            _outputs(run, {"x": numpy.zeros(INTERRUPTIBLE_VALUES)}, Options())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted\nended True\n"


def test_runs_that_need_too_much_memory_end_in_an_error(tmp_path: Path) -> None:
    """The limit is set once for each process, so it is tested in another one, where it is small."""
    with pytest.raises(StoppedError, match=r"needs more memory than there is; .*tiles"):
        Session(with_large_intermediate(10**12).SerializeToString(), "cpu")(X)
    (tmp_path / "m.onnx").write_bytes(with_large_intermediate(2**26).SerializeToString())
    code = """if True:
        import sys, numpy
        from mdlstm_tk.errors import MDLSTMError
        from mdlstm_tk.runtime import Session, providers
        providers.MEMORY_SHARE = int(sys.argv[1]) * 2**20 / providers.available_memory()
        try:
            print(Session("m.onnx", "cpu")(numpy.ones((2, 2))).tolist())
        except MDLSTMError as error:
            print(error)
    """

    def run(megabytes: int) -> str:
        command = [sys.executable, "-c", code, str(megabytes)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "needs more memory than there is; " in run(100)
    assert run(600).strip() == "[[1.0, 1.0], [1.0, 1.0]]"


def test_further_inputs_are_checked_by_name() -> None:
    model = crafted([node("Add", "x k", "y")], inputs='["x", "k"]')
    model.graph.input.append(info("k", shape=(None, 1, 1, 1)))
    session = Session(model.SerializeToString(), "cpu")
    k = np.ones((2, 1, 1, 1))
    np.testing.assert_array_equal(session(X, k=k), X + 1)
    for arguments, message in (
        ({}, r"inputs of this model are k; got none; give them by name, as in session\(x, k=…\)"),
        ({"k": k, "z": k}, "got k, z"),
        ({"k": k[:1]}, "k must have the batch of x, 2"),
        ({"k": 1.0}, r"k must have the batch of x, 2; got shape \(\)"),
        ({"k": k * np.inf}, "k holds 2 NaN or infinite"),
    ):
        with pytest.raises(InputError, match=message):
            session(X, **arguments)
    with pytest.raises(InputError, match="takes no sizes"):
        session(X, sizes=np.ones((2, 2), int), k=k)


def test_arrays_pass_through_the_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.random((3, 4), dtype=np.float32)
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    save_array("-", x)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stream.buffer.getvalue())))
    np.testing.assert_array_equal(load_array("-"), x)


def test_threads_may_share_a_session_and_close_it(model: Path) -> None:
    session = Session(model, "cpu", timeout=60)
    inputs = RNG.random((8, 64, 8, 8, 1), dtype=np.float32)
    expected = [session(x) for x in inputs]

    def run(k: int) -> str:
        try:
            np.testing.assert_array_equal(session(inputs[k % 8]), expected[k % 8])
        except MDLSTMError as error:
            return str(error)
        return "ran"

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(run, range(400))
        assert next(results) == "ran"
        session.close()
        errors = set(results) - {"ran"}
        assert len(errors) == 1 and "closed" in errors.pop()


def test_threads_copies_and_warm_up_change_no_number(model: Path) -> None:
    x = RNG.random((3, 8, 8, 1), dtype=np.float32)
    expected = Session(model, "cpu")(x)
    for threads in (0, 1, 2):
        with Session(model, "cpu", threads=threads, timeout=60) as session:
            session.warm_up()
            session.warm_up(3)
            np.testing.assert_allclose(session(x), expected, atol=1e-6)
            copy = pickle.loads(pickle.dumps(session))
        np.testing.assert_allclose(copy(x), expected, atol=1e-6)  # the first one is closed
        assert copy.metadata == session.metadata


def test_a_model_with_further_inputs_is_not_warmed_up_with_zeros(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", [node("Add", "x m", "y")], inputs=("x", "m"), grid=(4, 4))
    with (
        Session(path, "cpu") as session,
        pytest.raises(InputError, match=r"takes m, too; .*call it on"),
    ):
        session.warm_up()


def test_a_model_that_needs_trust_is_described_without_being_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(crafted([node("RandomUniformLike", "x", "y")]).SerializeToString())
    with pytest.raises(InputError, match="trusted=True"):
        Session(path, "cpu")
    description = describe_model(path)
    assert (description["bytes"], description["form"]) == (path.stat().st_size, "unrolled")
