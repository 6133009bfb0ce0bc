"""Samples are known by their content: whatever is moved, renamed, copied, deleted or reordered between two
parts of a run, none that was trained on is validated with or tested on without a line that says so."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.pages import draw_page
from helpers.training import fail_at, quick, resume, run_in
from helpers.user_data import read, write_image

from mdlstm_tk.data.spec import SampleId
from mdlstm_tk.data.splits import in_order_of
from mdlstm_tk.data.user_data import UserDataTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.report.page import write_report
from mdlstm_tk.training import Run, new_job, resume_job
from mdlstm_tk.training import train as train_job
from mdlstm_tk.training.tasks import make_task

Data = dict[str, list[tuple[str, int]]]  # split, or "" → name and content of each sample
KINDS = {
    "images": "classify",
    "masks": "segment",
    "arrays": "grid",
    "pages": "transcribe",
    "lines": "transcribe",
}
SLOW = {"pages", "lines"}
LAYOUTS = [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in KINDS]
SETTINGS = {"steps": 1, "hidden": 2, "augment": 0.0, "validation": 0.3}


def pixels(content: int) -> np.ndarray:
    return np.random.default_rng(content).integers(0, 256, (8, 24), np.uint8)


def write(folder: Path, layout: str, data: Data) -> None:
    """Replace a folder by these data."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, samples in data.items():
        part = folder / split
        part.mkdir(parents=True, exist_ok=True)
        if layout == "arrays":
            x = np.stack([pixels(content) for _, content in samples]) / 255
            np.savez(
                part.with_name(f"{split or 'train'}.npz") if split else part / "train.npz", x=x, y=1 - x
            )
            if split:
                part.rmdir()
        for name, content in samples:
            if layout == "images":
                write_image(part / "ab"[content % 2] / f"{name}.png", pixels(content))
            elif layout == "masks":
                write_image(part / "images" / f"{name}.png", pixels(content))
                write_image(part / "masks" / f"{name}.png", pixels(content) > 128)
            elif layout == "pages":
                text = "".join("ab"[content >> bit & 1] for bit in range(6))
                draw_page(part / name, [f"{text}a", f"{text}ba"])
            elif layout == "lines":
                write_image(part / f"{name}.png", pixels(content))
                (part / f"{name}.gt.txt").write_text("ab"[content % 2])


def contents(task: UserDataTask, split: Any) -> set[bytes]:
    """What the network sees of a split."""
    return {x.tobytes() for x, _ in task.sets.get(split, ())}


def change(data: Data, rng: np.random.Generator, count: int) -> Data:
    """Do random things to samples."""
    data = {split: list(samples) for split, samples in data.items()}
    for number in range(count):
        splits = [split for split in data if len(data[split]) > 4]
        split, other = rng.choice(splits), rng.choice(list(data))
        index = int(rng.integers(len(data[split])))
        name, content = data[split][index]
        what = rng.choice(["move", "move", "rename", "copy", "delete", "reorder", "add"])
        if what in ("move", "delete", "rename"):
            del data[split][index]
        if what == "rename":
            data[split].append((f"r{number}{name}", content))
        elif what in ("move", "copy"):
            data[other].append((f"{what}{number}{name}", content))
        elif what == "add":
            data[other].append((f"n{number}", int(rng.integers(40, 60))))
        else:
            data[split] = [data[split][k] for k in rng.permutation(len(data[split]))]
    return data


def start(layout: str, splits: Sequence[str]) -> Data:
    number = iter(range(40))
    return {
        split: [(f"s{k}", next(number)) for k in range(12 if split in ("", "train") else 6)]
        for split in splits
    }


@pytest.mark.parametrize("splits", [("",), ("train", "val", "test"), ("train", "test")], ids="-".join)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_that_was_trained_on_is_tested_on_unsaid(layout: str, splits: Any, tmp_path: Path) -> None:
    data, first = tmp_path / "data", start(layout, splits)
    write(data, layout, first)
    config = quick(data, KINDS[layout], **SETTINGS)
    run = run_in(tmp_path / "run", config)
    job = resume_job(run.folder, {"steps": 2})
    trained, before = (
        contents(job.task, "train"),
        {s: contents(job.task, s) for s in ("validation", "test")},
    )
    rng, refusals = np.random.default_rng(len(layout)), 0
    for _ in range(12):
        write(data, layout, change(first, rng, int(rng.integers(1, 12))))
        fresh = make_task(config)  # as the files say, whatever the run says
        if "" not in splits and any(
            trained & (contents(fresh, s) - before[s])
            for s in before
            if fresh.count(s) and (s == "test" or "val" in splits)
        ):
            refusals += 1
            with pytest.raises(InputError, match=r"samples? that the run was trained on (is|are) now"):
                resume_job(run.folder, {"steps": 2})
            continue
        job = resume_job(run.folder, {"steps": 2})
        said = [note for note in job.notes if "so its errors are too low" in note]
        for split, verb in (("validation", "validated with"), ("test", "tested on")):
            overlap = contents(job.task, split) & (trained | contents(job.task, "train"))
            assert bool(overlap) == any(verb in note for note in said), split
            assert not trained & (contents(job.task, split) - before[split])
    assert refusals or "test" not in splits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_names_and_another_order_change_no_byte(layout: str, tmp_path: Path) -> None:
    data, first = tmp_path / "data", start(layout, ("train", "test") if layout == "masks" else ("",))
    first = {split: [*samples, ("copy", samples[0][1])] for split, samples in first.items()}
    write(data, layout, first)
    config = quick(data, KINDS[layout], **{**SETTINGS, "steps": 3, "patience": 0})
    whole = run_in(tmp_path / "whole", config)
    runs = [Run(tmp_path / name) for name in ("same", "renamed")]
    for run in runs:
        with pytest.raises(KeyboardInterrupt):
            run_in(run.folder, config, on_step=fail_at(1))
    resume(runs[0])
    write(
        data,
        layout,
        {s: [(f"x{97 * k % 31}", c) for k, (_, c) in enumerate(each[::-1])] for s, each in first.items()},
    )
    if layout != "arrays":
        assert any("samples are copied or renamed" in note for note in resume_job(runs[1].folder).notes)
    resume(runs[1])
    for run in runs:
        assert run.last.read_bytes() == whole.last.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_copies_stay_in_the_split_that_they_were_in(layout: str, seed: int, tmp_path: Path) -> None:
    """Also if names tell nothing: one sample in front gives others to all samples of an array."""
    data, kind = tmp_path / "data", KINDS[layout]
    samples = [(f"s{2 * k + copy}", k) for k in range(12) for copy in range(2)]
    write(data, layout, {"": samples})
    before = make_task(quick(data, kind, **SETTINGS, seed=seed))
    rng = np.random.default_rng(seed)
    shifted = [("n", 50), *((f"r{k}", samples[k][1]) for k in rng.permutation(len(samples)))]
    write(data, layout, {"": shifted})
    after = make_task(quick(data, kind, **SETTINGS, seed=seed), before.identities)

    def digests(task: Any, split: str) -> list[str]:
        return sorted(each.digest for each in task.identities[split])

    assert digests(after, "validation") == digests(before, "validation")
    before_training, after_training = Counter(digests(before, "train")), Counter(digests(after, "train"))
    assert before_training < after_training
    assert not set(after_training - before_training) & set(digests(before, "validation"))


def test_copies_with_different_targets_keep_their_places() -> None:
    """A sample whose target has changed takes what is left of its content."""
    known = [
        SampleId(*each) for each in (("p", "0", "a"), ("p", "1", "b"), ("q", "2", "a"), ("r", "3", "a"))
    ]
    now = [("new", "z"), ("r", "c"), ("p", "b"), ("q", "a"), ("p", "a")]
    surveys: Any = [SimpleNamespace(identity=SampleId(d, str(k), t)) for k, (d, t) in enumerate(now)]
    ordered = [(s.identity.digest, s.identity.target) for s in in_order_of(surveys, known)]
    assert ordered == [("p", "a"), ("p", "b"), ("q", "a"), ("r", "c"), ("new", "z")]


def test_what_any_part_of_a_run_was_trained_on_is_remembered(tmp_path: Path) -> None:
    data, first = tmp_path / "data", start("images", ("train", "test"))
    write(data, "images", first)
    config = quick(data, "classify", **SETTINGS)
    run = run_in(tmp_path / "run", config)
    added = {**first, "train": [*first["train"], ("new", 50)]}
    write(data, "images", added)
    assert "1 new sample is trained on: 'a/new.png'" in resume_job(run.folder, {"steps": 2}).notes
    resume(run, steps=2)
    write(data, "images", {**first, "test": [*first["test"], ("moved", 50)]})
    done = mdlstm("train", "--resume", run.folder, "--steps", 3)
    assert done.code == 2 and "now among those that it is tested on: 'a/moved.png'; put" in done.err
    page = write_report(run, data=str(data)).read_text()
    assert "Of 6 test samples" in page  # the moved one, which was trained on, is not among them
    init = new_job(config.updated({"init": str(run.folder)}, ""), tmp_path / "init")
    assert any(
        "tested on is trained on as well" in note for note in init.notes
    )  # which the other run has learned
    write(data, "images", {**added, "test": [*first["test"], ("copy", 50)]})
    assert any(
        "tested on is trained on as well" in note for note in new_job(config, tmp_path / "copy").notes
    )
    run.samples.unlink()
    notes = resume_job(run.folder, {"steps": 3}).notes
    assert any("samples.json is missing" in n for n in notes) and any("'a/copy.png'" in n for n in notes)


def test_a_grey_image_in_another_format_is_the_same(tmp_path: Path) -> None:
    for name, image in (("g.png", pixels(0)), ("rgb.bmp", np.repeat(pixels(0)[..., None], 3, 2))):
        write_image(tmp_path / "train" / name, image)
    write_image(tmp_path / "train/other.png", pixels(0).T)
    ids = read(tmp_path, "density", validation=0.0).identities["train"]
    assert [each.digest == ids[0].digest for each in ids] == [True, False, True]


def test_what_the_first_weights_have_learned_is_remembered_along_a_chain(tmp_path: Path) -> None:
    def data(name: str, train: range, val: range) -> str:
        for split, contents in (("train", train), ("val", val)):
            write(tmp_path / name / split, "images", {"": [(f"{k}", k) for k in contents]})
        return str(tmp_path / name)

    init = ""
    for name, train in (("a", range(4)), ("b", range(4, 8))):
        config = quick(Path(data(name, train, range(20, 24))), "classify", **SETTINGS, init=init)
        init = str(run_in(tmp_path / f"run-{name}", config).folder)
    config = quick(Path(data("c", range(8, 12), range(4))), "classify", **SETTINGS, init=init)
    job = new_job(config, tmp_path / "run-c")
    said = "4 of the 4 samples that the network is validated with are trained on as well"
    assert any(said in note for note in job.notes)
    run = run_in(tmp_path / "run-c", config)
    resume(run, steps=2)
    assert any(said in note for note in resume_job(run.folder, {"steps": 3}).notes)
    page = write_report(run, data=config.data).read_text()
    assert "This run has no test or validation data" in page  # that it has not learned


def test_a_target_that_was_changed_is_named_once(tmp_path: Path) -> None:
    folder, run = tmp_path / "data", tmp_path / "run"
    write(folder, "lines", {"": [(f"s{k}", k) for k in range(8)]})
    run_in(run, quick(folder, "transcribe", **SETTINGS, model="md"))
    (folder / "s3.gt.txt").write_text("aa")
    for steps, count in ((2, 1), (3, 0)):
        job = resume_job(run, {"steps": steps})
        notes = [note for note in map(str, job.notes) if "another target" in note]
        assert notes == ["1 sample has another target: 's3.png'"][:count]
        train_job(job)
