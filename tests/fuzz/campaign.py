"""Run many cases in child processes that are watched, and collect what they come to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import mdlstm_tk
from fuzz.outcome import Outcome
from fuzz.worker import fuzzer_module, keep

START_LIMIT = 120.0  # seconds that a child may take to start
MAX_FINDINGS_KEPT = 5  # cases kept of each cause


@dataclass
class Campaign:
    """Cases of one kind.

    Attributes:
        kind: "models", "arrays" or "runs".
        corpus: folder that the kind's `write_corpus` made.
        findings: folder for cases with a forbidden outcome.
        seed: seed of the campaign.
        counts: number of cases by outcome.
        found: the cases with a forbidden outcome, by cause.
    """

    kind: str
    corpus: Path
    findings: Path
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[Outcome]] = field(default_factory=dict)

    def run(
        self,
        first: int,
        count: int,
        workers: int = 1,
        show: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Run the cases from `first` on; call `show` with each outcome."""
        lock = threading.Lock()
        failures: list[BaseException] = []

        def collect(outcome: Outcome) -> None:
            with lock:
                self.counts[outcome.kind] += 1
                if not outcome.is_allowed:
                    self.found.setdefault(outcome.cause, []).append(outcome)
                show(outcome)

        def share(worker: int) -> None:
            try:
                next_case = first + worker
                while next_case < first + count:
                    next_case = self._run_child(next_case, first + count, workers, collect)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=share, args=(k,), daemon=True) for k in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _run_child(self, first: int, end: int, step: int, collect: Callable[[Outcome], None]) -> int:
        """Run cases in one child until it has done its share or has died; return the next case."""
        module = fuzzer_module(self.kind)
        last = min(end, first + module.PER_WORKER * step)
        arguments = [self.kind, self.corpus, self.seed, self.findings, first, last, step]
        places = [Path(__file__).parents[1], Path(mdlstm_tk.__file__).parents[1]]  # as in this process
        paths = [*map(str, places), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            **getattr(module, "ENVIRONMENT", {}),
        }
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "fuzz.worker", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as child:
            lines: Queue[bytes | None] = Queue()
            errors: list[bytes] = []
            threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True).start()
            reader = threading.Thread(target=_read_tail, args=(child.stderr, errors), daemon=True)
            reader.start()
            case, plan, scratch, limit = None, "", Path("/nonexistent"), START_LIMIT
            while True:
                try:
                    line = lines.get(timeout=limit)
                except Empty:
                    child.kill()
                    outcome = Outcome(
                        case or first, "hang", f"more than {limit:g} s", f"hang: {plan}", plan
                    )
                    break
                if line is None:
                    child.wait()
                    reader.join(10)
                    text = b"".join(errors).decode(errors="replace")[-3000:]
                    if child.returncode == 0:
                        return last + (first - last) % step
                    if case is None:
                        raise RuntimeError(f"the child does not start: {text}")
                    outcome = Outcome(case, "crash", text, f"crash: {child.returncode}", plan)
                    break
                message: dict[str, Any] = json.loads(line)
                scratch = Path(message.get("scratch", scratch))
                if "started" in message:
                    case, plan, limit = message["started"], message["plan"], module.LIMIT
                elif "case" in message:
                    collect(Outcome(**message))
        if case is None:
            raise RuntimeError("the child does not start in time")
        keep(scratch, self.findings, f"{self.kind}-{self.seed}-{case}", outcome.as_dict())
        collect(outcome)
        _remove(scratch)
        return case + step


def _remove(scratch: Path) -> None:
    import shutil

    if scratch.name.startswith("fuzz-"):
        shutil.rmtree(scratch, ignore_errors=True)


def _read_lines(stream: Any, lines: Queue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _read_tail(stream: Any, errors: list[bytes]) -> None:
    for line in stream:
        errors.append(line)
        del errors[:-100]


def summary(campaign: Campaign, seconds: float) -> str:
    """The counts by outcome, then a line or two for each cause of a forbidden one."""
    total = sum(campaign.counts.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in campaign.counts.most_common())
    lines = [f"{campaign.kind}, seed {campaign.seed}: {total} cases in {seconds:.0f} s: {counts}"]
    for cause, outcomes in sorted(campaign.found.items(), key=lambda item: -len(item[1])):
        cases = " ".join(str(outcome.case) for outcome in outcomes[:MAX_FINDINGS_KEPT])
        lines.append(f"  {len(outcomes)} × {cause}\n      cases {cases} ({outcomes[0].plan})")
    return "\n".join(lines)


def timed(run: Callable[[], None]) -> float:
    """Seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
