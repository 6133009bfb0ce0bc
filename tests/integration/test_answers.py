"""`mdlstm infer` with classifiers, segmenters and text recognizers."""

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
    """Export an untrained network of each kind for any size."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for kind, classes in CLASSES.items():
        torch.manual_seed(1)
        network = create("md", 1, len(classes) + (kind == "transcribe"), kind=kind, hidden=4)
        paths[kind] = folder / f"{kind}.onnx"
        metadata = {"kind": kind, "classes": classes}
        export_onnx(network, paths[kind], form="scan", grid=None, channels=1, metadata=metadata)
    return paths


def infer(*arguments: object) -> int:
    """Run `mdlstm infer` and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(["infer", *map(str, arguments)])
    return int(end.value.code or 0)


def save_input(path: Path, *shape: int) -> Path:
    """Save random numbers of a shape."""
    np.save(path, np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 3)
    return path


def expected_answers(model: Path, kind: str, x: Path) -> Any:
    return decode(Session(model)(np.load(x)), kind, CLASSES[kind])


@pytest.mark.parametrize("kind", ["classify", "transcribe"])
def test_labels_and_texts_are_printed_and_not_written(
    kind: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 9, 16)
    (label,) = expected_answers(models[kind], kind, x)
    assert infer(x, "-m", models[kind]) == 0
    assert capsys.readouterr().out == f"{label}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_each_sample_of_a_batch_is_a_line(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 5, 8, 12, 1)
    assert infer(x, "-m", models["classify"], "-q") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == expected_answers(models["classify"], "classify", x).tolist() and len(lines) == 5


def test_with_several_files_each_line_names_its_file(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shape in {"a": (8, 8), "b": (4, 6), "c": (8, 8)}.items():
        save_input(tmp_path / f"{name}.npy", *shape)
    assert infer(tmp_path, "-m", models["classify"]) == 0
    output = capsys.readouterr()
    lines = dict(line.split("\t") for line in output.out.splitlines())
    for name in "abc":
        x = tmp_path / f"{name}.npy"
        assert [lines[str(x)]] == expected_answers(models["classify"], "classify", x).tolist()
    assert "3 done" in output.err


def test_labels_are_written_to_the_given_output(models: dict[str, Path], tmp_path: Path) -> None:
    x = save_input(tmp_path / "x.npy", 8, 8)
    (label,) = expected_answers(models["classify"], "classify", x)
    assert infer(x, "-m", models["classify"], "-o", tmp_path / "y.txt") == 0
    assert (tmp_path / "y.txt").read_text(encoding="utf-8") == f"{label}\n"
    assert infer(tmp_path, "-m", models["classify"], "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "x.out.txt").read_text(encoding="utf-8") == f"{label}\n"


def test_logits_are_written_where_npy_is_asked_for(models: dict[str, Path], tmp_path: Path) -> None:
    x = save_input(tmp_path / "x.npy", 8, 8)
    logits = Session(models["classify"])(np.load(x))
    assert infer(x, "-m", models["classify"], "-o", tmp_path / "y.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), logits, atol=1e-6)
    assert infer(x, "-m", models["classify"], "--format", "npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.out.npy"), logits, atol=1e-6)


def test_a_mask_is_written_as_png(models: dict[str, Path], tmp_path: Path) -> None:
    x = save_input(tmp_path / "x.npy", 9, 7)
    assert infer(x, "-m", models["segment"]) == 0
    with Image.open(tmp_path / "x.out.png") as image:
        assert image.mode == "P" and image.size == (7, 9)
        mask = np.asarray(image)
    np.testing.assert_array_equal(mask, expected_answers(models["segment"], "segment", x))
    assert len(np.unique(mask)) > 1


def test_format_txt_is_an_error_for_a_model_of_numbers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 8, 8)
    assert infer(x, "-m", model, "--format", "txt") == 2
    assert "txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
