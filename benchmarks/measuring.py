"""Arguments, processes, steps that are timed in turn, and tables, for the scripts of this folder.

Imports neither torch nor onnx, so that `runtimes.py --check` runs without them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# torch's profiler, which measures the peak memory, would print a banner for each row.
os.environ |= {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR"}

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"  # files of cells, which pages show
Step = Callable[[], object]  # a call that is timed


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the docstring of a script as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_names(parser: argparse.ArgumentParser, metavar: str, known: Collection[str]) -> None:
    """Add a positional argument `names` that takes some of the known names; without one, it is all of them.
    (`choices` of argparse would look for an empty list among them.)"""

    def name(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"'{text}'; expected some of {', '.join(known)}")
        return text

    parser.add_argument("names", nargs="*", metavar=metavar, type=name, default=list(known))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int | None = None) -> str:
    """Format a table. The first columns are texts, this many or all; the others are numbers."""
    texts = len(columns) if texts is None else texts
    lines = [columns, [":---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between_markers(page: Path, name: str) -> str:
    """The text between the lines <!-- name --> and <!-- /name --> of a page."""
    content = page.read_text(encoding="utf-8")
    section, end, _ = content.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")
    if not end:
        raise SystemExit(f"{page} has no <!-- {name} --> … <!-- /{name} -->")
    return section


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Replace what stands between these lines."""
    old, content = between_markers(page, name), page.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    page.write_text(content.replace(f"{start}{old}{end}", f"{start}{text}{end}"), encoding="utf-8")


def processor() -> str:
    """The name of the processor, from Linux if possible."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """The processor and the versions that a training depends on."""
    from mdlstm_tk import __version__

    return f"{processor()}, torch {version('torch')}, mdlstm-tk {__version__}"


def python(*arguments: object, checkout: Path = ROOT, **environment: str) -> str:
    """Run Python in a process that imports the package of a checkout and the scripts of this folder, and
    return what it prints."""
    command = [sys.executable, "-P", *map(str, arguments)]
    paths = os.pathsep.join(map(str, (checkout.resolve(), ROOT / "benchmarks")))
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=variables)
    return done.stdout


def resumed(file: Path, cells: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The cells of a table, by name. Each is kept in a JSON file when it is measured, so that a table goes
    on after an interrupt, and several processes may share a file."""
    for name, measure in cells.items():
        if name not in read_cells(file):
            value = measure()
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")
            rows = (
                f"{json.dumps(k)}: {json.dumps(v)}" for k, v in {**read_cells(file), name: value}.items()
            )
            temporary.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
            temporary.replace(file)
    return read_cells(file)


def hold_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a table beside its cells, and end if these were measured with others."""
    kept = resumed(file, {"settings": lambda: settings})["settings"]
    if kept != settings:
        raise SystemExit(
            f"{file} was measured with {kept}, not {settings}; remove it, or give another file"
        )


def read_cells(file: Path) -> dict[str, Any]:
    """The cells that are there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def interleave(
    steps: Mapping[str, Step],
    seconds: float,
    least: int = 5,
    runs: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Time steps that take turns, over and over, after one untimed call of each; so whatever else the
    machine does slows all of them alike.

    Args:
        steps: what to time, by name.
        seconds: begin rounds until this much time has passed.
        least: number of rounds even if they take longer.
        runs: calls of a step in each turn. The first one finds caches and memory as another step left them.
        clock: `time.process_time` for CPU seconds of all threads of this process; a `Session` runs long
            calls in a thread of its own.

    Returns:
        (rounds, runs) seconds, by name.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < least:
        rounds += 1
        for name, step in steps.items():
            moments = [clock()]
            for _ in range(runs):
                step()
                moments.append(clock())
            times[name].append(np.diff(moments).tolist())
    return {name: np.array(rows) for name, rows in times.items()}


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


def prefix_of(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest prefix with which a path, or its last part, begins, as in a splits.json."""
    fitting = [each for each in prefixes if any(part.startswith(each) for part in (name, Path(name).name))]
    return max(fitting, key=len, default=None)


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """The values of `--set KEY=VALUE` by their keys."""
    return dict(pair.split("=", 1) for pair in pairs)


def ort_session(model: bytes | Path, **settings: Any) -> Any:
    """A session of ONNX Runtime on one CPU thread, with its default options but for `settings`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": 1, **settings}.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
