"""Change the code at random places, and count the changes that no test notices.

    python tests/mutants.py FOLDER --count 500 [--area core] [--seed 0] [--jobs 2]

A mutant is one change by cosmic-ray, such as `-` in place of `+`, in a module of an area of `AREAS`. The
fast tests of the area that run the changed line are run until one fails, the quickest first, or all if none
is known to do so.
Mutants are drawn at random, equally many of each area and always the same for a seed. FOLDER gets copies of
the checkout, kernels, and `mutants.md`: a table, and every mutant that survived, which is a missing test or
makes no difference. `make mutants` runs this.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from coverage import CoverageData
from helpers.checkout import ROOT, copy_checkout

AREAS = {  # patterns of modules, and the folders or files of their tests, the quickest first
    "core": (
        "mdlstm_tk/[lsw]*.py mdlstm_tk/inputs.py mdlstm_tk/cells/*.py mdlstm_tk/backends/torch.py "
        "mdlstm_tk/backends/cpu/*.py mdlstm_tk/tiling/*.py",
        "core",
    ),
    "export": ("export/*.py export/lowering/*.py", "export"),
    "runtime": ("mdlstm_tk/runtime/*.py mdlstm_tk/runtime/tiles/*.py mdlstm_tk/io/*.py", "runtime"),
    "command line": (
        "cli/*.py",
        "cli browser/test_write_page.py text/test_read.py training/test_own_code.py "
        "export/test_export_tiles.py export/test_exports_of_runs.py",
    ),
    "data": ("mdlstm_tk/data/*.py mdlstm_tk/data/builtin/*.py", "data kinds"),
    "kinds": ("mdlstm_tk/kinds/*.py", "kinds runtime/test_answers.py report training/test_training.py"),
    "training": ("mdlstm_tk/training/*.py", "training"),
    "report": ("mdlstm_tk/report/*.py", "report"),
    "models": ("models/*.py", "models"),
    "text": ("mdlstm_tk/text/*.py", "text models"),
    "density": ("mdlstm_tk/density/*.py", "density"),
}
LONGEST = 3000.0  # seconds that the tests of an area may take without a mutant
TIMES_AS_LONG, MORE_SECONDS = 3, 30  # may they take with a mutant, which may loop forever
WRITTEN = count(1)  # times of changed files: Python would run compiled code of a file with an equal time


class Mutant(NamedTuple):
    """A change, and whether a test noticed it."""

    area: str
    path: str
    code: str
    line: int  # of the change, in the code before it
    is_killed: bool = False


def what_runs(code: str | None) -> str:
    """The syntax tree as text, without annotations, which nobody evaluates, and without `strict` of `zip`
    and `frozen` of data classes, which find mistakes of ours. Empty if the code has none."""
    try:
        tree = ast.parse(code or "")
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("strict", "frozen"):
            node.value = ast.Constant(0)
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(0))
    return ast.dump(tree)


def draw(area: str, number: int, seed: int) -> list[Mutant]:
    """Some mutants of an area, without those that change nothing that runs."""
    names = [n for n in sorted(plugins.operator_names()) if not plugins.get_operator(n).arguments()]
    same = ("_Is", "_IsNot", "_Is_Eq", "_IsNot_NotEq")  # of None and of small numbers
    names = [n for n in names if not n.endswith(same)]
    names = [n for n in names if not re.search("_(Not)?Eq_[LG]t", n)]  # mostly, they have no order
    candidates = []
    for path in (path for pattern in AREAS[area][0].split() for path in sorted(ROOT.glob(pattern))):
        nodes = list(ast_nodes(get_ast(path.read_text("utf-8"))))
        for name in names:
            operator = plugins.get_operator(name)()
            places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            candidates += [(path, name, occurrence) for occurrence in range(places)]
    Random(f"{seed} {area}").shuffle(candidates)
    found: list[Mutant] = []
    while candidates and len(found) < number:
        path, name, occurrence = candidates.pop()
        code = path.read_text("utf-8")
        changed = mutate_code(code, plugins.get_operator(name)(), occurrence)
        if what_runs(changed) not in ("", what_runs(code)):
            lines = zip(code.splitlines(), str(changed).splitlines(), strict=False)
            line, old = next((k, old) for k, (old, new) in enumerate(lines, 1) if old != new)
            if "TYPE_CHECKING" not in old:
                found.append(Mutant(area, str(path.relative_to(ROOT)), changed, line))
    return found


def tests_pass(checkout: Path, tests: list[str], timeout: float, *options: str) -> bool:
    """Run tests in a copy of the checkout; true if all pass in time."""
    options = ("-x", "-q", "-m", "not slow", "-p", "no:xdist", "-p", "no:cacheprovider", *options)
    environment = os.environ | {"PYTHONPATH": str(checkout), "NUMBA_CACHE_DIR": f"{checkout}.kernels"}
    with Path(f"{checkout}.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=checkout,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def tests_of(area: str) -> list[str]:
    return [f"tests/{name}" for name in AREAS[area][1].split()]


def try_out(
    mutant: Mutant, checkout: Path, lines: CoverageData, took: dict[str, float], timeout: float
) -> Mutant:
    path = checkout / mutant.path
    before, times = path.read_text("utf-8"), path.stat()
    path.write_text(mutant.code, "utf-8")
    os.utime(path, (number := next(WRITTEN), number))
    (measured,) = [each for each in lines.measured_files() if each.endswith(f"/{mutant.path}")] or [""]
    contexts = lines.contexts_by_lineno(measured).get(mutant.line, []) if measured else []
    covering = {context.partition("|")[0] for context in contexts if context}
    tests = sorted(covering, key=lambda test: took.get(test, 0.0)) or tests_of(mutant.area)
    passed = tests_pass(checkout, tests, timeout)
    if passed and len(covering) == 1:  # perhaps the test that imported the module
        passed = tests_pass(checkout, tests_of(mutant.area), timeout)
    path.write_text(before, "utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # compiled kernels depend on it
    print("survived" if passed else "killed", mutant.path, mutant.line, flush=True)
    return mutant._replace(is_killed=not passed)


def table(mutants: list[Mutant]) -> str:
    lines = ["| area | tried | killed | % |", "|---|---|---|---|"]
    for area in dict.fromkeys(each.area for each in mutants):
        killed = [each.is_killed for each in mutants if each.area == area]
        lines.append(f"| {area} | {len(killed)} | {sum(killed)} | {100 * sum(killed) / len(killed):.0f} |")
    for each in mutants:
        if not each.is_killed:
            before = (ROOT / each.path).read_text("utf-8")
            diff = [*unified_diff(before.splitlines(), each.code.splitlines(), n=1, lineterm="")][2:]
            lines += ["", each.path, "", "```diff", *diff, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--area", action="append", choices=AREAS, help="all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    areas, free = options.area or list(AREAS), SimpleQueue[Path]()
    for job in range(options.jobs):
        checkout = options.folder.resolve() / f"checkout-{job}"
        shutil.rmtree(checkout, ignore_errors=True)
        free.put(copy_checkout(checkout))
    seconds, lines, took = dict[str, float](), dict[str, CoverageData](), dict[str, float]()
    for area in areas:
        start, checkout = time.monotonic(), free.get()
        measured = ("--cov", "--cov-context=test", "--cov-report=", "--durations=0", "-vv")
        if not tests_pass(checkout, tests_of(area), LONGEST, *measured):
            sys.exit(f"the tests of '{area}' fail without a mutant; see {checkout}.txt")
        seconds[area] = time.monotonic() - start
        lines[area] = CoverageData(str(shutil.move(checkout / ".coverage", checkout / f".coverage {area}")))
        lines[area].read()
        for number, test in re.findall(
            r"([\d.]+)s (?:call|setup) +(\S.*)", Path(f"{checkout}.txt").read_text()
        ):
            took[test] = took.get(test, 0.0) + float(number)
        free.put(checkout)

    def run(mutant: Mutant) -> Mutant:
        checkout = free.get()
        try:
            timeout = TIMES_AS_LONG * seconds[mutant.area] + MORE_SECONDS
            return try_out(mutant, checkout, lines[mutant.area], took, timeout)
        finally:
            free.put(checkout)

    drawn = [each for area in areas for each in draw(area, -(-options.count // len(areas)), options.seed)]
    with ThreadPoolExecutor(options.jobs) as executor:
        text = table([*executor.map(run, drawn)])
    (options.folder / "mutants.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
