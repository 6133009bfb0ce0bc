"""`--isolated` and `--workers`: the same command in a process with limits, and over many processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm_process, succeed
from helpers.crafted_models import crafted, node, scanning, tensor
from helpers.processes import descendants
from helpers.small_models import classifier, write_model

from mdlstm_tk.runtime import infer_paths

posix = pytest.mark.skipif(sys.platform == "win32", reason="has no limits")
ENDLESS = scanning(node("Add", "v two", "v_out"), rows=10**9, width=0)
TERABYTE = crafted(
    [
        node("ConstantOfShape", "shape", "big"),
        node("ReduceSum", "big", "sum", keepdims=0),
        node("Add", "x sum", "y"),
    ],
    [tensor("shape", [2**38])],
)


@posix
@pytest.mark.parametrize(
    ("model", "flags", "code", "word"),
    [
        (crafted(), (), 0, "→"),
        (ENDLESS, ("--timeout", 2), 1, "--timeout"),
        (TERABYTE, (), 1, "memory"),
        (crafted([node("PyOp", "x", "y", domain="org")]), (), 2, "domain"),
    ],
)
def test_isolated(tmp_path: Path, model: object, flags: tuple[object, ...], code: int, word: str) -> None:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())  # type: ignore[attr-defined]
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    before = {*descendants()}  # of other tests
    done = mdlstm_process("infer", "x.npy", "-m", "m.onnx", "--isolated", *flags, cwd=tmp_path)
    assert (done.code, word in done.err) == (code, True), done.err
    assert (tmp_path / "x.out.npy").exists() == (code == 0)
    if code == 1 and word:
        assert done.err.strip().splitlines()[-1].startswith("error: ")
        assert len([line for line in done.err.splitlines() if "error" in line]) <= 2
    deadline = time.monotonic() + 5
    while left := {*descendants()} - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.slow
def test_ray_gives_the_bytes_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    rng = np.random.default_rng(0)
    for k in range(30):
        np.save(tmp_path / f"{k:02}.npy", rng.random((2 + k % 3, 4)) if k % 7 else np.full((2, 2), np.nan))
    for model, name in (
        (classifier(tmp_path / "c.onnx"), "t.csv"),
        (write_model(tmp_path / "m.onnx"), "out"),
    ):
        found = []
        for workers in (None, 2):
            output = tmp_path / str(workers) / name
            output.parent.mkdir(exist_ok=True)
            results = [
                *infer_paths([tmp_path / f"{k:02}.npy" for k in range(30)], model, output, workers=workers)
            ]
            assert sum(1 for result in results if result.error) == 5
            paths = sorted(output.glob("*")) if output.is_dir() else [output]
            found.append([(path.name, path.read_bytes()) for path in paths])
        assert found[0] == found[1]
    done = succeed(
        "infer", tmp_path / "01.npy", tmp_path / "02.npy", "-m", model, "--workers", 1, "-o", tmp_path / "w"
    )
    assert "2 done" in done.err
