"""Training that starts from the weights of another run: outputs go by their names, and what was learned
there is never validated on unsaid."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layouts import samples, write

from mdlstm_tk.data import Dataset, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import Run, build_network, configure, load_checkpoint, make_task, resume, train

SMALL: dict[str, Any] = {"hidden": 4, "steps": 2, "batch_size": 4, "lr": 1e-12, "average": 0.0, "warmup": 0}


def renamed(content: list[Any], names: dict[str, str]) -> list[Any]:
    return [(x, names.get(y, y)) for x, y in content if names.get(y, y)]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("first")
    data = write(folder / "data", "classify", "folder")
    train(configure(task="classify", data=str(data), **{**SMALL, "lr": 0.01, "steps": 5}), folder / "run")
    return Run(folder / "run")


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ({}, {0: 0, 1: 1, 2: 2}),
        ({"class 0": "z"}, {0: 1, 1: 2}),
        ({"class 1": "a"}, {1: 0, 2: 2}),
        ({"class 0": "x", "class 1": "y", "class 2": "z"}, {}),
    ],
)
def test_classes_of_one_name_keep_their_outputs(
    names: dict[str, str], kept: dict[int, int], first: Run, tmp_path: Path
) -> None:
    content = [(x // 2, y) for x, y in renamed(samples("classify"), names)]
    data = write(tmp_path / "data", "classify", "folder", content)
    config = configure(task="classify", data=str(data), init=str(first.folder), seed=3, **SMALL)
    train(config, tmp_path / "run")
    weights = load_checkpoint(tmp_path / "run" / "last.safetensors").weights()
    theirs = load_checkpoint(first.best).weights()
    fresh = build_network(config, make_task(config).spec).state_dict()
    name, head = "network.encoder.levels.0.weight_ih_l0", "network.head.weight"
    assert torch.allclose(weights[name], theirs[name])
    for row in range(3):
        source = theirs if row in kept else fresh
        assert torch.allclose(weights[head][row], source[head][kept.get(row, row)])
    assert torch.equal(weights["mean"], fresh["mean"]) and not torch.equal(weights["mean"], theirs["mean"])


@pytest.mark.parametrize(
    "other", [{"hidden": 5}, {"layers": 2}, {"cell": "leaky"}, {"windows": "2"}, {"task": "segment"}]
)
def test_weights_of_another_network_are_refused(other: dict[str, Any], first: Run, tmp_path: Path) -> None:
    kind = other.get("task", "classify")
    data = write(tmp_path / "data", kind, "folder")
    settings = {"task": kind, "data": str(data), "init": str(first.folder), **SMALL, **other}
    with pytest.raises(InputError) as raised:
        train(configure(**settings), tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run" / "last.safetensors").exists()


def test_along_a_chain_nothing_learned_is_validated_on_unsaid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Data sets that grow, shrink and are split anew: what a run validates with was learned by none before,
    or a warning says how many were."""
    rng, source = np.random.default_rng(0), ""
    pool = samples("classify", 60)
    learned: set[str] = set()
    for k in range(5):
        chosen = [pool[i] for i in rng.permutation(60)[: 20 + 8 * k]]
        data = write(tmp_path / f"data{k}", "classify", "folder", chosen)
        share = float(rng.uniform(0.1, 0.6))
        settings = {"data": str(data), "init": source, "seed": k, "validation": share, **SMALL}
        config = configure(task="classify", **settings)
        caplog.clear()
        result = train(config, tmp_path / f"run{k}")
        task = make_task(config)
        validation = {digest[:16] for digest in task.digests["validation"]}
        said = any(r.levelno == logging.WARNING and "learned" in r.getMessage() for r in caplog.records)
        assert said == bool(validation & learned) and result["seen"] == len(validation & learned)
        learned |= {digest[:16] for digest in task.digests["train"]}
        assert {*load_checkpoint(tmp_path / f"run{k}" / "best.safetensors").state.learned} == learned
        source = str(tmp_path / f"run{k}")


def test_samples_that_learned_or_chose_earlier_weights_count_as_seen(tmp_path: Path) -> None:
    """Also of data that come with the package, and of a task of one's own."""
    plain = {"steps": 1, "validation": 0.3, "hidden": 2, "augment": 0.0}
    first = configure(task="digits", **plain)
    assert train(first, tmp_path / "a")["seen"] == 0
    second = configure(task="digits", init=str(tmp_path / "a"), seed=1, **plain)
    influenced = {each for split in ("train", "validation") for each in make_task(first).digests[split]}
    tested = make_task(second).digests["test"]
    assert train(second, tmp_path / "b")["seen"] == sum(each in influenced for each in tested) > 100
    xs = np.random.default_rng(0).random((9, 4, 4, 1), np.float32)
    sets = {"train": [(x, 0) for x in xs[:6]], "test": [(x, 1) for x in xs[3:]]}
    spec = TaskSpec("mine", "classify", 1, 2, (4, 4), ("a", "b"))
    mine = Dataset(spec, sets, kind_named("classify"))
    assert train(configure(steps=1), tmp_path / "c", task=mine)["seen"] == 3
    with pytest.raises(InputError, match="task="):  # not with the task of the settings
        resume(tmp_path / "c", steps=2)
    other = Dataset(spec, {**sets, "train": [(x, 1) for x in xs[:6]]}, kind_named("classify"))
    with pytest.raises(InputError, match="other samples"):
        resume(tmp_path / "c", task=other, steps=2)
    assert resume(tmp_path / "c", task=mine, steps=2)["seen"] == 3
