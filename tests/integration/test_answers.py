"""`mdlstm infer` with models that say something: labels, texts and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdlstm_tk.cli import main
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.postprocessing import decode

CLASSES = {"classify": ("cat", "dög", "<b>"), "segment": ("sky", "sea", "sand"), "transcribe": ("a", "b")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained network of each kind, exported for any size."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for kind, classes in CLASSES.items():
        torch.manual_seed(1)
        network = create("md", 1, len(classes) + (kind == "transcribe"), kind=kind, hidden=4)
        found[kind] = folder / f"{kind}.onnx"
        metadata = {"kind": kind, "classes": classes}
        export_onnx(network, found[kind], form="scan", grid=None, channels=1, metadata=metadata)
    return found


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["infer", *map(str, arguments)])
    return int(end.value.code or 0)


def save(path: Path, *shape: int) -> Path:
    np.save(path, np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 3)
    return path


def expected(model: Path, kind: str, x: Path) -> Any:
    return decode(Session(model)(np.load(x)), kind, CLASSES[kind])


@pytest.mark.parametrize("kind", ["classify", "transcribe"])
def test_labels_and_texts_are_printed(
    kind: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save(tmp_path / "x.npy", 9, 16)
    (said,) = expected(models[kind], kind, x)
    assert run(x, "-m", models[kind]) == 0
    assert capsys.readouterr().out == f"{said}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_each_sample_of_a_batch_has_a_line(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save(tmp_path / "x.npy", 5, 8, 12, 1)
    assert run(x, "-m", models["classify"], "-q") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == expected(models["classify"], "classify", x).tolist() and len(lines) == 5


def test_of_several_files_each_line_names_its_file(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shape in {"a": (8, 8), "b": (4, 6), "c": (8, 8)}.items():
        save(tmp_path / f"{name}.npy", *shape)
    assert run(tmp_path, "-m", models["classify"]) == 0
    output = capsys.readouterr()
    lines = dict(line.split("\t") for line in output.out.splitlines())
    for name in "abc":
        x = tmp_path / f"{name}.npy"
        assert [lines[str(x)]] == expected(models["classify"], "classify", x).tolist()
    assert "3 done, 0 skipped, 0 failed" in output.err


def test_labels_go_into_files_where_there_is_a_place(models: dict[str, Path], tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", 8, 8)
    (said,) = expected(models["classify"], "classify", x)
    assert run(x, "-m", models["classify"], "-o", tmp_path / "y.txt") == 0
    assert (tmp_path / "y.txt").read_text(encoding="utf-8") == f"{said}\n"
    assert run(tmp_path, "-m", models["classify"], "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "x.out.txt").read_text(encoding="utf-8") == f"{said}\n"


def test_numbers_where_they_are_asked_for(models: dict[str, Path], tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", 8, 8)
    truth = Session(models["classify"])(np.load(x))
    assert run(x, "-m", models["classify"], "-o", tmp_path / "y.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), truth, atol=1e-6)
    assert run(x, "-m", models["classify"], "--format", "npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.out.npy"), truth, atol=1e-6)


def test_a_mask_holds_the_numbers_of_classes(models: dict[str, Path], tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", 9, 7)
    assert run(x, "-m", models["segment"]) == 0
    with Image.open(tmp_path / "x.out.png") as image:
        assert image.mode == "P" and image.size == (7, 9)
        mask = np.asarray(image)
    np.testing.assert_array_equal(mask, expected(models["segment"], "segment", x))
    assert len(np.unique(mask)) > 1


def test_text_of_numbers_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save(tmp_path / "x.npy", 8, 8)
    assert run(x, "-m", model, "--format", "txt") == 2
    assert "txt holds labels and texts" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
