"""Statistics of readings: intervals over groups, pages, confusions, and how honest confidences are."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import read, write_lines
from rapidfuzz.distance import Levenshtein

from mdlstm_tk.text.ctc import Character, Transcription
from mdlstm_tk.text.measures import predicted_texts
from mdlstm_tk.text.reading import (
    Edit,
    Line,
    align,
    calibration_error,
    confusions,
    describe_lines,
    error_interval,
    evaluate_lines,
    page_errors,
    reliability,
)
from mdlstm_tk.text.sections import sample, text_sections
from mdlstm_tk.training import build_network, configure, evaluate


def line(
    reading: str, truth: str, name: str = "page.xml 1", group: str = "", confidence: float = 0.5
) -> Line:
    characters = tuple(Character(c, k, k + 1, confidence) for k, c in enumerate(reading))
    return Line(name, group or name, truth, Transcription(reading, confidence, characters))


def test_an_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    groups = [f"writer {k // 5}" for k in range(60)]
    lengths = rng.integers(10, 50, 60)
    rates = np.repeat(rng.random(12) * 0.4, 5)
    edits = rng.binomial(lengths, rates)
    low, high = error_interval(edits.tolist(), lengths.tolist(), groups) or (0, 0)
    draws = []
    for _ in range(3000):
        chosen = rng.integers(0, 12, 12)
        positions = np.concatenate([np.arange(5 * k, 5 * k + 5) for k in chosen])
        draws.append(edits[positions].sum() / lengths[positions].sum())
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.012)
    assert low < edits.sum() / lengths.sum() < high
    alone = error_interval(edits.tolist(), lengths.tolist(), list(map(str, range(60)))) or (0, 0)
    assert alone[1] - alone[0] < 0.8 * (high - low)  # lines of one writer are no independent samples


def test_the_interval_of_one_group_is_unknown() -> None:
    assert error_interval([1, 2], [5, 5], ["a", "a"]) is None
    assert error_interval([1, 2], [5, 0], ["a", "b"]) is None
    assert error_interval([1, 1], [5, 5], ["a", "b"]) == (0.2, 0.2)


def test_an_interval_over_many_groups_needs_little_memory() -> None:
    count = 2000
    tracemalloc.start()
    try:
        assert error_interval([1] * count, [5] * count, list(map(str, range(count)))) == (0.2, 0.2)
        assert tracemalloc.get_traced_memory()[1] < 8e6  # all draws at once would take 64 MB
    finally:
        tracemalloc.stop()


def test_errors_of_pages_are_those_of_all_their_characters() -> None:
    lines = [
        line("ab", "abcd", "b.xml l1", "b.xml"),
        line("abcdef", "abcdef", "b.xml l2", "b.xml"),
        line("x", "yy", "a b.XML 7", "a b.XML"),
        line("z", "z", "c.png"),
    ]
    pages = page_errors(lines)
    assert pages == {"a b.XML": (1.0, 1), "b.xml": (0.2, 2), "c.png": (0.0, 1)}
    assert next(iter(pages)) == "a b.XML"


def test_confusions_count_replaced_missing_and_superfluous_characters() -> None:
    counts = confusions([line("le chat", "la chat"), line("un", "un e"), line("aab", "ab"), line("e", "a")])
    assert counts == {("a", "e"): 2, ("", "a"): 1, (" ", ""): 1, ("e", ""): 1}


def test_an_alignment_spells_both_texts_with_the_fewest_errors() -> None:
    assert align("cat", "cut") == [Edit("c", "c"), Edit("a", "u"), Edit("t", "t")]
    rng = np.random.default_rng(0)
    for _ in range(100):
        reading, truth = ("".join(rng.choice(list("ab c"), rng.integers(0, 7))) for _ in range(2))
        edits = align(reading, truth)
        assert "".join(edit.read for edit in edits) == reading
        assert "".join(edit.truth for edit in edits) == truth
        assert sum(edit.is_error for edit in edits) == Levenshtein.distance(reading, truth)


def test_honest_confidences_have_no_calibration_error() -> None:
    """Of characters with confidence 0.7, seven in ten are right."""
    lines = [line("abcdefgXYZ", "abcdefghij", confidence=0.7)]
    assert reliability(lines) == [(pytest.approx(0.7), 0.7, 10)]
    assert calibration_error(reliability(lines)) == pytest.approx(0, abs=1e-12)
    boastful = [line("abcdefgXYZ", "abcdefghij", confidence=1.0), line("aX", "ab", confidence=0.3)]
    assert reliability(boastful) == [(pytest.approx(0.3), 0.5, 2), (1.0, 0.7, 10)]
    assert calibration_error(reliability(boastful)) == pytest.approx((0.2 * 2 + 0.3 * 10) / 12)


def test_blanks_at_the_ends_do_not_count() -> None:
    lines = [line(" ab ", "ab", confidence=0.95)]
    assert reliability(lines) == [(pytest.approx(0.95), 1.0, 2)]
    assert not confusions(lines)


def test_the_description_is_json() -> None:
    described = describe_lines([line("ab", "ac", "1", "p"), line("", "b", "2", "p"), line("", "b", "q")])
    assert json.loads(json.dumps(described))["pages"] == [["q", 1.0, 1], ["p", 2 / 3, 2]]
    assert (described["groups"], described["edits"]) == (2, 3)
    assert described["intervals"]["word_error"] == (1.0, 1.0)
    assert describe_lines([]) == {}


def test_lines_are_those_of_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a<b>", *("".join("ab"[n >> bit & 1] for bit in range(1 + n % 5)) for n in range(11))]
    task = read(write_lines(tmp_path, texts), validation=0.6)
    monkeypatch.setattr(type(task), "evaluation_batch", 2)
    config = configure(task="transcribe", data=str(tmp_path), model="md", hidden=4)
    network = build_network(config, task.spec)
    lines = evaluate_lines(network, task, "validation")
    assert [one.name for one in lines] == task.names["validation"]
    assert [one.group for one in lines] == task.names["validation"]  # images of lines are on no page
    errors = evaluate(network, task, "validation")
    assert sum(one.counts.character_edits for one in lines) == round(
        errors["character_error"] * sum(one.counts.characters for one in lines)
    )
    for k, (one, (x, y)) in enumerate(zip(lines, task.sets["validation"], strict=True)):
        with torch.no_grad():
            logits = network(torch.from_numpy(x[None])).numpy()
        assert predicted_texts(logits, task.spec) == [one.transcription.text]
        assert "".join(task.spec.classes[k - 1] for k in y) == one.truth
        np.testing.assert_array_equal(sample(task, "validation", k).x[0], x)


def test_names_and_texts_of_users_are_escaped_in_reports(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_lines(tmp_path / split, ["a<b>&", "<i>b"])
    task = read(tmp_path)
    config = configure(task="transcribe", data=str(tmp_path), model="md", hidden=4)
    section = text_sections(build_network(config, task.spec), task)
    assert "&lt;" in section and "<b>" not in section and "0.png" in section
    assert section.count("<img") == 2
