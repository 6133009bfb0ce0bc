"""Configuration files from strangers: one line, before a folder is created and memory is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.crafted_runs import assert_refused, in_process, put, sparse
from helpers.training import run_in

from mdlstm_tk.training import TrainConfig

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")

CONFIGS: dict[str, bytes | str | Callable[[Path], object]] = {
    "a million layers": "layers = 1000000",
    "large layers": "layers = 1000\nhidden = 3000",
    "many units": "hidden = 1000000",
    "a large window": 'task = "digits"\nwindows = "9999x9999"',
    "many windows": 'task = "digits"\nwindows = "' + "1x1," * 10**4 + '1x1"',
    "a large grid": 'size = "99999x99999"',
    "a grid that no array has": 'size = "999999999"',
    "a long number": 'hidden = "' + "9" * 5000 + '"',
    "a number that is too long for TOML": "hidden = " + "9" * 5000,
    "no number": "lr = nan",
    "a large rate": "lr = 1e38",
    "infinity": "hidden = inf",
    "a list": 'task = [["a"]]',
    "deep lists": "x = " + "[" * 3000 + "]" * 3000,
    "deep tables": "a." * 5000 + "b = 1",
    "a zero byte": 'data = "\\u0000"\ntask = "grid"',
    "no UTF-8": b"\xff\xfe",
    "half a gigabyte": sparse(2**29),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@posix
@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "config.toml", CONFIGS[case])
    result = in_process(capfd, "train", "-c", tmp_path / "config.toml", "-o", tmp_path / "run")
    assert_refused(result)
    assert len(result.err) < 600
    assert not (tmp_path / "run").exists()


def test_the_largest_seed_trains(tmp_path: Path) -> None:
    run_in(tmp_path / "run", TrainConfig(size="3", hidden=2, steps=1, batch_size=1, seed=2**63 - 1))
