"""Words that version 0.1 used in an unusual sense; CONTRIBUTING.md says what to write instead."""

from __future__ import annotations

import re

from helpers.checkout import ROOT, modules

WORDS = re.compile("likewise|behind|at once", re.IGNORECASE)
# Files that quote the words, and lines that use them in their ordinary sense.
QUOTING = {"tests/unit/test_language.py", "CONTRIBUTING.md"}
ALLOWED: set[tuple[str, str]] = set()  # (file, a part of the line)


def test_words_used_in_an_unusual_sense() -> None:
    files = {*modules().values(), *ROOT.glob("*.md"), ROOT / "setup.py"}
    for folder in ("docs", "tests", "benchmarks", "examples"):
        files |= {path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")}
    found = []
    for path in sorted(files):
        name = path.relative_to(ROOT).as_posix()
        if name not in QUOTING:
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            found += [f"{name}:{number}: {line.strip()}" for number, line in lines if WORDS.search(line)]
    allowed = [
        line for line in found if any(line.startswith(name) and part in line for name, part in ALLOWED)
    ]
    assert len(ALLOWED) <= 5
    assert sorted(set(found) - set(allowed)) == []
