"""Each kind with each layout of files, from the files to the answers of its exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layouts import CASES, KINDS, VALUES, samples, save, write

from mdlstm_tk.data.user_data import read_data
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import Session, decode, load_image
from mdlstm_tk.training import Run, configure, load_checkpoint, make_task, train

QUICK: dict[str, Any] = {"steps": 3, "hidden": 3, "batch_size": 4, "evaluate_every": 3, "patience": 0}


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_layouts_give_the_same_samples(kind: str, layout: str, tmp_path: Path) -> None:
    """Whatever files a data set is in, its images, targets and names are those that were written."""
    data = write(tmp_path / "data", kind, layout)
    task = read_data(configure(task=kind, data=str(data), augment=0.0), kind_named(kind))
    counts = {split: task.count(split) for split in ("train", "validation", "test")}
    expected = {"folder": (24, 0), "arrays": (24, 0), "splits.json": (24, 0)}.get(layout, (20, 4))
    assert (counts["train"] + counts["validation"], counts["test"]) == expected
    held_out = 3 if kind == "classify" else 2  # at least one of each class
    wanted_count = {"folder": held_out, "arrays": held_out, "splits.json": 6}.get(layout, 4)
    assert counts["validation"] == wanted_count
    pairs = [pair for some in task.sets.values() for pair in some]
    found = {(x.tobytes(), np.asarray(y, np.float32).round(3).tobytes()) for x, y in pairs}
    wanted = set()
    for x, y in samples(kind):
        target: Any = {
            "classify": lambda y=y: task.spec.classes.index(y),
            "segment": lambda y=y: np.searchsorted(VALUES, y),
            "grid": lambda y=y: y[..., None] / np.float32(255),
            "regress": lambda y=y: [y[name] for name in task.spec.classes],
            "tag": lambda y=y: [float(name in y) for name in task.spec.classes],
        }[kind]()
        x = x[..., None] / np.float32(255)
        wanted.add((x.tobytes(), np.asarray(target, np.float32).round(3).tobytes()))
    assert found == wanted
    values = np.concatenate([x.ravel() for x, _ in task.sets["train"]])
    ends = (values.min(), values.max()) if "arrays" in layout else (0, 1)  # of the pixels' type
    assert task.spec.x_range == pytest.approx(ends)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of a few steps of each kind, on images of two sizes."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for kind in KINDS:
        data = write(folder / kind / "data", kind, "split folders")
        found[kind] = Run(folder / kind / "run")
        train(configure(task=kind, data=str(data), **QUICK), found[kind].folder)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_sees_what_training_saw(kind: str, runs: dict[str, Run], tmp_path: Path) -> None:
    """Images become the same x, outputs the same numbers, and answers have values of the user's files."""
    from mdlstm_tk.export import export_run

    checkpoint = load_checkpoint(runs[kind].best)
    network, spec = checkpoint.network(), checkpoint.spec
    session = Session(export_run(runs[kind], tmp_path / "model.onnx", form="scan").path)
    task = make_task(checkpoint.config)
    batches = list(task.evaluation_batches("test", 0))
    seen = [x[: size[0], : size[1]] for b in batches for x, size in zip(b.x, b.sizes, strict=True)]
    for k, (pixels, _) in enumerate(samples(kind)[-4:]):
        save(tmp_path / "x.png", pixels)
        x = load_image(tmp_path / "x.png", session.metadata)
        assert any(np.array_equal(x[..., None], other) for other in seen)
        with torch.no_grad():
            y = network(torch.from_numpy(x[None, ..., None])).numpy()
        actual = session(x[..., None])
        np.testing.assert_allclose(actual, y[0], atol=1e-4)
        answer = decode(actual, session.metadata)
        match kind:
            case "segment":
                assert np.array_equal(answer, np.array(VALUES)[y[0].argmax(-1)])
            case "classify":
                assert answer[0]["label"] == spec.classes[int(y[0].argmax())]
            case "regress":
                assert [*answer[0]] == ["mean", "width"]
            case "tag":
                threshold = spec.decoding["threshold"]
                above = 1 / (1 + np.exp(-y[0].astype(np.float64))) >= threshold
                assert answer[0]["labels"] == ";".join(np.array(spec.classes)[above])
        assert k < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resize", ["5", "9x4", "*x5"])
def test_targets_are_prepared_like_their_images(kind: str, resize: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", kind, "folder")
    augment = 0.0 if kind == "grid" else 1.0
    settings = configure(task=kind, data=str(data), resize=resize, augment=augment)
    batch = make_task(settings).batch(0, 0, 6)
    assert 5 in batch.x.shape[1:3] or batch.x.shape[1:3] == (9, 4)
    if kind_named(kind).per_position:
        assert batch.y.shape[:3] == batch.x.shape[:3]


@pytest.mark.parametrize("crop", ["4", "3x9"])
def test_crops_of_samples_and_targets_agree(crop: str, tmp_path: Path) -> None:
    """A mask that is a function of its pixels is the same function of a crop's."""
    content = [(x, np.where(x > 100, 9, 5).astype(np.uint8)) for x, _ in samples("segment")]
    data = write(tmp_path / "data", "segment", "folder", content)
    task = make_task(configure(task="segment", data=str(data), crop=crop, augment=0.0))
    places = set()
    for step in range(6):
        batch = task.batch(0, step, 8)
        valid = batch.y >= 0
        assert np.array_equal(batch.y[valid], (batch.x[..., 0] > 100 / 255)[valid])
        places |= {x.tobytes() for x in batch.x}
    assert len(places) > len(content)  # at random places
    assert task.spec.size == ((4, 4) if crop == "4" else (3, 8)) and task.spec.mixed_sizes
