"""A small number of mutated models, arrays and run folders; `tests/fuzz` runs as many as you like."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fuzz import mutate, protobuf
from fuzz.campaign import Campaign, summary
from fuzz.outcome import Outcome, observe, unclean
from fuzz.worker import fuzzer_module

COUNTS = {"models": 400, "arrays": 500, "runs": 16}


@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_files_end_in_a_result_or_in_one_line(kind: str, tmp_path: Path) -> None:
    fuzzer_module(kind).write_corpus(tmp_path / "corpus", small=True)
    campaign = Campaign(kind, tmp_path / "corpus", tmp_path / "findings")
    campaign.run(0, COUNTS[kind])
    assert not campaign.found, summary(campaign, 0)
    assert sum(campaign.counts.values()) == COUNTS[kind]
    assert campaign.counts["ran"], campaign.counts
    assert campaign.counts["refused"], campaign.counts


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        ("raise KeyError('x')", "exception", "KeyError"),
        ("import os; os.abort()", "crash", "crash"),
        ("import time; time.sleep(60)", "hang", "hang"),
        ("bytearray(b'1') * 2**29", "memory", "memory"),
        ("raise MDLSTMError('a' + chr(27))", "message", "message"),
    ],
)
def test_forbidden_outcomes_are_found(
    code: str, kind: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fuzzers above can fail: each forbidden outcome is noticed, and the next case runs."""
    (tmp_path / "fuzz_fake.py").write_text(
        f"""if True:
        from pathlib import Path
        from mdlstm_tk.errors import MDLSTMError
        LIMIT, MEMORY, ADDRESS_SPACE, PER_WORKER = 1.0, 2**28, 2**34, 10

        class Fake:
            def __init__(self, corpus, scratch):
                self.case = -1

            def make(self, rng):
                def run():
                    if self.case == 1:
                        {code}
                self.case += 1
                return "plan", run
        """
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    campaign = Campaign("fuzz_fake:Fake", tmp_path, tmp_path / "findings")
    campaign.run(0, 3)
    assert campaign.counts == {"ran": 2, kind: 1}
    ((found, (outcome,)),) = campaign.found.items()
    assert outcome.case == 1 and cause in found
    assert (tmp_path / "findings" / "fuzz_fake:Fake-0-1" / "outcome.json").exists()


def test_a_case_depends_on_its_number_alone() -> None:
    def case(number: int) -> object:
        rng = random.Random(f"x {number}")
        value = mutate.mutate_json(rng, {"a": [1, "text", None]})
        return (
            repr(value),
            mutate.mutate_bytes(rng, b"0123456789"),
            protobuf.encode([protobuf._random_field(rng)]),
        )

    assert [case(k) for k in range(50)] == [case(k) for k in range(50)]
    assert len({repr(case(k)) for k in range(50)}) > 40


def test_protobuf_is_decoded_and_encoded() -> None:
    fields = [(1, protobuf.VARINT, 300), (2, protobuf.BYTES, b"abc"), (9, protobuf.FIXED32, b"1234")]
    assert protobuf.decode(protobuf.encode(fields)) == fields
    assert protobuf.decode(protobuf.encode(fields, padding=2)) == fields
    assert protobuf.encode(fields)[:3] == b"\x08\xac\x02"


def test_messages_are_judged() -> None:
    assert not unclean("a plain message: é 日本")
    for text in ("a\nb", "\x1b[2J", "\u202e", "\ud800", "x" * 10_000):
        assert unclean(text)
    assert not unclean("a\nb", lines=2)
    assert observe(3, "plan", lambda: None, 2**30) == Outcome(3, "ran", plan="plan")
