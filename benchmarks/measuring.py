"""Arguments, processes, CPU times and tables that the scripts of this folder share.

Imports neither torch nor onnx, so that `runtimes.py --check` runs without them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LEAST_ROUNDS = 5  # of `cpu_times`


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the docstring of a script as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int | None = None) -> str:
    """Format a table. The first columns are texts, this many or all; the others are numbers."""
    texts = len(columns) if texts is None else texts
    lines = [columns, [":---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- name --> and <!-- /name --> in a page."""
    content = page.read_text(encoding="utf-8")
    before, start, section = content.partition(f"<!-- {name} -->\n")
    _, end, after = section.partition(f"<!-- /{name} -->")
    if not end:
        raise SystemExit(f"{page} has no <!-- {name} --> … <!-- /{name} -->")
    page.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")


def python(*arguments: object, checkout: Path = ROOT, **environment: str) -> str:
    """Run Python in a process that imports the package of a checkout and the scripts of this folder, and
    return what it prints."""
    command = [sys.executable, "-P", *map(str, arguments)]
    paths = os.pathsep.join(map(str, (checkout.resolve(), ROOT / "benchmarks")))
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=variables)
    return done.stdout


def bench(*options: str, checkout: Path = ROOT) -> Any:
    """The rows of `bench.py --json` of this folder, which measures the package of a checkout."""
    return json.loads(python(ROOT / "benchmarks/bench.py", "--json", *options, checkout=checkout))


def cpu_times(
    steps: Mapping[str, Callable[[], object]], seconds: float, runs: int = 1
) -> dict[str, np.ndarray]:
    """Measure steps that take turns, after one untimed call of each.

    Args:
        steps: the steps by name.
        seconds: begin rounds until this much time has passed, `LEAST_ROUNDS` even if they take longer.
        runs: calls of a step in each turn. The first one finds caches and memory as another step left them.

    Returns:
        (rounds, runs) for each step: the CPU seconds of all threads of this process, as a `Session`
            has long runs in a thread of its own.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < LEAST_ROUNDS:
        rounds += 1
        for name, step in steps.items():
            clock = [time.process_time()]
            for _ in range(runs):
                step()
                clock.append(time.process_time())
            times[name].append(np.diff(clock).tolist())
    return {name: np.array(rows) for name, rows in times.items()}


def ort_session(model: bytes | Path, **settings: Any) -> Any:
    """A session of ONNX Runtime on one CPU thread, with its default options but for `settings`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": 1, **settings}.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
