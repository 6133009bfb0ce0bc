"""`verify_model` and `mdlstm verify`: the cases, and the first wavefront that is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command import Result
from onnx import numpy_helper

from mdlstm_tk.cli import main
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export import export_run, verify_model
from mdlstm_tk.export.verification.divergence import Divergence, first_divergence, wavefront_errors
from mdlstm_tk.training import Run


def reached(grid: tuple[int, ...], start: tuple[int, ...], signs: Sequence[int]) -> np.ndarray:
    """The positions to which a sweep in this direction carries an error made at `start`."""
    steps = [(np.arange(n) - s) * sign >= 0 for n, s, sign in zip(grid, start, signs, strict=True)]
    return np.logical_and.reduce(np.meshgrid(*steps, indexing="ij"))


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf], ids=str)
@pytest.mark.parametrize(
    ("grid", "start", "signs", "first", "corner"),
    [
        ((5, 8), (2, 3), (1, 1), 5, (0, 0)),
        ((5, 8), (2, 3), (1, -1), 6, (0, 7)),
        ((8, 5), (2, 3), (-1, 1), 8, (7, 0)),
        ((8, 5), (7, 4), (-1, -1), 0, (0, 0)),  # every position is wrong, so any corner explains it
        ((1, 7), (0, 6), (1, 1), 6, (0, 0)),
        ((7, 1), (2, 0), (-1, 1), 4, (6, 0)),
        ((1, 1), (0, 0), (1, 1), 0, (0, 0)),
        ((3, 4, 5), (1, 2, 2), (1, -1, 1), 4, (0, 3, 0)),
    ],
    ids=str,
)
def test_the_first_wrong_wavefront_is_found(
    grid: tuple[int, ...],
    start: tuple[int, ...],
    signs: tuple[int, ...],
    first: int,
    corner: tuple[int, ...],
    value: float,
) -> None:
    expected = np.random.default_rng(0).random((2, *grid, 3))
    output = expected.astype(np.float32)
    axes = range(1, len(grid) + 1)
    assert first_divergence(output, expected, axes) is None
    output[1, ..., 2][reached(grid, start, signs)] = value
    divergence = first_divergence(output, expected, axes)
    assert divergence is not None
    assert divergence == Divergence(first, sum(grid) - len(grid) + 1, corner)
    assert f"wavefront {first} of {divergence.wavefronts}" in str(divergence)


def test_errors_of_each_wavefront() -> None:
    expected = np.zeros((2, 3, 2, 4))  # (N, C, H, W)
    output = expected.astype(np.float32)
    output[1, 2, 1, 2] = 0.5
    output[0, 0, 0, 0] = 0.25
    assert wavefront_errors(output, expected, (2, 3)) == [0.25, 0, 0, 0.5, 0]


def damage(model: Path, damaged: Path, wavefront: int) -> None:
    """Halve one tanh on one wavefront."""
    proto = onnx.load(model)
    step = next(n for n in proto.graph.node if f"/wavefront_{wavefront}/" in n.name and n.op_type == "Tanh")
    renamed = step.output[0] + "_halved"
    half = numpy_helper.from_array(np.float32(0.5), "half")
    for node in proto.graph.node:
        for k, name in enumerate(node.input):
            if name == step.output[0]:
                node.input[k] = renamed
    at = list(proto.graph.node).index(step) + 1
    proto.graph.node.insert(at, onnx.helper.make_node("Mul", [step.output[0], "half"], [renamed]))
    proto.graph.initializer.append(half)
    onnx.save(proto, damaged)


class Verify:
    """Calls `mdlstm verify` inside the test process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: object) -> Result:
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["verify", *map(str, arguments)])
        out, err = self.capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Verify:
    return Verify(capfd)


def test_a_damaged_wavefront_is_named(trained: Run, tmp_path: Path, verify: Verify) -> None:
    model = tmp_path / "m.onnx"
    export_run(trained, model, grid=(5, 7))
    damage(model, tmp_path / "damaged.onnx", 4)
    done = verify(tmp_path / "damaged.onnx", "--against", trained.folder, "--json", "--seeds", "1")
    assert done.code == 3, done.err
    assert "wavefront 4 of 11, counted from (0, 0)" in done.err
    results = json.loads(done.out)
    assert results["torch, float32"]["5x7, random × 3, seed 0"]["passed"]
    case = results["ONNX Runtime, cpu"]["5x7, random × 3, seed 0"]
    assert not case["passed"]
    assert case["first_divergence"] == {"wavefront": 4, "wavefronts": 11, "corner": [0, 0]}
    assert max(case["wavefronts"][:4]) < 1e-5 < case["wavefronts"][4]


def test_a_scan_is_verified_on_odd_grids(trained: Run, tmp_path: Path, verify: Verify) -> None:
    model = tmp_path / "m.onnx"
    export_run(trained, model, form="scan")
    done = verify(model, "--against", trained.folder, "--seed", "3", "--seeds", "1")
    assert done.code == 0, done.err
    assert all(size in done.out for size in ("8x8", "1x1", "1x7", "7x1", "5x8", "8x5"))
    done = verify(model, "--against", trained.folder, "--max-bytes", "1000")
    assert done.code == 2
    assert "1000 bytes" in done.err


def test_verify_model_reports_every_runtime(trained: Run, model: Path) -> None:
    report = verify_model(model, seeds=1)
    assert set(report.outcomes) >= {"torch, float32", "ONNX Runtime, cpu", "ONNX reference evaluator"}
    assert report.run == trained
    assert report.models[model].grid == (8, 8)
    assert report.failed == []
    report.raise_if_failed()
    assert max(report.worst_errors("ONNX Runtime, cpu").values()) < 1e-5


def test_verify_model_follows_an_error_to_its_wavefront(trained: Run, model: Path, tmp_path: Path) -> None:
    damage(model, tmp_path / "damaged.onnx", 4)
    report = verify_model(tmp_path / "damaged.onnx", trained.folder, seeds=1)
    assert report.failed == ["ONNX Runtime, cpu", "ONNX reference evaluator"]
    with pytest.raises(ParityError, match="wavefront 4 of 15"):
        report.raise_if_failed()
