"""Arguments, tables of results, processes, and steps that are timed in turn, for these scripts."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# torch's profiler, which measures the peak memory, would print a banner for each row.
os.environ |= {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR"}

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"  # a table for each task or script, which pages show
Step = Callable[[], object]  # a call that is timed
Row = dict[str, str]  # column → text


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the docstring of a script as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """The values of `--set KEY=VALUE` by their keys."""
    return dict(pair.split("=", 1) for pair in pairs)


def read_rows(file: Path) -> list[Row]:
    """The rows of a table of results, [] if there is none yet."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened, delimiter="\t"))


def add_row(file: Path, row: Mapping[str, object]) -> Row:
    """Append a row to a table of results, and return it as it is read again."""
    texts = {
        name: f"{value:.8g}" if isinstance(value, float) else str(value) for name, value in row.items()
    }
    is_new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(texts), delimiter="\t", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(texts)
    return texts


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Format a table. The first columns are texts, the others numbers."""
    lines = [columns, [":---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def python(*arguments: object, **environment: str) -> str:
    """Run Python in a process that imports the checkout and the scripts of this folder, and return what it
    prints."""
    command = [sys.executable, "-P", *map(str, arguments)]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=variables)
    return done.stdout


def interleave(
    steps: Mapping[str, Step],
    seconds: float,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Time steps that take turns, over and over, after one untimed call of each; so whatever else the
    machine does slows all of them alike.

    Args:
        steps: what to time, by name.
        seconds: begin rounds until this much time has passed.
        least: number of rounds even if they take longer.
        clock: `time.process_time` for CPU seconds of all threads of this process.

    Returns:
        (rounds,) seconds, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < least:
        rounds += 1
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: np.array(each) for name, each in times.items()}


def milliseconds(times: np.ndarray) -> float:
    """The median of a step."""
    return 1000 * float(np.median(times))


def ratio(times: np.ndarray, others: np.ndarray) -> float:
    """The median over the rounds of a step's time divided by that of another one."""
    return float(np.median(times / others))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this number of threads inside the `with` statement."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_bytes(step: Step) -> int:
    """The most bytes that tensors on the CPU take during a step, beyond those that existed before it."""
    import torch

    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
