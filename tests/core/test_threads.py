"""Threads that share a sweep: results are those of one thread and the same from run to run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from helpers.parity import Case

from mdlstm_tk.backends.cpu import jobs as jobs_module
from mdlstm_tk.backends.cpu import sweep
from mdlstm_tk.backends.cpu.jobs import Jobs
from mdlstm_tk.backends.cpu.threads import Lanes, Run, Task, run_lanes

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Jobs]]:
    """Small sweeps use several threads, bands and parts of sums, as large ones do; the jobs they make."""
    recorded: list[Jobs] = []

    def make_jobs(*arguments: Any) -> Jobs:
        recorded.append(jobs_module.make_jobs(*arguments))
        return recorded[-1]

    monkeypatch.setattr(sweep, "make_jobs", make_jobs)
    monkeypatch.setattr(sweep, "MIN_PART_BLOCKS", 1)
    least = {"BAND_ROWS": 3, "MIN_BAND_GRID": 1, "LONG_WAVEFRONT": 1, "THREAD_OPERATIONS": 1}
    for name, value in {
        **least,
        "TASK_OPERATIONS": 2000,
        "BAND_OPERATIONS": 2000,
        "MIN_BAND_OPERATIONS": 2000,
    }.items():
        monkeypatch.setattr(jobs_module, name, value)
    sweep._make_plan.cache_clear()
    yield recorded
    sweep._make_plan.cache_clear()


PLAIN = Case(grid=(5, 8), batch=3, units=21)
BANDS = [
    replace(PLAIN, grid=(23, 6), batch=1, directions=((1, 1),)),
    replace(PLAIN, grid=(23, 6), batch=1, directions=((-1, 1),)),
    Case("stable", (9, 4, 3), batch=1, directions=((1, -1, 1),), states=True),
]
CASES: list[tuple[Case, int, int]] = [  # threads, and the lanes that they are given
    (replace(PLAIN, batch=7, layer_norm=True, peephole=True), 3, 3),  # samples
    (replace(PLAIN, batch=7, sizes=True, directions="all"), 3, 3),
    (replace(PLAIN, batch=1, directions="all", dtype="float32", recompute=True), 2, 2),  # directions
    (replace(PLAIN, batch=2, directions="all"), 5, 4),  # samples and directions
    (replace(PLAIN, grid=(23, 6), batch=1, directions="all"), 9, 9),
    *((case, 3, 3) for case in BANDS[:2]),
    (replace(BANDS[2], batch=2), 5, 4),  # samples and bands
    (Case("slstm", (40,), 1, directions="all", layer_norm=True, recompute=True, states=True), 2, 2),
    (replace(PLAIN, grid=(17, 5), batch=1, directions="all", sizes=True, states=True), 2, 2),
    (Case("slstm", (7, 5), batch=5, directions=((1, -1),), sizes=True, states=True), 2, 2),
]


@pytest.mark.parametrize(("case", "threads", "lanes"), CASES, ids=str)
def test_threads_agree_with_the_oracle_and_with_themselves(
    case: Case, threads: int, lanes: int, made: list[Jobs]
) -> None:
    torch.set_num_threads(threads)
    case.check("fused")
    assert 1 < max(len(jobs.lanes) for jobs in made) <= lanes
    one, other = (case.run("fused") for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", [case for case, _, _ in CASES[:4]], ids=str)
def test_nothing_is_written_beside_the_results(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a margin on both sides, which keeps its numbers; sums and dx of each thread among them."""
    margins: list[torch.Tensor] = []

    def new(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        count = prod(shape)
        memory = like.new_full((count + 128,), 7.0)
        margins.extend((memory[:64], memory[64 + count :]))
        return memory[64 : 64 + count].view(shape)

    monkeypatch.setattr(sweep, "_new", new)
    torch.set_num_threads(3)
    case.check("fused")
    assert len(margins) > 4 and all((margin == 7).all() for margin in margins)


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("case", BANDS, ids=str)
def test_a_task_waits_for_all_that_it_reads(
    case: Case, first: int, monkeypatch: pytest.MonkeyPatch, made: list[Jobs]
) -> None:
    """One thread runs each task as early as it may begin, those of one lane before all others."""

    def run_early(run: Run, lanes: Lanes, order: Sequence[int], keep: object) -> None:
        done = [0] * len(lanes)
        for _ in order:
            coming = {k: lane[done[k]] for k, lane in enumerate(lanes) if done[k] < len(lane)}
            ready = [k for k, task in coming.items() if done[task.awaited_lane] >= task.awaited_count]
            k = min(ready, key=lambda k: (k - first) % len(lanes))
            run(coming[k].job)
            done[k] += 1

    monkeypatch.setattr(sweep, "run_lanes", run_early)
    torch.set_num_threads(3)
    case.check("fused")
    assert made and any(task.awaited_count for jobs in made for lane in jobs.lanes for task in lane)


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

    def work(k: int) -> bool:
        return all(
            torch.equal(one, other)
            for _ in range(8)
            for one, other in zip(run(k), expected[k], strict=True)
        )

    with ThreadPoolExecutor(len(cases)) as threads:
        assert all(threads.map(work, range(len(cases))))


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
        run_lanes(interrupted, [[Task(0, 0, 0)], [Task(1, 1, 0), Task(2, 0, 1)]], [0, 1, 2], None)
    run_lanes(lambda _: both.wait(), [[Task(0, 0, 0)], [Task(1, 1, 0)]], [0, 1], None)  # needs two threads


def test_threads_have_ended_before_the_interpreter_does() -> None:
    """Also one that is at work when the main thread is interrupted."""
    code = """if True:
        import threading, time
        from mdlstm_tk.backends.cpu.threads import Task, run_lanes
        begun = []
        def run(job):
            begun.append(job)
            if threading.current_thread() is threading.main_thread():
                while len(begun) < 2:
                    time.sleep(0.01)
                raise SystemExit
            time.sleep(0.5)
            print("ended", flush=True)
        run_lanes(run, [[Task(0, 0, 0)], [Task(1, 1, 0)]], [0, 1], None)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
