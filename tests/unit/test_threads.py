"""Threads that share a sweep: how they divide it, whose they are, and that only the last bits depend on
them."""

from __future__ import annotations

import dis
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
import torch
from helpers.parity import Case

from mdlstm_tk.backends.cpu import plan, platform
from mdlstm_tk.backends.cpu import threads as threads_module
from mdlstm_tk.backends.cpu.threads import partition

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


def share_smallest_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest sweep use several threads, and sum its gradients in several parts."""
    monkeypatch.setattr(threads_module, "MIN_SWEEP_OPERATIONS", 1)
    monkeypatch.setattr(threads_module, "MIN_WAVEFRONT_OPERATIONS", 1)
    monkeypatch.setattr(plan, "MIN_PART_BLOCKS", 1)
    plan.plans.clear()


@pytest.fixture(params=["openmp", "own"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of threads, of torch's pool or of this package, for sweeps of any size."""
    share_smallest_sweeps(monkeypatch)
    if request.param == "own":
        monkeypatch.setattr(threads_module, "torch_openmp", lambda: None)
    elif platform.torch_openmp() is None:
        pytest.skip("torch has no GNU OpenMP here")
    return torch.set_num_threads


@pytest.mark.parametrize(
    ("case", "team"),
    [
        *((Case(batch=7, layer_norm=True, peephole=True), team) for team in (2, 3)),
        *((Case(batch=7, directions="all", sizes=True), team) for team in (2, 3, 6)),  # 2, 1, 2 groups
        (Case(batch=7, directions="all", recompute=True), 4),
    ],
    ids=str,
)
def test_threads_agree_with_one(case: Case, team: int, threads: Callable[[int], None]) -> None:
    threads(1)
    alone = case.run("fused", torch.float64)
    threads(team)
    together, again = (case.run("fused", torch.float64) for _ in range(2))
    for name, result in together.items():
        torch.testing.assert_close(result, alone[name], rtol=0, atol=1e-12)
        assert torch.equal(result, again[name]), f"{name} differs between two runs"


@pytest.mark.parametrize(
    ("dirs", "threads", "max_groups", "expected"),
    [
        (1, 4, None, (1, 4)),
        (4, 1, None, (1, 1)),
        (4, 2, None, (2, 1)),
        (4, 3, None, (1, 3)),
        (4, 6, None, (2, 3)),
        (4, 16, None, (4, 4)),
        (4, 16, 3, (2, 8)),
        (3, 2, None, (1, 2)),
    ],
)
def test_how_threads_share_large_sweeps(
    dirs: int, threads: int, max_groups: int | None, expected: tuple[int, int]
) -> None:
    assert partition(10**10, 10, dirs, threads, max_groups) == expected


def test_how_threads_share_small_sweeps() -> None:
    most, least = threads_module.MIN_SWEEP_OPERATIONS, threads_module.MIN_WAVEFRONT_OPERATIONS
    assert partition(most, 1, 1, 8) == (1, 1)  # not enough for a second thread
    assert partition(most, 1, 4, 8) == (4, 1)
    assert partition(8 * most, 8 * most // least, 1, 8) == (1, 1)  # too little in a wavefront
    assert partition(8 * most, 8 * most // least, 4, 8) == (4, 1)
    assert partition(8 * most, 4 * most // least, 4, 8) == (4, 2)
    assert partition(0, 1, 4, 8) == (1, 1)


def test_with_fewer_threads_than_openmp_was_asked_for() -> None:
    code = """
import torch
from mdlstm_tk import MDLSTM
torch.manual_seed(0)
layer, x = MDLSTM(2, 32, directions="all"), torch.randn(8, 16, 16, 2, requires_grad=True)
results = []
for threads in (1, 4):
    torch.set_num_threads(threads)
    y = layer(x)
    results.append([y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])])
assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
"""
    limit = {**os.environ, "OMP_THREAD_LIMIT": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=limit)


def test_concurrent_sweeps(threads: Callable[[int], None]) -> None:
    threads(2)
    case = Case(batch=7)
    truth, results = case.layer("fused", torch.float64), []
    x = torch.randn(7, 20, 20, 2, dtype=torch.float64)
    expected = truth(x)
    workers = [threading.Thread(target=lambda: results.append(truth(x))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_threads(threads: Callable[[int], None]) -> None:
    threads(2)
    layer, x = Case().layer("fused", torch.float64), torch.randn(3, 5, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(layer(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_sweep_runs_alone_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    share_smallest_sweeps(monkeypatch)
    monkeypatch.setattr(threads_module, "torch_openmp", lambda: None)
    monkeypatch.setattr(threads_module, "_queues", [])
    layer, x = Case(batch=7).layer("fused", torch.float64), torch.randn(7, 5, 8, 2, dtype=torch.float64)
    expected = layer(x)
    torch.set_num_threads(2)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", start)
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)  # threads can start again


def test_torchs_openmp_is_used_beside_another_one() -> None:
    pytest.importorskip("sklearn.svm")
    code = """
from pathlib import Path
import torch, sklearn.svm
from mdlstm_tk.backends.cpu.platform import torch_openmp
own = torch_openmp()
print("none" if own is None else Path(torch.__file__).parent.name in Path(own._name).parts)
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if loaded.stdout.strip() == "none":
        assert platform.torch_openmp() is None
        pytest.skip("torch has no GNU OpenMP here")
    assert loaded.stdout.strip() == "True"


def test_an_interrupt_anywhere_leaves_the_team_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler raises appears after a call, so it is raised here after every call of `run`."""
    monkeypatch.setattr(threads_module, "_run_team", lambda *_: None)
    code = threads_module.run.__code__
    instructions = pairwise(dis.get_instructions(code))
    places = [after.offset for call, after in instructions if call.opname.startswith("CALL")]
    assert len(places) > 3
    interrupted = set()
    for place in places:

        def trace(frame: FrameType, event: str, _: Any, place: int = place) -> Any:
            if frame.f_code is not code:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and frame.f_lasti == place and place not in interrupted:
                interrupted.add(place)
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            threads_module.run(None, threads_module.Partition(1, 2), lambda member: [])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert not threads_module._team, f"interrupted at {place}, the team stayed taken"
    assert interrupted
