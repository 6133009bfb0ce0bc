"""Time steps in turn within one process, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch

from mdlstm_tk.benchmark.contenders import Step


def interleave(
    steps: Mapping[str, Step], seconds: float, device: torch.device | None = None, least: int = 5
) -> dict[str, list[float]]:
    """Time the steps in turn, over and over, after one untimed call of each.

    Args:
        steps: what to time, by name.
        seconds: begin rounds until this much time has passed.
        device: wait for this device after each step, if it is a GPU.
        least: number of rounds even if they take longer.

    Returns:
        The seconds of every round, by name.
    """
    for step in steps.values():
        step()
    _synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(steps))]) < least:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            _synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times


def ratios_of(times: Mapping[str, list[float]], name: str) -> dict[str, float]:
    """The median over the rounds of this contender's time divided by each other one's."""
    return {
        other: median(a / b for a, b in zip(times[name], series, strict=True))
        for other, series in times.items()
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this number of threads inside the `with` statement."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most bytes that tensors take during a step, beyond those that existed before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
