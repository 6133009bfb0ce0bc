"""Runs on grids of one, two and three axes are exported and verified alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import succeed
from helpers.training import quick, run_in

from mdlstm_tk._util.sizes import format_size, parse_free_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run, runs, verify_model
from mdlstm_tk.training import Run

SIZES = {1: (5,), 2: (3, 4), 3: (3, 2, 4)}
RUNS = [("grid", 1), ("grid", 2), ("grid", 3), ("classify", 1)]


def train_on(folder: Path, kind: str, size: tuple[int, ...]) -> Run:
    x = np.random.default_rng(0).random((8, *size), np.float32)
    np.savez(folder / "x.npz", x=x, y=x if kind == "grid" else np.arange(8) % 2, ndim=len(size))
    return run_in(folder / "run", quick(folder / "x.npz", kind, steps=1, hidden=2))


@pytest.fixture(scope="module", params=RUNS, ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    kind, ndim = request.param
    return train_on(tmp_path_factory.mktemp(f"{kind}{ndim}"), kind, SIZES[ndim])


def size_of(run: Run) -> tuple[int, ...]:
    ndim = next(ndim for kind, ndim in RUNS if run.folder.parent.name.startswith(f"{kind}{ndim}"))
    return SIZES[ndim]


@pytest.mark.parametrize(("options", "name"), [({}, "own"), ({"form": "scan"}, "any")], ids=str)
def test_an_export_is_verified_on_grids_of_the_run(
    run: Run, options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    report = export_run(run, tmp_path, **options)
    name = name.replace("own", format_size(size_of(run)))
    assert report.path.name == f"model-{name}.onnx"
    assert not verify_model(report.path, run, device="cpu", seeds=1).failed


def test_one_extent_stands_for_all_axes_of_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(network: Any, path: Path, **options: Any) -> Any:
        return path.name, options["form"], options["grid"]

    monkeypatch.setattr(runs, "export_onnx", record)
    size = size_of(run)
    own = f"model-{format_size(size)}.onnx", "unrolled", size
    of_two = (2,) * len(size)
    for options, expected in (
        ({}, own),
        ({"grid": size}, own),
        ({"padded": True}, own),
        ({"grid": parse_free_size("2")}, (f"model-{format_size(of_two)}.onnx", "unrolled", of_two)),
        ({"grid": parse_free_size("*")}, ("model-any.onnx", "scan", (None,) * len(size))),
        ({"form": "scan"}, ("model-any.onnx", "scan", None)),
    ):
        assert export_run(run, tmp_path, **options) == expected
    with pytest.raises(InputError, match=f"as {format_size(size)}, got the grid 2x2x2x2"):
        export_run(run, tmp_path, grid=(2, 2, 2, 2))


def test_a_file_of_other_axes_is_compared_with_the_run_in_one_line(tmp_path: Path) -> None:
    sequences, volumes = tmp_path / "1", tmp_path / "3"
    sequences.mkdir()
    volumes.mkdir()
    model = export_run(train_on(sequences, "grid", SIZES[1]), form="scan").path
    run = train_on(volumes, "grid", SIZES[3])
    with pytest.raises(InputError, match="where the grid has D = 3"):
        verify_model(model, run, device="cpu")


@pytest.mark.parametrize("size", ["2", "*"])
def test_the_command_takes_one_extent_of_sequences(size: str, tmp_path: Path) -> None:
    run = train_on(tmp_path, "grid", SIZES[1])
    done = succeed("export", run.folder, "--size", size, "--multiple-of", "1")
    assert f"x (N, {size.replace('*', 'T')}, 1)" in done.err
    assert not verify_model(run.folder, device="cpu", seeds=1).failed
