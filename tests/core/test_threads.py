"""Threads that share a sweep: results are those of one thread and the same from run to run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.parity import Case

from mdlstm_tk import MDLSTM
from mdlstm_tk.backends.cpu import plan, sweep, tiles
from mdlstm_tk.backends.cpu import threads as threads_module
from mdlstm_tk.backends.cpu.threads import Chains, Run, Task, run_chains
from mdlstm_tk.backends.cpu.tiles import Jobs
from mdlstm_tk.errors import InputError

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


TASK_LIMITS = ("TASK_OPERATIONS", "BAND_TASK_OPERATIONS", "MIN_TASK_OPERATIONS")


@pytest.fixture(autouse=True)
def _small_sweeps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let small sweeps use several threads, bands and parts of sums, as large ones do."""
    monkeypatch.setattr(plan, "MIN_PART_BLOCKS", 1)
    least = {
        "BAND_ROWS": 3,
        "MIN_BAND_GRID": 1,
        "LONG_WAVEFRONT": 1,
        "THREAD_OPERATIONS": 1,
        "BANDS_OPERATIONS": 1,
    }
    for name, value in {**least, **dict.fromkeys(TASK_LIMITS, 2000)}.items():
        monkeypatch.setattr(tiles, name, value)
    plan.plans.clear()
    yield
    plan.plans.clear()


PLAIN = Case(grid=(5, 8), batch=3, units=21)
CASES: list[tuple[Case, int]] = [
    (replace(PLAIN, batch=7, layer_norm=True, peephole=True), 3),  # share samples
    (replace(PLAIN, batch=7, sizes=True, directions="all"), 3),
    (replace(PLAIN, batch=1, directions="all", dtype="float32", recompute=True), 2),  # share directions
    *(
        (replace(PLAIN, grid=(23, 6), batch=1, directions=((-1, 1),)), threads) for threads in (1, 3)
    ),  # bands
    (Case("stable", (9, 4, 3), directions=((1, -1, 1),), states=True), 3),
    (Case("slstm", (40,), 1, directions="all", layer_norm=True, recompute=True, states=True), 2),
    (replace(PLAIN, grid=(17, 5), batch=1, directions="all", sizes=True, states=True), 2),
    (Case("slstm", (7, 5), batch=5, directions=((1, -1),), sizes=True, states=True), 2),
]


@pytest.mark.parametrize(("case", "threads"), CASES, ids=str)
def test_threads_agree_with_the_reference_and_with_themselves(case: Case, threads: int) -> None:
    torch.set_num_threads(threads)
    case.check("fused")
    assert case.sizes or {len(entry.jobs.chains) for entry in plan.plans.values()} == {threads}
    one, other = (case.run("fused", torch.float64) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


BANDS = [
    replace(PLAIN, grid=(23, 6), batch=1, directions=((1, 1),)),
    replace(PLAIN, grid=(23, 6), batch=1, directions=((-1, 1),)),
    Case("stable", (9, 4, 3), directions=((1, -1, 1),), states=True),
]


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("case", BANDS, ids=str)
def test_a_task_waits_for_all_that_it_reads(
    case: Case, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread runs each task as early as it may begin, those of one chain before all others."""

    def run_early(run: Run, chains: Chains, order: Sequence[int], keep: object) -> None:
        done = [0] * len(chains)
        for _ in order:
            following = {k: chain[done[k]] for k, chain in enumerate(chains) if done[k] < len(chain)}
            ready = [k for k, task in following.items() if done[task.awaited_chain] >= task.awaited_count]
            k = min(ready, key=lambda k: (k - first) % len(chains))
            run(following[k].job)
            done[k] += 1

    monkeypatch.setattr(sweep, "run_chains", run_early)
    torch.set_num_threads(3)
    case.check("fused")
    assert {len(entry.jobs.chains) for entry in plan.plans.values()} == {3}


@pytest.mark.parametrize("limit", [1, 10**4, 10**12])
@pytest.mark.parametrize("case", [CASES[0][0], CASES[1][0], CASES[2][0], CASES[6][0]], ids=str)
def test_jobs_that_are_joined_to_tasks_agree_with_the_reference(
    case: Case, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TASK_OPERATIONS", limit)
    torch.set_num_threads(2)
    case.check("fused")
    if limit == 10**12 and not case.sizes:
        assert {len(chain) for entry in plan.plans.values() for chain in entry.jobs.chains} == {1}


@pytest.mark.parametrize("grid", [(40,), (40, 1), (40, 1, 1)], ids=str)
def test_bands_that_would_not_shorten_wavefronts_are_not_made(grid: tuple[int, ...]) -> None:
    assert tiles.Samples(grid, 0, 7).bands == [(0, 40)]
    assert len(tiles.Samples((40, *grid[1:], 2), 0, 7).bands) > 1


def test_sums_of_several_parts() -> None:
    replace(PLAIN, batch=40, layer_norm=True, peephole=True).check("fused")
    assert max(entry.layout.part_blocks for entry in plan.plans.values()) > 0


def test_sweeps_may_run_at_the_same_time() -> None:
    """One of them has the pool, the others run alone."""
    torch.set_num_threads(2)
    cases = [
        Case("stable", (6, 7), 3, 21, directions="all"),
        replace(PLAIN, batch=7),
        replace(PLAIN, grid=(23, 6), batch=1),
    ]
    layers = [case.layer("fused", torch.float64) for case in cases]
    inputs = [torch.randn(case.batch, *case.grid, 2, dtype=torch.float64) for case in cases]

    def run(k: int) -> tuple[torch.Tensor, ...]:
        y = layers[k](inputs[k])
        return y, *torch.autograd.grad(y.square().sum(), list(layers[k].parameters()))

    expected = [run(k) for k in range(len(cases))]

    def work(k: int) -> None:
        for _ in range(8):
            torch.testing.assert_close(run(k), expected[k], rtol=1e-11, atol=1e-10)

    with ThreadPoolExecutor(len(cases)) as threads:
        list(threads.map(work, range(len(cases))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_threads() -> None:
    torch.set_num_threads(2)
    layer, x = PLAIN.layer("fused"), torch.randn(3, 5, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(layer(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_sweep_runs_alone_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    torch.set_num_threads(5)
    replace(PLAIN, batch=7).check("fused")


@pytest.mark.parametrize(
    ("grid", "batch", "units", "directions"),
    [((4, 4), 16, 64, "all"), ((4, 4), 16, 64, 1), ((23, 6), 1, 21, "all"), ((23, 6), 1, 21, 1)],
    ids=str,
)
@pytest.mark.parametrize("sizes", [False, True], ids=["full", "sizes"])
def test_buffers_of_gradients_are_bounded_whatever_the_number_of_threads(
    grid: tuple[int, int],
    batch: int,
    units: int,
    directions: Any,
    sizes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three sums of the weights and two dx, unless all together are small beside what forward keeps."""
    made: list[Jobs] = []

    def recorded(*arguments: Any) -> Jobs:
        made.append(tiles.make_jobs(*arguments))
        return made[-1]

    monkeypatch.setattr(plan, "make_jobs", recorded)
    layer, x = MDLSTM(3, units, directions=directions), torch.randn(batch, *grid, 3, requires_grad=True)
    extents = [grid] * (batch - 1) + [(1, 1)] if sizes else None
    weights = sum(parameter.nbytes for parameter in layer.parameters())
    for threads in (1, 2, 8, 64):
        torch.set_num_threads(threads)
        y = layer(x, extents)
        y.sum().backward()
        jobs, kept = made[-1], 6 * y.nbytes
        assert jobs.sum_count <= 3 or jobs.sum_count * weights <= kept / 4
        assert jobs.buffers <= 2 or jobs.buffers * x.nbytes <= kept / 4


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_first_shared_sweep_says_that_torchs_threads_spin(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not where a setting of OpenMP speaks of it."""
    torch.set_num_threads(2)
    layer, x = PLAIN.layer("fused"), torch.randn(3, 5, 8, 2, dtype=torch.float64)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    threads_module._warn_of_spinning.cache_clear()
    with pytest.warns(RuntimeWarning, match="OMP_WAIT_POLICY=PASSIVE"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        threads_module._warn_of_spinning.cache_clear()
        monkeypatch.setenv(name, "0")
        layer(x)


def test_an_interrupt_leaves_the_threads_free() -> None:
    """Also one that waits for the thread that was interrupted."""
    begun, both = threading.Event(), threading.Barrier(2, timeout=10)

    def interrupted(job: int) -> None:
        if job == 1:
            begun.wait(10)  # else this thread might take job 0, too, before the caller does
        else:
            begun.set()
            time.sleep(0.2)  # the other thread has nothing to do now
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chains(interrupted, [[Task(0, 0, 0)], [Task(1, 1, 0), Task(2, 0, 1)]], [0, 1, 2], None)
    run_chains(lambda _: both.wait(), [[Task(0, 0, 0)], [Task(1, 1, 0)]], [0, 1], None)  # needs two threads


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 3), ("", 3), ("0", 1), ("1", 1), ("2", 2), ("99", 3), ("two", None), ("-1", None)],
)
def test_the_number_of_threads_can_be_limited(
    limit: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(3)
    monkeypatch.delenv("MDLSTM_THREADS", raising=False)
    if limit is not None:
        monkeypatch.setenv("MDLSTM_THREADS", limit)
    if expected is None:
        with pytest.raises(InputError, match="MDLSTM_THREADS"):
            threads_module.thread_limit()
    else:
        assert threads_module.thread_limit() == expected


def test_threads_have_ended_before_the_interpreter_does() -> None:
    """Also one that is at work when the main thread is interrupted."""
    code = """if True:
        import threading, time
        from mdlstm_tk.backends.cpu.threads import Task, run_chains
        begun = []
        def run(job):
            begun.append(job)
            if threading.current_thread() is threading.main_thread():
                while len(begun) < 2:
                    time.sleep(0.01)
                raise SystemExit
            time.sleep(0.5)
            print("ended", flush=True)
        run_chains(run, [[Task(0, 0, 0)], [Task(1, 1, 0)]], [0, 1], None)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
