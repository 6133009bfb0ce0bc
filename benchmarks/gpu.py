"""Test and measure everything on an NVIDIA GPU, and write one JSON file and one Markdown page.

    make gpu                                              # the environment, then this, in under 9 minutes
    python benchmarks/gpu.py --output build/gpu           # this alone
    python benchmarks/gpu.py --device cpu --only 1,4x4,1,4 --seconds 0.1 --no-tests   # try the script

The tests are those in tests/gpu: the kernels against float64 in every dtype, and ONNX Runtime's CUDA
provider against its CPU. Where NVIDIA's compute-sanitizer is installed, a small sweep runs in it. Then the
layer takes turns with `torch.nn.LSTM`, which is cuDNN's there. Both have the same number of sequential
steps and about the same number of positions, and neither rounds float32 to TF32. Times are given for one
step, since steps are what a recurrent network on a GPU waits for. What fails, or finds no time left, is
named on the page, and the rest goes on. Nothing here uses the internet.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from contenders import ALL, Shape, contenders
from measuring import ROOT, Step, argument_parser, interleave, markdown, milliseconds, ratio

SHAPES = [
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(8, (64, 64), 3, 32, ALL),
    Shape(32, (128, 128), 1, 128),
    Shape(1, (512, 512), 1, 32),
    Shape(4, (16, 16, 16), 1, 32),
    Shape(16, (1024,), 768, 768),  # the units, batch and length of FlashRNN's tables (arXiv:2412.07752)
    Shape(16, (32, 32), 768, 768),
]
DTYPES = ("float32", "bfloat16")
FORMATS = {  # column → format of its numbers
    "N, grid, C, n": "",
    "dtype": "",
    "pass": "",
    "backend": "",
    "steps": "",
    "layer": ".1f",
    "graph": ".1f",
    "nn.LSTM": ".1f",
    "÷ nn.LSTM": ".2f",
    "÷ floor": ".2f",
}
TEST_SECONDS, SANITIZER_SECONDS, MEASURING_SECONDS = 200, 90, 180  # the most that each part may take
TOTAL_SECONDS = 510  # no row begins after these; compiling kernels adds to the measuring
TEST_PROCESSES = 8  # they spend most of their time compiling
SWEEP = """
import torch
from mdlstm_tk import MDLSTM
layer = MDLSTM(2, 5, cell="stable", directions="all", layer_norm=True, backend="fused").cuda()
x = torch.randn(3, 5, 7, 2, device="cuda", requires_grad=True)
layer(x, torch.tensor([[5, 7], [2, 3], [1, 7]])).square().sum().backward()
torch.cuda.synchronize()
"""


def measure(shape: Shape, dtype: str, training: bool, device: str, seconds: float) -> dict[str, Any]:
    """A row of the table. Times are medians of the rounds, in microseconds for one wavefront; "graph", the
    layer replayed as one CUDA graph, is there for forward passes on a GPU alone."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    steps, layer, x = contenders(shape, training, device, getattr(torch, dtype))
    if device != "cpu" and not training:
        steps["graph"] = replayed(steps["layer"])
    waiting = {name: partial(in_turn, step, wait) for name, step in steps.items()}
    times = interleave(waiting, seconds)
    micros = {name: 1000 * milliseconds(series) / shape.wavefronts for name, series in times.items()}
    return {
        "N, grid, C, n": str(shape),
        "dtype": dtype,
        "pass": "training" if training else "forward",
        "backend": layer.backend_for(x).name,
        "steps": shape.wavefronts,
        **{name: micros.get(name) for name in ("layer", "graph", "nn.LSTM")},
        **{f"÷ {name}": ratio(times["layer"], times[name]) for name in ("nn.LSTM", "floor")},
    }


def in_turn(*steps: Step) -> None:
    """Call steps one after the other."""
    for step in steps:
        step()


def replayed(step: Step) -> Step:
    """The launches of a step, captured as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compile the kernels, and let the allocator settle
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def run_tests() -> tuple[str, list[str]]:
    """The last line of pytest on tests/gpu, or what went wrong; and a line for whatever did not pass."""
    workers = str(min(TEST_PROCESSES, os.cpu_count() or 1))
    options = ["-q", "-rfEs", "-n", workers, "-p", "no:cacheprovider"]
    lines = run([sys.executable, "-m", "pytest", *options, "tests/gpu"], TEST_SECONDS)
    return lines[-1], [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]


def run_sanitizer() -> str:
    """The findings of compute-sanitizer in a small sweep."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        return "not measured: compute-sanitizer is not installed"
    command = [program, "--error-exitcode", "1", sys.executable, "-c", SWEEP]
    # Each tensor in memory of its own, so that what lies just outside belongs to nobody.
    return run(command, SANITIZER_SECONDS, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})[-1]


def run(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> list[str]:
    """The lines that a command prints; the last one begins with "failed" if it fails or takes longer."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        lines = process.communicate(timeout=seconds)[0].strip().splitlines() or ["it printed nothing"]
        if process.returncode:
            lines.append(f"failed: {lines[-1]}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        lines = [*process.communicate()[0].splitlines(), f"failed: stopped after {seconds:.0f} s"]
    if lines[-1].startswith("failed"):
        print(*lines[-40:], sep="\n", file=sys.stderr)
    return lines


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = [
        ["" if row[name] is None else format(row[name], spec) for name, spec in FORMATS.items()]
        for row in report["rows"]
    ]
    lines = [
        "# On a GPU",
        "",
        f"Measured on {report['date']} on {report['device']} with torch {report['torch']}, CUDA "
        f"{report['cuda']} and cuDNN {report['cudnn']}, by `make gpu`, in {report['seconds']:.0f} s.",
        "",
        f"- Tests: {report['tests']}",
        *(f"  - {line}" for line in report["not_passed"]),
        f"- compute-sanitizer: {report['sanitizer']}",
        "",
        "Microseconds for one wavefront, or one step of `torch.nn.LSTM`. *graph* is the forward pass "
        "replayed as a CUDA graph. float32 is not rounded to TF32.",
        "",
        markdown(tuple(FORMATS), rows, 4),
    ]
    missing = [f"- {case}: {reason}" for case, reason in report["missing"].items()]
    return "\n".join([*lines, *(["", "Not measured:", "", *missing] if missing else []), ""])


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu", help="folder for the two files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", type=Shape.parse, action="append", metavar="N,GRID,C,n")
    parser.add_argument("--seconds", type=float, default=MEASURING_SECONDS, help="for all rows together")
    parser.add_argument("--no-tests", action="store_true")
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("not measured: torch sees no NVIDIA GPU; `mdlstm doctor` may say why")
    start = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    tests, not_passed, sanitizer = "not run: --no-tests", [], "not run: --no-tests"
    if not options.no_tests:
        tests, not_passed = run_tests()
        sanitizer = run_sanitizer() if on_gpu else "not measured: there is no GPU"
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tests": tests,
        "not_passed": not_passed,
        "sanitizer": sanitizer,
    }
    cases = list(product(options.only or SHAPES, DTYPES, (False, True)))
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for number, (shape, dtype, training) in enumerate(cases, 1):
        case = f"{shape}, {dtype}, {'training' if training else 'forward'}"
        print(f"{number}/{len(cases)}  {case}", file=sys.stderr)
        if time.perf_counter() - start > TOTAL_SECONDS:
            missing[case] = "no time was left"
            continue
        try:
            seconds = options.seconds / len(cases)
            rows.append(measure(shape, dtype, training, options.device, seconds))
        except Exception as error:  # out of memory, or a kernel that does not compile: Triton has its own
            missing[case] = str(error).strip().partition("\n")[0]
    report |= {"rows": rows, "missing": missing, "seconds": time.perf_counter() - start}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (options.output / "gpu.md").write_text(page(report), encoding="utf-8")
    print(f"wrote {options.output}/gpu.json and gpu.md", file=sys.stderr)
    if missing or any(str(report[part]).startswith("failed") for part in ("tests", "sanitizer")):
        sys.exit("a part failed; see above and gpu.md")


if __name__ == "__main__":
    main()
