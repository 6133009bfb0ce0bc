"""`mdlstm_tk.runtime.model_choice`: which model of a folder runs which file."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_models import classifier, write_model
from helpers.tiled_models import segmenter, single

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata, infer_paths
from mdlstm_tk.runtime.model_choice import Candidate, choose_models, read_candidates
from mdlstm_tk.runtime.model_discovery import find_models
from mdlstm_tk.runtime.staleness import checksum


def candidate(name: str, grid: Any, **fields: Any) -> Candidate:
    return Candidate(Path(name), Metadata("0", grid, "scan", "N H W C", 1, 1, **fields))


MODELS = (  # the newest first
    candidate("new any", None),
    candidate("old any", (None, None)),
    candidate("8x8", (8, 8)),
    candidate("padded", (8, 8), inputs=("x", "sizes")),
    candidate("48xany", (48, None)),
    candidate("fours", None, multiple_of=(4, 4)),
)


@pytest.mark.parametrize(
    ("names", "grids", "chosen"),
    [
        ("any 8x8", [(8, 8), (8, 8)], "8x8 8x8"),
        ("any 8x8", [(8, 8), (5, 7)], "any any"),
        ("padded 8x8", [(8, 8), (5, 7)], "padded padded"),
        ("8x8 padded", [(8, 8)], "8x8"),
        ("8x8 48xany", [(8, 8), (48, 100), (5, 7)], "8x8 48xany -"),
        ("any 8x8", [(8, 8), None], "any any"),  # a page, or a damaged file
        ("new old 8x8", [(3, 3)], "new"),
        ("fours 8x8", [(12, 4), (8, 8), (6, 4)], "fours 8x8 -"),
    ],
)
def test_each_file_gets_a_model_that_takes_it(names: str, grids: list[Any], chosen: str) -> None:
    models = [each for each in MODELS if any(word in each.path.name.split() for word in names.split())]
    of_files = {str(k): [] if grid is None else [grid] for k, grid in enumerate(grids)}
    choice = choose_models(models, of_files).values()
    answers = ["-" if each is None else each.path.name for each in choice]
    assert all(word in answer for word, answer in zip(chosen.split(), answers, strict=True)), answers


def test_a_folder_answers_every_grid_that_one_of_its_models_takes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        models = [MODELS[k] for k in rng.permutation(len(MODELS))[: rng.integers(1, 5)]]
        grids = [tuple(rng.choice([4, 5, 8, 12, 48], 2).tolist()) for _ in range(rng.integers(1, 5))]
        choice = choose_models(models, {str(k): [grid] for k, grid in enumerate(grids)})
        for grid, model in zip(grids, choice.values(), strict=True):
            assert model.takes([grid]) if model else not any(each.takes([grid]) for each in models)
        if any(each.takes(grids) for each in models):
            assert len({each.path for each in choice.values() if each}) == 1


def write_folder(place: Path) -> None:
    """Models whose names say nothing about their grids, the newest last, and files on grids of theirs."""
    for time, (name, grid) in enumerate({"b": (48, None), "model-anyxany": (8, 8), "a": (6, 6)}.items()):
        os.utime(write_model(place / f"{name}.onnx", grid=grid), (time, time))
    (place / "in").mkdir()
    for name, shape in {"x": (8, 8), "y": (48, 100), "z": (5, 5), "w": (6, 6)}.items():
        np.save(place / f"in/{name}.npy", np.ones(shape))


def test_files_of_a_folder_may_need_several_models(tmp_path: Path) -> None:
    write_folder(tmp_path)
    run = infer_paths([tmp_path / "in"], tmp_path, tmp_path / "out", device="cpu")
    results = {Path(result.job.source).name: result.error for result in run.results}
    assert {run.model.name, *(path.name for path in run.further_models)} == {
        *("b.onnx", "model-anyxany.onnx", "a.onnx"),
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("w.out.npy", "x.out.npy", "y.out.npy"),
    ]
    assert [name for name, error in results.items() if error] == ["z.npy"]
    expected = "z.npy has the grid 5x5, which no model .*b.onnx takes 48x.*; make one with: .*grid=.5, 5"
    with pytest.raises(InputError, match=expected):
        list(infer_paths([tmp_path / "in/z.npy"], tmp_path, device="cpu").results)
    results = infer_paths([tmp_path / "in/y.npy"], tmp_path, device="cpu").results
    assert [result.error for result in results] == [None]


def test_arrays_that_are_no_grid_are_named_as_with_one_model(tmp_path: Path) -> None:
    for height in (4, 6):
        write_model(tmp_path / f"{height}.onnx", grid=(height, 5))
    shapes = {"empty": (0, 5), "line": (5,), "number": (), "more": (1, 1, 1, 4, 5)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", np.ones(shape))
    results = infer_paths([tmp_path / f"{name}.npy" for name in shapes], tmp_path, device="cpu").results
    errors = {Path(result.job.source).stem: result.error or "" for result in results}
    assert "is empty: its shape is (0, 5)" in errors.pop("empty")
    assert all(f"has shape {shapes[name]}, expected" in error for name, error in errors.items())


def test_pixels_that_were_not_scaled_are_warned_of_once(tmp_path: Path) -> None:
    for height in (4, 6):
        preprocessing = {"channels": 1, "resize": None}
        write_model(tmp_path / f"{height}.onnx", grid=(height, 5), preprocessing=preprocessing)
        np.save(tmp_path / f"{height}.npy", np.full((height, 5), 255, np.uint8))
    with pytest.warns(UserWarning, match="4.npy|6.npy") as warned:
        list(infer_paths([tmp_path / "4.npy", tmp_path / "6.npy"], tmp_path, device="cpu").results)
    names = [str(each.message).partition(".npy")[0][-1] for each in warned]
    assert sorted(names) == ["4", "6"]


def test_each_model_that_its_run_has_left_behind_is_named(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"")
    for name, height, digest in (("a", 4, checksum(tmp_path / "best.safetensors")), ("b", 5, "0" * 64)):
        write_model(tmp_path / f"{name}.onnx", grid=(height, height), checkpoint_sha256=digest)
        np.save(tmp_path / f"{name}.npy", np.ones((height, height)))
    for names, stale in (("ab", 1), ("ba", 1), ("b", 1), ("a", 0)):
        run = infer_paths([tmp_path / f"{name}.npy" for name in names], tmp_path, device="cpu")
        assert len(run.stale) == stale
        assert all(re.search(r"since .*b\.onnx was exported", line) for line in run.stale)


def test_models_of_two_tasks_and_damaged_ones(tmp_path: Path) -> None:
    write_model(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"no model")
    with pytest.warns(UserWarning, match=r"left out: .*b\.onnx"):
        assert [each.path.name for each in read_candidates(find_models(tmp_path), 10**6)] == ["a.onnx"]
    classifier(tmp_path / "b.onnx")
    with pytest.raises(InputError, match=r"a\.onnx and .*b\.onnx are models of two tasks, whose kind"):
        read_candidates(find_models(tmp_path), 10**6)


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ({"task": "diagonal"}, {"task": "edges"}, "task"),
        ({"task": "signs"}, {"task": "signs", "user_data": True}, "user_data"),
        ({"task": "diagonal"}, {}, ""),
        ({"task": "signs", "user_data": True}, {}, ""),
        ({"task": "diagonal"}, {"task": "diagonal"}, ""),
    ],
)
def test_models_of_equal_outputs_and_two_tasks(
    first: Any, second: Any, differs: str, tmp_path: Path
) -> None:
    write_model(tmp_path / "a.onnx", **first)
    write_model(tmp_path / "b.onnx", **second)
    message = rf"models of two tasks, whose {differs} is"
    with pytest.raises(InputError, match=message) if differs else nullcontext():
        assert len(read_candidates(find_models(tmp_path), 10**6)) == 2


def test_the_tiled_models_of_a_folder_are_of_one_task(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.tiles" for name in "abc"]
    for time, path in enumerate(paths):
        shutil.copy((segmenter if time == 0 else single)().path, path)
        os.utime(path, (time, time))
    np.save(tmp_path / "x.npy", np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match=r"a\.tiles and .*c\.tiles are models of two tasks, whose kind"):
        infer_paths([tmp_path / "x.npy"], tmp_path, device="cpu")
    paths[0].write_bytes(b"no model")
    with pytest.warns(UserWarning, match=r"left out: .*a\.tiles"):
        assert infer_paths([tmp_path / "x.npy"], tmp_path, device="cpu").model == paths[2]
