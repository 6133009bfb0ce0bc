"""`mdlstm_tk.runtime.answers`: labels, texts and densities, and the documents that hold them."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.refusal import refused
from helpers.small_models import recogniser
from helpers.user_data import write_image

from mdlstm_tk._util.text import text_of_field
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import Kind, all_kinds, kind_named
from mdlstm_tk.kinds.options import Option
from mdlstm_tk.runtime import CharacterModel, Metadata, decode, infer_paths
from mdlstm_tk.runtime.answers import AnswerDocument, _relative
from mdlstm_tk.runtime.io import Format
from mdlstm_tk.runtime.jobs import ResultOptions

GRID = Metadata("0", None, "scan", "N H W C", 1, 1)
CLASSES = ("cat", "dög", "=1\\")
CLASSIFIER = replace(GRID, outputs=3, window=None, kind="classify", classes=CLASSES)
RECOGNISER = replace(GRID, outputs=3, window=None, kind="transcribe", classes=("\\", "é"))
DENSITY = replace(GRID, kind="density")
FINDER = replace(GRID, outputs=3, window=(2, 2), kind="baselines")
SCORES = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]]))
ESCAPED = "in/a\\\t\n.npy"  # a name with a backslash, a tab and a line break


def document(file_format: Format, y: Any, metadata: Metadata, **options: Any) -> str:
    """The document for one file and one array in another."""
    chosen = ResultOptions(options.pop("probabilities", False), options)
    answers = partial(kind_named(metadata.kind).decode, metadata=metadata, options=chosen, width=None)
    files = [(ESCAPED, answers(y[0], array=None)), ("in/b.npz", answers(y, array="x"))]
    whole = AnswerDocument(file_format, metadata, chosen, is_named=True, folder=Path("in"))
    return whole.render(files)


def test_labels_and_probabilities() -> None:
    (answer,) = decode(SCORES[0], CLASSIFIER, top=2)
    assert (answer.text, answer.sample, answer.probabilities) == ("dög", None, (("dög", 0.7), ("cat", 0.2)))
    assert [(each.text, each.sample) for each in decode(SCORES, CLASSIFIER)] == [("dög", 0), ("cat", 1)]


def test_numbers_identify_what_the_network_returned() -> None:
    """Large targets that differ little, such as pressures in Pa, need each digit."""
    regressor = replace(GRID, outputs=3, window=None, kind="regress", classes=("a", "b", "c"))
    y = np.array([101325.05, 0.1, -1.2345678e-9], np.float32)
    (answer,) = decode(y, regressor)
    assert [np.float32(value) for value in answer.values().values()] == y.tolist()
    assert answer.fields(ResultOptions()) == ["a=101325.05", "b=0.1", "c=-1.2345678e-09"]


def test_densities_in_nats_and_bits() -> None:
    (answer,) = decode(np.full((2, 4, 1), -np.log(2), np.float32), DENSITY)
    assert answer.values() == {"nats": 5.5452, "bits_per_dim": 1.0}
    assert document("txt", np.zeros((1, 2, 4, 1)), DENSITY) == (
        "in/a\\\\\\t\\n.npy\t0.0000\t0.0000\nin/b.npz\tx\t0.0000\t0.0000\n"
    )


def test_log_probabilities_of_padded_samples_need_their_sizes() -> None:
    """Zeros tell nothing: certain values have them, too."""
    y = np.full((3, 4, 4, 1), -np.log(2), np.float32)
    y[1, :, 3:] = 0
    y[2, 2:] = 0
    assert [answer.bits_per_dim for answer in decode(y, DENSITY)] == [1, 0.75, 0.5]
    padded = replace(DENSITY, grid=(4, 4), inputs=("x", "sizes"))
    for part in ([0, 1, 2], [1, 2]):
        sizes = np.array([[4, 4], [4, 3], [2, 4]])[part]
        answers = decode(y[part], padded, sizes=sizes)
        assert [(answer.bits_per_dim, answer.sample) for answer in answers] == [
            (1, k) for k in range(len(part))
        ]
    (answer,) = decode(y[1], padded, sizes=[[4, 3]])
    assert (answer.bits_per_dim, answer.sample) == (1, None)
    refused("give the sizes that the model got", lambda: decode(y, padded))
    refused("give the sizes that the model got", lambda: decode(y[0], padded))
    for given in ({}, {"sizes": [[3, 4]] * 3}):  # of `run_many`
        assert len(decode(y[:, :3], padded, **given)) == 3
    refused("between 1 and the extents", lambda: decode(y, padded, sizes=[[4, 4], [4, 3], [2, 5]]))
    refused("sizes are for outputs of densities", lambda: decode(SCORES, CLASSIFIER, sizes=[[1, 1]] * 2))


def test_a_table_names_files_on_another_drive_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def relpath(path: str, start: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("os.path.relpath", relpath)
    files = [line.split("\t")[0] for line in document("tsv", SCORES, CLASSIFIER).splitlines()]
    assert files[1].endswith("b.npz") and all(Path(file).is_absolute() for file in files)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_table_behind_a_link_names_files_as_they_are_found_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "far/away/tables", "elsewhere/deep"):
        Path(folder).mkdir(parents=True)
    for link, target in (
        ("out", "far/away/tables"),
        ("linked", "elsewhere/deep"),
        ("out/in", "../../../in"),
    ):
        Path(link).symlink_to(target)
    for name in ("in/x.npy", "elsewhere/x.npy", "elsewhere/deep/x.npy"):
        Path(name).touch()
    Path("in/link.npy").symlink_to("x.npy")
    names = {
        "in/x.npy": "../../../in/x.npy",
        "in/link.npy": "../../../in/link.npy",
        "out/in/x.npy": "in/x.npy",
        "linked/x.npy": "../../../elsewhere/deep/x.npy",
        "linked/../x.npy": "../../../elsewhere/x.npy",
    }
    for source, expected in names.items():
        assert _relative(source, "out") == expected
        assert Path("out", expected).samefile(source)
    assert _relative("linked/../x.npy", ".") == "elsewhere/x.npy"


def test_lines_of_txt_and_tsv() -> None:
    name = "in/a\\\\\\t\\n.npy"  # escaped
    assert document("txt", SCORES, CLASSIFIER) == f"{name}\tdög\nin/b.npz\tx\tdög\nin/b.npz\tx\tcat\n"
    lines = document("txt", SCORES, CLASSIFIER, top=2).splitlines()
    assert lines[0] == f"{name}\tdög\t0.7000\tcat\t0.2000"
    assert text_of_field(name) == ESCAPED
    # tsv: relative to the table, and as `mdlstm train` reads labels.tsv, which knows no escapes
    blank, backslash, accent = np.eye(3) * 9
    texts = np.stack([[backslash, accent, blank, backslash]])
    assert document("tsv", texts, RECOGNISER) == "a\\\\t\\n.npy\t\\é\\\nb.npz\tx\t\\é\\\n"


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"probabilities": True}], ids=str)
def test_tables_and_lists(options: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(document("csv", SCORES, CLASSIFIER, **options))))
    assert [text_of_field(row["file"]) for row in rows] == [ESCAPED, "in/b.npz", "in/b.npz"]
    assert [(row["array"], row["sample"]) for row in rows] == [("", ""), ("x", "0"), ("x", "1")]
    assert [row["label"] for row in rows] == ["dög", "dög", "cat"]
    records = json.loads(document("json", SCORES, CLASSIFIER, **options))
    assert records[0]["file"] == ESCAPED and "sample" not in records[0]
    assert [record["label"] for record in records] == ["dög", "dög", "cat"]
    if "top" in options:
        assert (rows[2]["label_2"], rows[2]["probability_2"]) == (CLASSES[2], "0.3")
    if "probabilities" in options:
        assert [rows[2][f"probability_{name}"] for name in CLASSES] == ["0.5", "0.2", "0.3"]
    if options:
        ranked = [("cat", 0.5), (CLASSES[2], 0.3), ("dög", 0.2)]
        assert list(records[2]["probabilities"].items()) == ranked[: options.get("top")]


def test_texts_have_confidences_and_places(tmp_path: Path) -> None:
    model = recogniser(tmp_path / "m.onnx", temperature=0.1)
    image = np.full((4, 20), 255, np.uint8)
    image[:, 8:10] = 0
    write_image(tmp_path / "lines" / "1.png", image)
    write_image(tmp_path / "lines" / "2.png", 0 * image)

    def written(name: str, **options: Any) -> str:
        list(infer_paths([tmp_path / "lines"], model, tmp_path / name, force=True, **options).results)
        return (tmp_path / name).read_text()

    (first, second) = json.loads(written("texts.json"))
    assert (first["text"], second["text"]) == ("a", "a")
    (character,) = first["characters"]
    assert set(character) == {"character", "left", "right", "confidence"}
    assert abs(character["left"] - 8) < 0.5
    assert abs(character["right"] - 10) < 0.5
    assert 0.5 < first["confidence"] == character["confidence"] <= 1
    digits = str(first["confidence"])[:4]
    for name in ("texts.csv", "texts.tsv", "texts.txt"):
        plain, asked = written(name), written(name, probabilities=True)
        assert digits not in plain
        assert digits in asked
        assert len(plain.splitlines()) == len(asked.splitlines())
    assert written("texts.csv", probabilities=True).splitlines()[0] == "file,array,sample,text,confidence"


def test_a_file_that_is_given_twice_does_not_end_the_table(tmp_path: Path) -> None:
    """Errors come before the answers of files that stand before them."""
    for name in ("1", "2"):
        write_image(tmp_path / f"{name}.png", np.full((4, 20), 255, np.uint8))
    (tmp_path / "bad.png").write_text("no image")
    inputs = [tmp_path / f"{name}.png" for name in ("1", "bad", "bad", "2")]
    table = tmp_path / "texts.csv"
    list(infer_paths(inputs, recogniser(tmp_path / "m.onnx"), table, device="cpu").results)
    assert table.read_text().count(".png") == 2


def test_a_language_model_changes_texts(tmp_path: Path) -> None:
    model = recogniser(tmp_path / "m.onnx", lm_weight=1.0, character_bonus=0.0)
    CharacterModel.fit(["b"]).save(tmp_path / "lm.arpa")
    write_image(tmp_path / "1.png", np.full((4, 1), 32, np.uint8))  # scores 0.125, 0.5 and -0.125
    texts = [
        next(infer_paths([tmp_path / "1.png"], model, **options).results).answers[0].text
        for options in (
            {},
            {"beam": 4},
            {"lm": tmp_path / "lm.arpa"},
            {"beam": 4, "lm": tmp_path / "lm.arpa"},
        )
    ]
    assert texts == ["a", "a", "b", "b"]


def test_a_class_name_that_no_file_can_hold_is_escaped() -> None:
    damaged = replace(CLASSIFIER, classes=("cat", "\ud800", "dog"))
    assert r"\ud800,0.7" in document("csv", SCORES, damaged).encode().decode()


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        ({"z": SCORES}, {}, "y holds z, expected the output y"),
        (SCORES.astype(complex), {}, "y holds complex128, expected real numbers"),
        ([["a", "b", "c"]], {}, "expected real numbers"),
        (SCORES, {"width": -8}, "width must be a positive number of pixels, got -8"),
        (SCORES, {"width": 0}, "width must be a positive"),
        (SCORES, {"width": np.nan}, "width must be a positive"),
    ],
    ids=str,
)
def test_outputs_and_widths_that_cannot_be_are_refused(y: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(y, CLASSIFIER, **options)


def test_commands_for_a_terminal_in_class_names_are_escaped() -> None:
    hostile = replace(CLASSIFIER, classes=("cat", "\x1b[31mcat\x1b]0;owned\x07", "d\u202eog"))
    for form in ("txt", "tsv", "csv", "json"):
        assert document(form, SCORES, hostile).replace("\n", "").replace("\t", "").isprintable()


def test_of_several_outputs_the_first_one_is_decoded() -> None:
    two = replace(CLASSIFIER, output_names=("logits", "features"), further_windows=(None,))
    assert decode({"features": np.zeros((2, 9)), "logits": SCORES}, two) == decode(SCORES, CLASSIFIER)


OPTIONS = [(kind, option) for kind in all_kinds() for option in kind.options]


@pytest.mark.parametrize(("kind", "option"), OPTIONS, ids=lambda each: each.name)
def test_each_option_of_a_kind_is_checked(kind: Kind, option: Option, tmp_path: Path) -> None:
    """Its type, its lowest number, and that the model is of the kind, by both functions that take it."""
    models = {"classify": CLASSIFIER, "transcribe": RECOGNISER, "density": DENSITY, "baselines": FINDER}
    wrong: list[tuple[Any, str]] = [(object(), f"^{option.name} must be .* or None, got ")]
    if option.type is int:
        wrong.append(
            (option.least - 1, f"^{option.name}={option.least - 1} is out of range; give at least")
        )
    for value, message in wrong:
        with pytest.raises(InputError, match=message):
            infer_paths([tmp_path / "none"], **{option.name: value})
        with pytest.raises(InputError, match=message):
            decode(SCORES, models[kind.name], **{option.name: value})
    for name, metadata in models.items():
        if option.name not in kind_named(name).takes:
            fitting = {int: 2, Path: "a.arpa"}[option.type]
            with pytest.raises(
                InputError, match=f"{option.name}=... is no option of models of kind {name}"
            ):
                decode(SCORES, metadata, **{option.name: fitting})
        elif option.of_documents:
            with pytest.raises(InputError, match=f"{option.name}=... is for the documents"):
                decode(SCORES, metadata, **{option.name: "a"})


def test_an_option_that_no_kind_has_is_refused_as_python_does(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"infer_paths\(\) got an unexpected keyword argument 'beem'"):
        infer_paths([tmp_path], beem=3)
    with pytest.raises(TypeError, match=r"decode\(\) got an unexpected keyword argument 'beem'"):
        decode(SCORES, CLASSIFIER, beem=3)
