"""Which arrays share a batch, how many files are in memory, and where results go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata, Outcome, Session, batching
from mdlstm_tk.runtime.io.readers import InputFile
from mdlstm_tk.runtime.jobs import Job, jobs_for_model, plan_jobs

RNG = np.random.default_rng(0)


def test_no_result_overwrites_an_input_or_another_result(tmp_path: Path) -> None:
    metadata = Metadata("0", None, "scan", "N H W C", 1, 1)

    def plan(inputs: list[str], output: str | None) -> None:
        jobs_for_model(plan_jobs(inputs, output, None)[0], metadata, output, None, False)

    for name in ("x.npy", "x.csv", "x.out.npy"):
        (tmp_path / name).touch()
    (tmp_path / "alias").symlink_to(tmp_path)
    x, alias = str(tmp_path / "x.npy"), str(tmp_path / "alias/x.npy")
    for inputs in ([str(tmp_path)], [x, x], [x, alias]):
        with pytest.raises(InputError, match=r"both .*x\.out\.npy"):
            plan(inputs, None)
    for inputs, output in (([x, str(tmp_path / "alias/x.out.npy")], None), ([x], alias)):
        with pytest.raises(InputError, match="overwrite"):
            plan(inputs, output)


class Recorder:
    """A fake session of a model for any grid: doubles x and records the number of samples of each run."""

    metadata = SimpleNamespace(ndim=2, grid=None, inputs=("x",))

    def __init__(self) -> None:
        self.runs: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.run_many([x])[0]

    def run_many(self, arrays: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        if any(not 2 <= x.ndim <= 4 for x in arrays):
            raise InputError(f"one of {len(arrays)} is no grid")
        samples = [x if x.ndim == 4 else x[None] for x in arrays]
        (shape,) = {x.shape[1:] for x in samples}
        self.runs.append((shape, sum(map(len, samples))))
        return [x * 2 for x in arrays]


def test_arrays_of_one_shape_share_batches() -> None:
    shapes = [
        (1, 1),
        (1, 7),
        (7, 1),
        (5, 8),
        (8, 5),
        (5, 8, 1),
        (2, 5, 8, 1),
        (9, 5, 8, 1),
        (5, 8, 3),
        (3,),
    ]
    arrays = {number: RNG.random(shapes[number % len(shapes)]) for number in range(3 * len(shapes))}
    session = Recorder()
    results = dict(batching.run_batches(session, arrays.items(), batch_size=4))  # type: ignore[arg-type]
    assert set(results) == set(arrays)
    for tag, x in arrays.items():
        if x.ndim == 1:
            assert "one of 1" in str(results[tag])
        else:
            np.testing.assert_array_equal(results[tag], x * 2, strict=True)
    assert session.runs.count(((1, 7), 3)) == 1
    assert sum(rows for shape, rows in session.runs if shape == (5, 8, 1)) == 3 * (1 + 2 + 9)
    session.runs.clear()
    list(batching.run_batches(session, [(n, np.zeros((256, 256))) for n in range(9)]))  # type: ignore[arg-type]
    assert [rows for _, rows in session.runs] == [4, 4, 1]
    session.runs.clear()
    list(batching.run_batches(session, [(0, np.zeros((9, 5, 8, 1)))], batch_size=4))  # type: ignore[arg-type]
    assert [rows for _, rows in session.runs] == [4, 4, 1]


@pytest.mark.parametrize(("window", "limit"), [(4, 2**28), (10**6, 3 * 256)], ids=["files", "bytes"])
def test_memory_holds_few_windows_whatever_the_number_of_files(
    window: int, limit: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = most = 0

    def reading(source: str, max_bytes: int) -> InputFile:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return InputFile(source, {None: np.zeros((8, 8), np.float32)})

    monkeypatch.setattr(batching, "read_input", reading)
    monkeypatch.setattr(batching, "WINDOW", window)
    monkeypatch.setattr(batching, "WINDOW_BYTES", limit)
    jobs = [Job(f"{n}.npy", str(tmp_path / f"{n}.out.npy"), "npy") for n in range(50)]
    for done, outcome in enumerate(batching.infer_files(Session(model, "cpu"), jobs), start=1):
        assert outcome == Outcome(jobs[done - 1], None)
        held -= 1
    assert done == 50
    assert most <= 3 * 4  # one in use, one read ahead, one being read
