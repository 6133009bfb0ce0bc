"""The fuzzer of run folders: call a verb on a mutated folder; look at what it prints, writes and opens."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.command import run_command
from fuzz.guard import Guard
from fuzz.outcome import ViolationError
from fuzz.run_files import mutate_run, plant
from fuzz.run_seeds import KINDS, write_run_seeds
from mdlstm_tk._util.private_folder import private_folder

MEMORY = 3 * 2**30  # by which a case may grow; kernels are compiled in it
LIMIT = 60.0  # seconds of a case
ADDRESS_SPACE = 16 * 2**30
PER_WORKER = 500
ENVIRONMENT = {"COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

SCAN = ("--form", "scan")
LIMITED = ("--steps", 6, "--batch-size", 4, "--device", "cpu")
VERBS: tuple[tuple[int, tuple[object, ...]], ...] = (
    # weight, arguments; RUN and DATA stand for the folders, MODEL for an export
    (40, ("info", "RUN")),
    (15, ("info", "RUN", "--json")),
    (3, ("info", "MODEL", "--json")),
    (8, ("infer", "DATA", "-m", "RUN", "-o", "out", "--device", "cpu")),
    (3, ("infer", "DATA", "-m", "RUN", "-o", "out/all.csv", "--device", "cpu")),
    (8, ("report", "RUN", "-o", "out/report.html")),
    (4, ("report", "RUN", "-o", "out/report.html", "--data", "DATA")),
    (5, ("export", "RUN", "-o", "out/model.onnx", *SCAN)),
    (1, ("export", "RUN", "--server-repo", "out", *SCAN)),
    (3, ("verify", "RUN", "--device", "cpu")),
    (2, ("verify", "MODEL", "--against", "RUN", "--device", "cpu")),
    (4, ("train", "--resume", "RUN", "--steps", 6)),
    (3, ("train", "-c", "RUN/config.toml", *LIMITED, "-o", "out/new")),
)
ARGUMENTS = tuple(arguments for _, arguments in VERBS)
WEIGHTS = tuple(weight for weight, _ in VERBS)


class RunFuzzer:
    """Cases made of the runs in a corpus.

    Args:
        corpus: folder that `write_corpus` made.
        scratch: an empty folder; scratch/case holds the present case.
    """

    def __init__(self, corpus: Path, scratch: Path) -> None:
        self.corpus = corpus
        self.kinds = sorted(path.name for path in (corpus / "runs").iterdir())
        self.folder = scratch / "case"
        temporary = scratch / "temporary"
        temporary.mkdir()
        # torch.onnx makes a folder
        tempfile.tempdir = os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(temporary)
        own = [private_folder("cache"), private_folder("state")]  # compiled kernels, notes of exports
        self.guard = Guard(self.folder, [temporary, *filter(None, own)])
        self._warm_up()

    def make(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        """Make a case in the folder; return what was changed, and a function that runs it."""
        kind = rng.choice(self.kinds)
        self._prepare(kind)
        plan = mutate_run(rng, self.folder, kind)
        (template,) = rng.choices(ARGUMENTS, WEIGHTS)
        arguments = self._arguments(template, kind)
        plan = f"{kind}: {plan}: {' '.join(map(str, arguments))}"
        return plan, lambda: self._call(arguments)

    def _prepare(self, kind: str) -> None:
        """Make the folder anew, and enter it."""
        os.chdir(self.corpus)
        shutil.rmtree(self.folder, ignore_errors=True)
        for part in (f"runs/{kind}", f"data/{kind}"):
            shutil.copytree(self.corpus / part, self.folder / part)
        plant(self.folder)
        os.chdir(self.folder)

    def _arguments(self, template: tuple[object, ...], kind: str) -> list[str]:
        run = Path("runs", kind)
        models = sorted(run.glob("*.onnx"))
        values = {
            "RUN": str(run),
            "DATA": f"data/{kind}",
            "MODEL": str(models[0]) if models else "none.onnx",
        }
        values["RUN/config.toml"] = str(run / "config.toml")
        return [values.get(str(argument), str(argument)) for argument in template]

    def _call(self, arguments: list[str]) -> str | None:
        before = _snapshot(self.folder)
        with self.guard.watching():
            called = run_command(arguments)
        run = arguments[arguments.index("--resume") + 1] if "--resume" in arguments else "out"
        after = _snapshot(self.folder)
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) != after.get(path) and not f"{path}/".startswith(("out/", f"{run}/")):
                raise ViolationError("files", f"{arguments[0]} changed {path!a}")
        if (self.folder / "EXECUTED").exists() or "CANARY" in called.out + called.err:
            raise ViolationError("access", f"{arguments[0]} executed a file, or printed a private one")
        for path in (self.folder / "out").rglob("*"):
            if path.is_file() and b"CANARY" in path.read_bytes():
                raise ViolationError("access", f"{arguments[0]} copied a private file to {path}")
        return called.error

    def _warm_up(self) -> None:
        """Call verbs on honest runs, so that what happens once per process is not watched."""
        for kind in self.kinds:
            self._prepare(kind)
            for verb in ("info", "report") if kind == self.kinds[0] else ("info",):
                template = next(arguments for arguments in ARGUMENTS if arguments[0] == verb)
                called = run_command(self._arguments(template, kind))
                if called.code:
                    raise RuntimeError(f"{verb} fails on an honest run: {called.err}")


def _snapshot(folder: Path) -> dict[str, Any]:
    """Type, size and time of every file below a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            changed = 0 if name in folders else (status.st_size, status.st_mtime_ns)
            found[os.path.relpath(path, folder)] = (status.st_mode, changed)
    return found


def write_corpus(folder: Path, small: bool) -> None:
    write_run_seeds(folder, ["transcribe"] if small else KINDS, with_reports=not small)
