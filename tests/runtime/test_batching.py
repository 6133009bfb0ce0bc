"""`mdlstm_tk.runtime.batching`: which arrays share a run, and how many files are in memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.crafted_models import node
from helpers.small_models import write_model

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime import Metadata, Result, Session, batching
from mdlstm_tk.runtime.batching import MAX_STOPS, _outputs_of, infer_files, run_batches
from mdlstm_tk.runtime.io.readers import InputFile, read_input
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.shapes import grid_of

RNG = np.random.default_rng(0)
ANY = Metadata("0", None, "scan", "N H W C", 1, 1)
PADDED = replace(ANY, inputs=("x", "sizes"))


class Recorder:
    """A session that doubles x of at least 0, and records the samples of each run and their padded grid."""

    def __init__(self, metadata: Metadata = ANY) -> None:
        self.metadata = metadata
        self.runs: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, x: Any) -> Any:
        return self.run_many([x])[0]

    def run_many(self, arrays: list[Any]) -> list[Any]:
        if any(x.ndim not in (2, 3, 4) or x.min() < 0 for x in arrays):
            raise InputError(f"one of {len(arrays)} is no grid")
        grids = [grid_of(x.shape, self.metadata) for x in arrays]
        assert "sizes" in self.metadata.inputs or len(set(grids)) == 1
        padded = tuple(np.max(grids, axis=0).tolist())
        self.runs.append((padded, sum(len(x) if x.ndim == 4 else 1 for x in arrays)))
        return [x * 2 for x in arrays]

    def run(self, arrays: dict[int, Any], batch_size: int | None = None) -> dict[int, Any]:
        return dict(run_batches(self, arrays.items(), batch_size))  # type: ignore[arg-type]


def test_arrays_of_one_shape_share_runs() -> None:
    shapes = [(1, 1), (1, 7), (7, 1), (5, 8), (5, 8, 1), (2, 5, 8, 1), (9, 5, 8, 1), (3,)]
    arrays = {number: RNG.random(shapes[number % len(shapes)]) for number in range(3 * len(shapes))}
    session = Recorder()
    results = session.run(arrays, batch_size=4)
    assert set(results) == set(arrays)
    for tag, x in arrays.items():
        if x.ndim == 1:
            assert "one of 1" in str(results[tag])
        else:
            np.testing.assert_array_equal(results[tag], x * 2, strict=True)
    assert session.runs.count(((1, 7), 3)) == 1
    assert sum(samples for grid, samples in session.runs if grid == (5, 8)) == 3 * (1 + 1 + 2 + 9)
    assert max(samples for _, samples in session.runs) == 4
    results = session.run({0: np.zeros((2, 2)), 1: np.full((2, 2), -1), 2: np.ones((2, 2))})
    assert isinstance(results[1], InputError)  # alone: the others of its run have results
    np.testing.assert_array_equal(results[2], np.full((2, 2), 2))


def test_an_array_without_a_grid_does_not_fail_those_that_are_padded() -> None:
    results = Recorder(PADDED).run({0: np.zeros(3), 1: np.ones((2, 2)), 2: np.zeros((1, 1, 1, 2, 2))})
    assert isinstance(results[0], InputError) and isinstance(results[2], InputError)
    np.testing.assert_array_equal(results[1], np.full((2, 2), 2))


@pytest.mark.parametrize(
    ("metadata", "shapes", "runs"),
    [
        (ANY, [(256, 256)] * 9, [4, 4, 1]),
        (ANY, [(9, 256, 256, 1)], [4, 4, 1]),
        (ANY, [(8, 8)] * 65, [64, 1]),
        (PADDED, [(1024, 1024)] * 3, [1, 1, 1]),
        (PADDED, [(256, 256), (8, 8), (256, 256), (8, 8), (9, 9)], [4, 1]),
        (replace(PADDED, grid=(256, 256)), [(8, 8)] * 9, [4, 4, 1]),
    ],
    ids=["many", "one array", "small", "padded", "padded to the largest", "padded to the model"],
)
def test_the_positions_of_a_run_are_bounded(
    metadata: Metadata, shapes: list[tuple[int, ...]], runs: list[int]
) -> None:
    session = Recorder(metadata)
    session.run({k: np.zeros(shape) for k, shape in enumerate(shapes)})
    assert [samples for _, samples in session.runs] == runs


def test_a_model_that_is_stopped_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise StoppedError("too slow", "time")

    monkeypatch.setattr(Recorder, "run_many", stop)
    with pytest.raises(StoppedError, match=f"{MAX_STOPS} runs in a row.*too slow"):
        Recorder().run({k: np.zeros((2, 2)) for k in range(9)}, batch_size=1)


@pytest.mark.parametrize(("chunk", "limit"), [(4, 2**28), (10**6, 3 * 256)], ids=["files", "bytes"])
def test_memory_holds_few_chunks_whatever_the_number_of_files(
    chunk: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = most = done = 0

    def read(source: str) -> InputFile:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return InputFile(source, {None: np.zeros((8, 8), np.float32)})

    monkeypatch.setattr(batching, "CHUNK", chunk)
    monkeypatch.setattr(batching, "CHUNK_BYTES", limit)
    jobs = [Job(f"{n}.npy", str(tmp_path / f"{n}.out.npy"), "npy") for n in range(50)]
    session: Any = Recorder()
    for done, result in enumerate(infer_files(session, jobs, read), start=1):
        assert result == Result(jobs[done - 1])
        held -= 1
    assert done == 50
    assert most <= 3 * 4  # one in use, one read ahead, one being read


def masked(path: Path) -> Path:
    """A model of two inputs: y = x · mask."""
    return write_model(path, [node("Mul", "x mask", "y")], inputs=("x", "mask"))


def padded(path: Path) -> Path:
    """A model that takes padded samples: y = 2 x."""
    return write_model(path, inputs=("x", "sizes"))


def run_file(model: Path, source: Path) -> tuple[Result, Path]:
    """Run a model on a file; returns the result, and where it is written."""
    target = source.with_name("y.npz")
    with Session(model, "cpu") as session:
        (result,) = infer_files(session, [Job(str(source), str(target), "npz")], read_input)
    return result, target


def test_the_arrays_of_a_file_go_to_the_inputs_of_their_names(tmp_path: Path) -> None:
    x, mask = RNG.random((2, 70, 3, 4, 1), dtype=np.float32)
    np.savez(tmp_path / "x.npz", mask=mask, x=x)
    result, target = run_file(masked(tmp_path / "m.onnx"), tmp_path / "x.npz")
    assert result.error is None
    np.testing.assert_array_equal(np.load(target)["y"], x * mask)
    np.savez(tmp_path / "x.npz", x=x[:2], sizes=np.array([[3, 4], [1, 2]]))
    result, target = run_file(padded(tmp_path / "p.onnx"), tmp_path / "x.npz")
    assert result.error is None
    inside = np.zeros_like(x[:2])  # what lies outside of the sizes counts as zeros
    inside[0], inside[1, :1, :2] = x[0], x[1, :1, :2]
    np.testing.assert_array_equal(np.load(target)["y"], inside * 2)
    np.savez(tmp_path / "x.npz", a=x, b=x[0])  # other names: each array by itself
    result, target = run_file(padded(tmp_path / "p.onnx"), tmp_path / "x.npz")
    assert {name: y.shape for name, y in np.load(target).items()} == {"a": x.shape, "b": x[0].shape}


def test_a_file_whose_further_input_does_not_fit_leaves_the_others_to_run(tmp_path: Path) -> None:
    x = np.ones((3, 4, 1), np.float32)
    for name, mask in {"a": x, "b": x[0, 0], "c": x}.items():
        np.savez(tmp_path / f"{name}.npz", x=x, mask=mask)
    jobs = [Job(str(tmp_path / f"{name}.npz"), str(tmp_path / f"{name}.out.npz"), "npz") for name in "abc"]
    with Session(masked(tmp_path / "m.onnx"), "cpu") as session:
        errors = {Path(each.job.source).stem: each.error for each in infer_files(session, jobs, read_input)}
    assert errors["a"] is errors["c"] is None and "b.npz: mask must have the shape" in str(errors["b"])


def test_a_sample_is_not_padded_beyond_the_limit(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", inputs=("x", "sizes"), grid=(2**20, 2**20))
    with pytest.raises(InputError, match=r"padded to the grid \(1048576, 1048576\) .*max_bytes="):
        Session(model, "cpu")(np.zeros((8, 8)))


def test_a_recogniser_refuses_arrays_of_few_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    texts = write_model(tmp_path / "r.onnx", outputs=2, kind="transcribe", classes=("a",), window=None)
    result, _ = run_file(texts, tmp_path / "x.npy")
    assert "x has shape (3,)" in str(result.error)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.eye(3)}, "arrays called x, but .* called x, mask"),
        (dict.fromkeys(("x", "mask", "more"), np.eye(3)), "called mask, more, x, but"),
        ({"": np.eye(3)}, "one array without a name, but .* called x, mask"),
        ({"x": np.zeros((70, 3, 4, 1)), "mask": 1.0}, r"mask must have the batch of x, 70; got shape \(\)"),
    ],
)
def test_a_model_of_several_inputs_names_them(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = tmp_path / ("x.npy" if "" in arrays else "x.npz")
    if "" in arrays:
        np.save(source, arrays[""])
    else:
        np.savez(source, **arrays)
    result, _ = run_file(masked(tmp_path / "m.onnx"), source)
    assert re.search(message, str(result.error))


def test_results_whose_names_would_be_equal_are_refused() -> None:
    y = np.zeros(2)
    job = Job("x.npz", "y.npz", "npz")
    assert len(_outputs_of(job, {"a": {"b": y, "c": y}, "b": {"b": y, "c": y}})) == 4
    with pytest.raises(InputError, match=r"'a\.b\.c'"):
        _outputs_of(job, {"a": {"b.c": y}, "a.b": {"c": y}})


def test_batches_without_channels_are_split_along_their_batch_axis() -> None:
    session = Recorder(replace(ANY, layout="N T C", window=(1,), channel_axis=False))
    tokens = RNG.random((9, 7))
    assert grid_of(tokens.shape, session.metadata) == (7,)
    np.testing.assert_array_equal(session.run({0: tokens}, batch_size=4)[0], tokens * 2)
    assert [grid for grid, _ in session.runs] == [(7,)] * 3
