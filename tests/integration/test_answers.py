"""`mdlstm infer` with classifiers, segmenters and text recognizers."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdlstm_tk.cli import main
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session, decode

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


def expected_answers(model: Path, x: Path) -> Any:
    """The labels or texts of a model for an array, or its mask."""
    session = Session(model)
    answers = decode(session(np.load(x)), session.metadata)
    return [answer.text for answer in answers] if isinstance(answers, list) else answers


@pytest.mark.parametrize("kind", ["classify", "transcribe"])
def test_labels_and_texts_are_printed_and_not_written(
    kind: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 9, 16)
    (label,) = expected_answers(models[kind], x)
    assert infer(x, "-m", models[kind]) == 0
    assert capsys.readouterr().out == f"{label}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_each_sample_of_a_batch_is_a_line(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 5, 8, 12, 1)
    assert infer(x, "-m", models["classify"], "-q") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == expected_answers(models["classify"], x) and len(lines) == 5


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
        assert [lines[str(x)]] == expected_answers(models["classify"], x)
    assert "3 done" in output.err


def test_labels_are_written_to_the_given_output(models: dict[str, Path], tmp_path: Path) -> None:
    x = save_input(tmp_path / "x.npy", 8, 8)
    (label,) = expected_answers(models["classify"], x)
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


def test_a_mask_is_written_as_png(
    models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 9, 7)
    assert infer(x, "-m", models["segment"]) == 0
    assert (
        f"{tmp_path / 'x.out.png'}\n" in capfd.readouterr().err
    )  # and no shape, which is not that of the mask
    with Image.open(tmp_path / "x.out.png") as image:
        assert image.mode == "L" and image.size == (7, 9)
        mask = np.asarray(image)
    np.testing.assert_array_equal(mask, expected_answers(models["segment"], x))
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("layout", ["channels last", "channels first"])
@pytest.mark.parametrize(
    ("values", "palette", "mode"),
    [
        ((0, 7, 9), None, "L"),
        ((0, 128, 255), (0, 0, 0, 255, 0, 0, 9, 8, 7), "P"),
        ((1, 299, 65535), None, "I;16"),
    ],
    ids=["grey", "palette", "16 bits"],
)
def test_masks_have_the_values_and_the_palette_of_the_training_masks(
    values: tuple[int, ...], palette: tuple[int, ...] | None, mode: str, layout: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = create("md", 1, 3, kind="segment", hidden=4)
    channels_last = layout == "channels last"
    export_onnx(
        network if channels_last else ChannelsFirst(network),
        tmp_path / "model.onnx",
        form="scan",
        channels=1,
        channels_last=channels_last,
        metadata={
            "kind": "segment",
            "classes": ("sky", "sea", "sand"),
            "mask_values": values,
            "mask_palette": palette,
        },
    )
    x = save_input(tmp_path / "x.npy", 9, 3)  # a width of 3 is not taken for three colours
    with torch.no_grad():
        logits = network(torch.from_numpy(np.load(x))[None, ..., None]).numpy()[0]
    expected = np.array(values)[logits.argmax(-1)]
    assert infer(x, "-m", tmp_path / "model.onnx") == 0
    with Image.open(tmp_path / "x.out.png") as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert palette is None or image.convert("RGB").getpixel((0, 0)) == tuple(
            palette[3 * values.index(expected[0, 0]) :][:3]
        )
    assert infer(x, "-m", tmp_path / "model.onnx", "-o", tmp_path / "y.csv") == 0
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "y.csv", delimiter=","), expected)


class ChannelsFirst(torch.nn.Module):
    """A channels-last network with x and y as (N, C, H, W)."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.network(x.movedim(1, -1))
        return y.movedim(-1, 1)


@pytest.mark.parametrize(
    ("values", "shape"), [((0, 1, 70000), (9, 3)), ((-1, 0, 1), (9, 3)), ((0, 1, 2), (2, 9, 3, 1))]
)
def test_masks_that_png_cannot_hold_are_refused_and_csv_or_json_hold_them(
    values: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    network = create("md", 1, 3, kind="segment", hidden=4)
    metadata = {"kind": "segment", "classes": ("a", "b", "c"), "mask_values": values}
    export_onnx(network, tmp_path / "model.onnx", form="scan", channels=1, metadata=metadata)
    x = save_input(tmp_path / "x.npy", *shape)
    assert infer(x, "-m", tmp_path / "model.onnx") == 2
    assert "--format" in capsys.readouterr().err
    assert infer(x, "-m", tmp_path / "model.onnx", "--format", "json") == 0
    written = np.array(json.loads((tmp_path / "x.out.json").read_text()))
    np.testing.assert_array_equal(written, expected_answers(tmp_path / "model.onnx", x))


@pytest.mark.parametrize("file_format", ["txt", "csv", "json"])
@pytest.mark.parametrize("option", [("--top", 2), ("--probabilities",), ()], ids=["top", "all", "label"])
def test_one_document_holds_the_labels_and_probabilities_for_all_files(
    option: tuple[Any, ...],
    file_format: str,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = CLASSES["classify"]
    paths = [save_input(tmp_path / f"{name}.npy", *shape) for name, shape in SHAPES.items()]
    session = Session(models["classify"])
    expected = {str(path): softmax(session(np.load(path))) for path in paths}

    assert infer(*paths, "-m", models["classify"], *option, "--format", file_format) == 0
    printed = capsys.readouterr().out
    target = tmp_path / f"labels.{file_format}"
    assert infer(*paths, "-m", models["classify"], *option, "-o", target) == 0
    assert target.read_text(encoding="utf-8") == printed
    rows = list(parse(printed, file_format, option))
    assert len(rows) == sum(len(np.atleast_2d(p)) for p in expected.values())
    for file, sample, ranked in rows:
        row = np.atleast_2d(expected[file])[sample]
        order = np.argsort(-row)
        assert [name for name, _ in ranked] == [names[k] for k in order[: len(ranked)]]
        for name, probability in ranked:
            assert probability is None or probability == pytest.approx(row[names.index(name)], abs=1e-4)
        wanted = {"--top": 2, "--probabilities": 3}.get(option[0] if option else "", 1)
        assert len(ranked) == (1 if file_format == "txt" and option == ("--probabilities",) else wanted)


SHAPES = {"a": (8, 8), "b": (3, 8, 6, 1)}


def softmax(logits: Any) -> Any:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def parse(text: str, file_format: str, option: tuple[Any, ...]) -> Iterator[tuple[str, int, list[Any]]]:
    """Yield (file, sample, ranked (label, probability)) of each answer in a document."""
    seen: Counter[str] = Counter()
    if file_format == "txt":
        for line in text.splitlines():
            file, *fields = line.split("\t")
            pairs = [(fields[0], None)] if len(fields) == 1 else zip(fields[::2], fields[1::2], strict=True)
            yield file, seen[file], [(name, value and float(value)) for name, value in pairs]
            seen[file] += 1
        return
    records = json.loads(text) if file_format == "json" else list(csv.DictReader(io.StringIO(text)))
    for record in records:
        file = record["file"]
        index = record.get("sample", "")
        assert index == "" or int(index) == seen[file]
        ranked = {record["label"]: float(record["probability"])}
        ranked |= record.get("probabilities", {})
        if file_format == "csv" and option[:1] == ("--top",):
            ranked[record["label_2"]] = float(record["probability_2"])
        if file_format == "csv" and option == ("--probabilities",):
            ranked = {name: float(record[f"probability_{name}"]) for name in CLASSES["classify"]}
            ranked = dict(sorted(ranked.items(), key=lambda item: -item[1]))
        yield file, seen[file], list(ranked.items())
        seen[file] += 1


def test_texts_are_collected_in_one_table(models: dict[str, Path], tmp_path: Path) -> None:
    paths = [save_input(tmp_path / f"{name}.npy", *shape) for name, shape in SHAPES.items()]
    assert infer(*paths, "-m", models["transcribe"], "-o", tmp_path / "t.csv") == 0
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        rows = [(row["file"], row["text"]) for row in csv.DictReader(file)]
    expected = [
        (str(path), text) for path in paths for text in expected_answers(models["transcribe"], path)
    ]
    assert sorted(rows) == sorted(expected)
    assert infer(*paths, "-m", models["transcribe"], "-o", tmp_path / "t.csv") == 2  # it exists
    assert infer(*paths, "-m", models["transcribe"], "-o", tmp_path / "t.csv", "--force") == 0


def test_files_with_the_same_stem_have_labels_of_their_own(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("png", "jpg"):
        Image.new("L", (6, 5), 99).save(tmp_path / f"a.{suffix}")
    assert infer(tmp_path, "-m", models["classify"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        ("segment", ("--top", "2"), "--top"),
        ("transcribe", ("--top", "2"), "--top"),
        ("segment", ("-o", "masks.csv"), "masks.csv"),
        ("classify", ("--top", "2", "--probabilities"), "--probabilities"),
        ("classify", ("-o", "labels.csv", "--skip-existing"), "--skip-existing"),
    ],
)
def test_options_that_do_not_suit_the_model_are_refused(
    kind: str,
    arguments: tuple[str, ...],
    named: str,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shape in SHAPES.items():
        save_input(tmp_path / f"{name}.npy", *shape)
    assert infer("a.npy", "b.npy", "-m", models[kind], *arguments) == 2
    assert named in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "b.npy"}


def test_format_txt_is_an_error_for_a_model_of_numbers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save_input(tmp_path / "x.npy", 8, 8)
    assert infer(x, "-m", model, "--format", "txt") == 2
    assert "txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
