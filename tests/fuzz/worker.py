"""A child process that runs cases one after another, and says before each which one it is."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from fuzz.outcome import observe

FUZZERS = {"models": "ModelFuzzer", "arrays": "ArrayFuzzer", "runs": "RunFuzzer"}


def fuzzer_module(kind: str) -> Any:
    """The module of a fuzzer: it has LIMIT, MEMORY, ADDRESS_SPACE, PER_WORKER, and its class.

    Args:
        kind: one of `FUZZERS`, or another fuzzer as module:class.
    """
    return importlib.import_module(f"fuzz.{kind}" if kind in FUZZERS else kind.partition(":")[0])


def _fuzzer_class(kind: str) -> Any:
    return getattr(fuzzer_module(kind), FUZZERS.get(kind) or kind.partition(":")[2])


def main(kind: str, corpus: str, seed: str, findings: str, *cases: str) -> None:
    """Run the cases of range(first, last, step)."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    module = fuzzer_module(kind)
    _limit_address_space(module.ADDRESS_SPACE)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        channel.write(json.dumps({"scratch": scratch}) + "\n")
        fuzzer = _fuzzer_class(kind)(Path(corpus), Path(scratch))
        channel.write(json.dumps({"ready": True}) + "\n")
        first, last, step = map(int, cases)
        for case in range(first, last, step):
            channel.write(json.dumps({"started": case, "plan": "?"}) + "\n")
            plan, run = fuzzer.make(random.Random(f"{kind} {seed} {case}"))
            channel.write(json.dumps({"started": case, "plan": plan}) + "\n")
            outcome = observe(case, plan, run, module.MEMORY)
            if not outcome.is_allowed:
                keep(Path(scratch), Path(findings), f"{kind}-{seed}-{case}", outcome.as_dict())
            channel.write(json.dumps(outcome.as_dict()) + "\n")


def keep(scratch: Path, findings: Path, name: str, outcome: dict[str, Any]) -> None:
    """Copy the present case into the folder of findings, with what it came to."""
    folder = findings / name
    shutil.rmtree(folder, ignore_errors=True)
    if (scratch / "case").is_dir():
        shutil.copytree(scratch / "case", folder, symlinks=True, copy_function=_copy)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")


def _copy(source: str, target: str) -> None:
    if stat.S_ISFIFO(os.lstat(source).st_mode):
        os.mkfifo(target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _limit_address_space(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
