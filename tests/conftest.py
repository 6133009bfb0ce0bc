"""Fixtures that several test files use: small trained runs, their exports, registries and memory."""

from __future__ import annotations

import copy
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `mdlstm` does, before torch is imported
import torch
from hypothesis import HealthCheck, settings
from onnxscript._internal.values import TracedOnnxFunction

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each call of the command would compile all modules again
if not torch.cuda.is_available():  # Triton, which export imports by way of torch, looks at it only then
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mdlstm_tk import kinds
from mdlstm_tk._util import user_code
from mdlstm_tk.cells import cell
from mdlstm_tk.models import registry
from mdlstm_tk.training import tasks

if TYPE_CHECKING:  # fixtures import what only some tests need
    from mdlstm_tk.training import Run

torch.set_num_threads(1)  # tests run side by side

# At every export, onnxscript reads the sources of its 500 operators again: a third of the seconds of one.
function_ir = cached_property(vars(TracedOnnxFunction)["function_ir"].fget)
function_ir.__set_name__(TracedOnnxFunction, "function_ir")
TracedOnnxFunction.function_ir = function_ir

# Property tests draw the same examples in every run, so that their kernels come from the cache; the weekly
# run draws new ones, by `--hypothesis-profile=drawn`.
for profile, same in (("steady", True), ("drawn", False)):
    settings.register_profile(
        profile,
        derandomize=same,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile("steady")

CELLS = dict(cell._cells)  # those of the package
NETWORKS = copy.deepcopy(registry._FACTORIES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder what needs a GPU, and what opens pages in a browser by its fixture."""
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker("gpu")
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker("slow")
        if item.get_closest_marker("weekly"):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def as_a_process_begins() -> None:
    """Let SIGINT interrupt each test: a shell has its background jobs ignore it, and `mdlstm` ignores it as
    it ends, where tests go on. And with one thread, and a log that nobody reads."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("mdlstm_tk").setLevel(logging.NOTSET)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    """Have `torch.compile` forget each test: it skips functions for good that it once failed to capture."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An MD-LSTM trained for 150 steps on 8×8 and exported for 8×8. Tests must not change it."""
    from mdlstm_tk.export import export_run
    from mdlstm_tk.training import Run, configure, train

    run = Run(tmp_path_factory.mktemp("trained") / "md-8x8")
    train(configure(steps=150), run.folder)
    export_run(run)
    return run


@pytest.fixture(scope="session")
def model(trained: Run) -> Path:
    """The trained run's export."""
    return trained.folder / "model-8x8.onnx"


@pytest.fixture(scope="session")
def density_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A density model trained for 6 steps on grey digits, and evaluated. Tests must not change it."""
    from mdlstm_tk.training import Run, configure, train

    run = Run(tmp_path_factory.mktemp("density") / "run")
    tiny = {"steps": 6, "hidden": 4, "batch_size": 8, "evaluate_every": 3, "warmup": 0}
    train(configure(task="digits-grey", **tiny), run.folder)
    return run


@pytest.fixture(scope="session")
def density_model(density_run: Run) -> Path:
    """The density run's export for log-probabilities of images of any size."""
    from mdlstm_tk.export import export_run

    path = density_run.folder.parent / "model.onnx"
    export_run(density_run, path, form="scan")
    return path


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which only cells, networks, tasks and kinds of the package are registered."""

    def clear() -> None:
        monkeypatch.setattr(cell, "_cells", dict(CELLS))
        monkeypatch.setattr(registry, "_FACTORIES", copy.deepcopy(NETWORKS))
        monkeypatch.setattr(tasks, "_registered", {})
        monkeypatch.setattr(kinds, "_registered", {})
        monkeypatch.setattr(user_code, "_modules", {})

    return clear


@pytest.fixture
def fresh_registries(forget: Callable[[], None]) -> None:
    """Start with the cells and networks of the package; those that the test registers are gone after it."""
    forget()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill fresh memory with NaN, so that a kernel's reading of uninitialised memory shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(()).new_empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
