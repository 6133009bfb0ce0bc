"""Nothing that is trained on is validated with or tested on in silence: samples are known by content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import samples, save, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdlstm_tk.data.files import Sample
from mdlstm_tk.data.scan import Moments, Scanned
from mdlstm_tk.data.splits import divide
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import configure, make_task
from mdlstm_tk.training.checkpoint import State, contents

FOLDERS = ("classify", "segment", "tag", "regress", "grid")


def scanned(contents: list[int], groups: list[int], strata: list[int]) -> list[Scanned]:
    moments = Moments(1, np.zeros(1), np.zeros(1), 0, 1)
    found = [
        Scanned(Sample(f"{k}", str, f"page {group}"), f"{content:016x}", "", (1, 1), moments, stratum)  # type: ignore[arg-type]
        for k, (content, group, stratum) in enumerate(zip(contents, groups, strata, strict=True))
    ]
    return sorted(found, key=lambda each: each.digest)


@settings(max_examples=60)
@given(data=st.data(), share=st.floats(0.05, 0.5), seed=st.integers(0, 5))
def test_no_content_and_no_page_is_in_two_splits(data: st.DataObject, share: float, seed: int) -> None:
    """Whatever copies and pages there are; and something is left to train on and to validate with, unless
    all samples hang together."""
    count = data.draw(st.integers(2, 30))
    draw = lambda high: data.draw(st.lists(st.integers(0, high), min_size=count, max_size=count))  # noqa: E731
    contents, groups = draw(20), draw(12)
    strata = [content % 2 for content in contents]
    every = scanned(contents, groups, strata)
    divided = divide({"train": every}, Path("/nowhere"), share, seed, str)
    by_split = {
        split: ({e.digest for e in some}, {e.sample.group for e in some}) for split, some in divided.items()
    }
    assert sum(map(len, divided.values())) == count
    train = by_split["train"]
    for digests, pages in [by_split["validation"]] if "validation" in by_split else []:
        assert not digests & train[0] and not pages & train[1]


@settings(max_examples=30)
@given(data=st.data(), seed=st.integers(0, 3))
def test_names_and_order_of_samples_decide_nothing(data: st.DataObject, seed: int) -> None:
    contents = data.draw(st.lists(st.integers(0, 1000), min_size=4, max_size=20, unique=True))
    order = data.draw(st.permutations(contents))
    parts = [
        divide(
            {"train": scanned([*some], [*range(len(some))], [0] * len(some))}, Path("/x"), 0.3, seed, str
        )
        for some in (contents, order)
    ]
    one, other = ({split: {e.digest for e in some} for split, some in each.items()} for each in parts)
    assert one == other


@settings(max_examples=30)
@given(count=st.integers(4, 30), share=st.floats(0.05, 0.5), seed=st.integers(0, 3))
def test_what_was_learned_before_is_held_out_last(count: int, share: float, seed: int) -> None:
    every = scanned([*range(count)], [*range(count)], [0] * count)
    first = divide({"train": every}, Path("/x"), share, seed, str)
    learned = {each.digest for each in first["train"]}
    again = divide({"train": every}, Path("/x"), share, seed + 7, str, learned)
    assert [e.digest for e in again["validation"]] == [e.digest for e in first["validation"]]


@pytest.mark.parametrize("kind", FOLDERS)
def test_renamed_and_reordered_files_give_the_same_task(kind: str, tmp_path: Path) -> None:
    content = samples(kind)
    order = np.random.default_rng(0).permutation(len(content)).tolist()
    tasks = []
    for name, some in (("a", content), ("b", [content[k] for k in order])):
        for layout in ("folder", "arrays"):
            names = [f"{name}{7 * k % 24}" for k in range(len(content))]
            path = write(tmp_path / f"{name}-{layout}", kind, layout, some, names)
            tasks.append(make_task(configure(task=kind, data=str(path), augment=0.0)))
    for one, other in (tasks[::2], tasks[1::2]):
        assert one.digests == other.digests
        for step in range(4):
            for a, b in zip(one.batch(1, step, 5), other.batch(1, step, 5), strict=True):
                assert a is b is None or np.array_equal(a, b)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ('\ufeff{"train": ["a"], "valid": ["b"]}', True),
        ('{"train": "a", "valid": ["b"]}', False),
        ('{"train": ["a", "b"], "valid": ["b"]}', False),
        ('{"train": ["a"], "valid": [1]}', False),
        ('{"train": ["a"], "other": ["b"]}', False),
        ('["a"]', False),
    ],
)
def test_prefixes_are_lists_of_texts_in_one_split_each(text: str, is_right: bool, tmp_path: Path) -> None:
    data = write(tmp_path, "grid", "splits.json")
    (data / "splits.json").write_text(text, encoding="utf-8")
    config = configure(task="grid", data=str(data))
    if is_right:
        assert make_task(config).count("validation") == 6
        return
    with pytest.raises(InputError):
        make_task(config)


@pytest.mark.parametrize("kind", FOLDERS)
def test_copies_between_splits_are_seen(kind: str, tmp_path: Path) -> None:
    content = samples(kind)
    for copied in (False, True):
        path = tmp_path / f"{copied}"
        write(path, kind, "split folders", [*content[:-1], content[0] if copied else content[-1]])
        task = make_task(configure(task=kind, data=str(path)))
        learned, chose = (contents(task, split) for split in ("train", "validation"))
        assert len(State(learned=learned).seen(task, "test")) == copied
        assert State(learned=learned).seen(task, "validation") == []
        assert State(validated=chose).seen(task, "test") == []


@pytest.mark.parametrize("kind", ["classify", "segment", "tag"])
def test_classes_that_are_not_trained_on_are_said(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And where there is one alone to train on, nothing is learned."""
    content: list[Any] = samples(kind)
    x, of_one = content[0]
    unseen = np.full_like(x, 99) if kind == "segment" else "unseen" if kind == "classify" else ["unseen"]
    for count in (0, 1, 2):
        path = write(tmp_path / f"{count}", kind, "split folders", [*content, *[(x + 1, unseen)] * count])
        (path / "beside").mkdir()
        caplog.clear()
        make_task(configure(task=kind, data=str(path)))
        assert "beside" in caplog.text
        told = [each.getMessage() for each in caplog.records if "without samples" in each.getMessage()]
        assert len(told) == bool(count) and all(
            ("99" if kind == "segment" else "unseen") in t for t in told
        )
    one = [] if kind == "tag" else np.zeros_like(x) if kind == "segment" else of_one
    pairs = [*((x + k, one) for k in range(9)), *content[:8]]
    with pytest.raises(InputError):
        make_task(configure(task=kind, data=str(write(tmp_path / "one", kind, "split folders", pairs))))


def test_copies_are_held_out_together(tmp_path: Path) -> None:
    """Each image three times, under other names and in other formats."""
    data = write(tmp_path, "classify", "folder")
    for file in [*data.rglob("*.png")]:
        shutil.copy(file, file.with_name(f"copy of {file.name}"))
        save(file.with_suffix(".bmp"), np.asarray(Image.open(file)))
    task = make_task(configure(task="classify", data=str(data), validation=0.25))
    of_split = [{digest[:16] for digest in task.digests[split]} for split in ("train", "validation")]
    assert not of_split[0] & of_split[1]
    assert len(task.digests["validation"]) == 3 * len(of_split[1]) == 18


def test_splits_keep_a_share_of_each_class(tmp_path: Path) -> None:
    content: list[Any] = [*samples("classify", 60), *samples("classify", 3, seed=1)[:1]]
    content[-1] = (content[-1][0], "rare")
    data = write(tmp_path, "classify", "folder", content)
    task: Any = make_task(configure(task="classify", data=str(data), validation=0.2))
    held_out = [task.spec.classes[y] for _, y in task.sets["validation"]]
    assert {name: held_out.count(name) for name in task.spec.classes} == {
        "class 0": 4,
        "class 1": 4,
        "class 2": 4,
        "rare": 0,
    }
