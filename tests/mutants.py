"""Change the code at random places, and count the changes that no test notices.

    python tests/mutants.py FOLDER --count 500 [--area cells] [--seed 0] [--jobs 2]

A mutant is one change by cosmic-ray, such as `-` in place of `+`, in a module of an area of `AREAS`, and
the tests of that area run on it until one fails. Mutants are drawn at random, equally many of each area
and always the same for a seed. FOLDER gets copies of the checkout, kernels, and `mutants.md`: a table,
and every mutant that survived, which is a missing test or makes no difference. `make mutants` runs this.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
from difflib import unified_diff
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from helpers.checkout import ROOT, copy_checkout

BACKENDS = "mdlstm_tk/backends"
SWEEPS = "core/test_sweeps.py"
AGREE = f"{SWEEPS}::test_agrees_with_the_oracle"
ANY_CELL = f"{SWEEPS}::test_the_torch_backend_computes_any_cell"
COMPILED = [  # modules that Numba compiles, or that write what it compiles
    *(f"{BACKENDS}/cpu/{name}.py" for name in ("cell_code", "intrinsics", "kernels", "matmul", "simd")),
    "mdlstm_tk/cells/graph.py",
]


class Area(NamedTuple):
    modules: str  # patterns
    tests: str  # files, or single tests; the quickest come first
    chosen: str = ""  # pytest's -k


AREAS = {
    "cells": Area("mdlstm_tk/cells/*.py", f"core/test_cells.py {AGREE} {ANY_CELL}", "not fused or slstm"),
    "wavefront": Area(
        "mdlstm_tk/wavefront.py mdlstm_tk/states.py mdlstm_tk/inputs.py",
        f"core/test_layer.py core/test_states.py core/test_operator.py {SWEEPS}",
    ),
    "torch": Area(
        f"{BACKENDS}/torch.py {BACKENDS}/cuda/products.py mdlstm_tk/sweep.py",
        f"{AGREE} {ANY_CELL} core/test_operator.py core/test_precision.py core/test_transforms.py "
        "gpu/test_triton.py",
        "not fused",
    ),
    "cpu": Area(
        f"{BACKENDS}/cpu/*.py",
        f"{SWEEPS} core/test_cells.py core/test_threads.py core/test_kernel_cache.py core/test_layer.py",
        "not torch",
    ),
    "tiling": Area("mdlstm_tk/tiling/*.py", f"core/test_tiling.py {SWEEPS}", "not torch"),
    "lowering": Area(
        "export/lowering/*.py",
        "export/test_lowering.py export/test_export_onnx.py",
    ),
    "model check": Area("mdlstm_tk/runtime/model_check.py", "runtime/test_model_check.py"),
    "runtime": Area(
        "mdlstm_tk/runtime/[!m]*.py mdlstm_tk/io/*.py mdlstm_tk/kinds/kind.py "
        "mdlstm_tk/kinds/classify.py mdlstm_tk/kinds/tag.py mdlstm_tk/kinds/segment.py",
        "runtime/test_session.py runtime/test_metadata.py runtime/test_images.py runtime/test_files.py "
        "runtime/test_answers.py runtime/test_limits.py runtime/test_infer.py",
    ),
    "tiles": Area("mdlstm_tk/runtime/tiles/*.py", "runtime/test_tiles.py"),
    "command line": Area("cli/*.py", "cli/test_mistakes.py cli/test_verbs.py runtime/test_limits.py"),
    "data": Area(
        "mdlstm_tk/data/*.py mdlstm_tk/data/builtin/*.py",
        "data/test_batches.py data/test_splits.py data/test_masks.py data/test_formats.py "
        "kinds/test_kinds.py",
    ),
    "kinds": Area(
        "mdlstm_tk/kinds/*.py",
        "kinds/test_measures.py kinds/test_panels.py kinds/test_kinds.py report/test_report.py "
        "runtime/test_answers.py training/test_training.py",
    ),
    "training": Area(
        "mdlstm_tk/training/*.py",
        "training/test_settings.py training/test_init.py training/test_training.py "
        "training/test_interrupted.py training/test_comparison.py",
    ),
    "models": Area("models/*.py", "models/test_models.py"),
    "text": Area(
        "mdlstm_tk/text/*.py",
        "text/test_decoding.py text/test_pages.py text/test_lines.py text/test_read.py "
        "text/test_transcribe.py models/test_models.py::test_a_network_has_its_device_and_type",
    ),
    "density": Area("mdlstm_tk/density/*.py", "density/test_networks.py density/test_sampling.py"),
}
MAX_SECONDS = 3000.0  # for the tests of an area without a mutant
TIMES_AS_LONG, MORE_SECONDS = 3, 20  # may the tests of a mutant take, which may loop forever
PRELOADED = ("torch", "numba", "onnx", "onnxruntime", "onnxscript", "hypothesis", "pytest")


def what_runs(code: str | None) -> str:
    """The syntax tree as text, without annotations, which nobody evaluates, and without `strict=True` of
    `zip`, which finds mistakes of ours. Empty if the code has none."""
    try:
        tree = ast.parse(code or "")
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "strict":
            node.value = ast.Constant(0)
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(0))
    return ast.dump(tree)


def draw(area: str, count: int, seed: int) -> list[dict[str, str]]:
    """Some mutants of an area, without those that change nothing that runs."""
    paths = [path for pattern in AREAS[area].modules.split() for path in sorted(ROOT.glob(pattern))]
    names = [n for n in sorted(plugins.operator_names()) if not plugins.get_operator(n).arguments()]
    names = [n for n in names if not n.endswith(("_Is", "_IsNot"))]  # the same for small numbers
    candidates = []
    for path in paths:
        nodes = list(ast_nodes(get_ast(path.read_text("utf-8"))))
        for name in names:
            operator = plugins.get_operator(name)()
            places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            candidates += [(path, name, occurrence) for occurrence in range(places)]
    Random(f"{seed} {area}").shuffle(candidates)
    found = []
    for path, name, occurrence in candidates:
        if len(found) == count:
            break
        code = path.read_text("utf-8")
        changed = mutate_code(code, plugins.get_operator(name)(), occurrence)
        if what_runs(changed) not in ("", what_runs(code)):
            found.append({"area": area, "path": str(path.relative_to(ROOT)), "code": changed})
    return found


def run_tests(checkout: Path, area: str, timeout: float, mutated: str = "") -> bool:
    """Run the tests of an area in a copy of the checkout; true if all pass in time.

    Args:
        checkout: the copy.
        area: the name of the area.
        timeout: seconds.
        mutated: the path of the module that was changed. Only if Numba compiles it are kernels compiled
            anew, into a folder that is removed afterwards.
    """
    child = os.fork()  # it has imported what takes long, but nothing of the checkout
    if child == 0:
        os.setsid()
        os.chdir(checkout)
        output = os.open(f"{checkout}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": f"{checkout}.pyc"}
        if mutated in COMPILED:
            os.environ["NUMBA_CACHE_DIR"] = f"{checkout}.kernels"
        sys.path[:] = [str(checkout), *(p for p in sys.path if Path(p) not in (ROOT, ROOT / "tests"))]
        for name in [name for name in sys.modules if name.partition(".")[0] == "helpers"]:
            del sys.modules[name]
        tests = [f"tests/{name}" for name in AREAS[area].tests.split()]
        options = ["-x", "-q", "-m", "not slow", "-p", "no:xdist", "-p", "no:cacheprovider"]
        try:
            compilation = importlib.import_module("mdlstm_tk.backends.cpu.compile")
            digest = hashlib.sha256(b"".join(Path(name).read_bytes() for name in COMPILED)).hexdigest()
            compilation._source_digest = lambda: digest  # type: ignore[attr-defined]
            os._exit(int(pytest.main([*options, "-k", AREAS[area].chosen, *tests])))
        finally:
            os._exit(1)
    end = time.monotonic() + timeout
    status = None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also servers of processes that tests have left
    if status is None:
        os.waitpid(child, 0)
    for folder in (f"{checkout}.pyc", f"{checkout}.kernels"):
        shutil.rmtree(folder, ignore_errors=True)
    return status == 0


def page(rows: list[dict[str, str]]) -> str:
    lines = ["| area | tried | killed | % |", "|---|---|---|---|"]
    for area in dict.fromkeys(row["area"] for row in rows):
        outcomes = [row["outcome"] for row in rows if row["area"] == area]
        killed = outcomes.count("killed")
        lines.append(f"| {area} | {len(outcomes)} | {killed} | {100 * killed / len(outcomes):.0f} |")
    for row in rows:
        if row["outcome"] == "survived":
            lines += ["", row["path"], "", "```diff", row["diff"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--area", action="append", choices=AREAS, help="all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    folder, areas = options.folder.resolve(), options.area or list(AREAS)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton looks at it when it is imported
    for name in PRELOADED:
        __import__(name)
    checkouts = [folder / f"checkout-{job}" for job in range(options.jobs)]
    for checkout in checkouts:
        shutil.rmtree(checkout, ignore_errors=True)
        copy_checkout(checkout)
    queue = [
        mutant for area in areas for mutant in draw(area, -(-options.count // len(areas)), options.seed)
    ]
    results = folder / "mutants.jsonl"
    results.write_text("")
    workers = []
    for job, checkout in enumerate(checkouts):
        if worker := os.fork():
            workers.append(worker)
            continue
        seconds = {}
        for area in areas:  # which also compiles the kernels, that are cached by the path of their code
            start = time.monotonic()
            passed = run_tests(checkout, area, MAX_SECONDS)
            seconds[area] = time.monotonic() - start
            if not passed:
                os.write(2, f"the tests of '{area}' fail without a mutant; see {checkout}.txt\n".encode())
                os._exit(1)
        for mutant in queue[job :: options.jobs]:
            path, code = checkout / mutant["path"], mutant.pop("code")
            before, times = path.read_text("utf-8"), path.stat()
            path.write_text(code, "utf-8")
            timeout = MORE_SECONDS + TIMES_AS_LONG * seconds[mutant["area"]]
            passed = run_tests(checkout, mutant["area"], timeout, mutant["path"])
            path.write_text(before, "utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # kernels depend on it
            diff = list(unified_diff(before.splitlines(), code.splitlines(), n=1, lineterm=""))[2:]
            row = {**mutant, "outcome": "survived" if passed else "killed", "diff": "\n".join(diff)}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        os._exit(0)
    statuses = [os.waitpid(worker, 0)[1] for worker in workers]
    if any(statuses):
        sys.exit(1)
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    text = page(sorted(rows, key=lambda row: (areas.index(row["area"]), row["path"])))
    (folder / "mutants.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
