"""Run a fuzzer; the exit code is 1 if an outcome was forbidden. The package `fuzz` describes it.

python tests/fuzz/run.py arrays --count 50000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.campaign import Campaign, summary, timed
from fuzz.outcome import Outcome
from fuzz.worker import FUZZERS, fuzzer_module


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutate files, and check what becomes of them.")
    parser.add_argument("kind", choices=sorted(FUZZERS))
    parser.add_argument("--count", type=int, default=1000, help="Number of cases [default: 1000].")
    parser.add_argument("--first", type=int, default=0, help="Number of the first case [default: 0].")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the campaign [default: 0].")
    parser.add_argument("--workers", type=int, default=1, help="Number of child processes [default: 1].")
    parser.add_argument("--only", type=int, metavar="K", help="Run only case K, and print its outcome.")
    parser.add_argument(
        "--corpus",
        type=Path,
        help="Folder of what is mutated; it is made if it does not exist [default: a new one].",
    )
    parser.add_argument(
        "--findings",
        type=Path,
        default=Path("fuzz-findings"),
        help="Folder for what failed [default: fuzz-findings].",
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus = (options.corpus or Path(folder)) / options.kind
        if not corpus.is_dir():
            fuzzer_module(options.kind).write_corpus(corpus, small=False)
        campaign = Campaign(options.kind, corpus.resolve(), options.findings.resolve(), options.seed)
        first, count = (options.first, options.count) if options.only is None else (options.only, 1)

        def show(outcome: Outcome) -> None:
            done = sum(campaign.counts.values())
            if options.only is not None:
                print(f"{outcome.plan}\n{outcome.kind}: {outcome.detail}")
            elif not outcome.is_allowed and len(campaign.found[outcome.cause]) == 1:
                print(f"case {outcome.case}: {outcome.cause} ({outcome.plan})", flush=True)
            elif done % max(1, count // 20) == 0:
                print(f"{done}/{count}", flush=True)

        seconds = timed(lambda: campaign.run(first, count, options.workers, show))
    print(summary(campaign, seconds))
    return 1 if campaign.found else 0


if __name__ == "__main__":
    sys.exit(main())
