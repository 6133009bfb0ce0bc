"""What several test files use: one small trained run, its export, and a way to call `mdlstm`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # Triton, which export imports by way of torch, looks at it only then
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mdlstm_tk.export import export_run
from mdlstm_tk.training import Run, TrainConfig, train

torch.set_num_threads(1)  # tests run side by side


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An MD-LSTM trained for 150 steps on 8×8, exported for 8×8. Not to be changed."""
    run = Run(tmp_path_factory.mktemp("trained") / "md-8x8")
    run.folder.mkdir()
    train(TrainConfig(steps=150), run)
    export_run(run)
    return run


@pytest.fixture(scope="session")
def model(trained: Run) -> Path:
    """The trained run's export."""
    return trained.folder / "model-8x8.onnx"


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN, so that a kernel that reads what nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(()).new_empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The many small operations of `reference` only lose by sharing them out; a test may ask for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
