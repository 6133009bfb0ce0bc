"""`read_lines`: texts of lines from images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.crafted_models import node
from helpers.small_models import classifier, recogniser, write_model
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.shapes import step_width
from mdlstm_tk.text import CharacterModel, read_lines


def line(*letters: slice, height: int = 4, width: int = 30) -> np.ndarray:
    """A white image with a letter a, which is black, at some columns."""
    image = np.full((height, width), 255, np.uint8)
    for letter in letters:
        image[:, letter] = 0
    return image


def test_texts_have_places_and_confidences(tmp_path: Path) -> None:
    session = Session(recogniser(tmp_path / "m.onnx", temperature=0.05))
    first, second = read_lines(session, [line(slice(3, 6), slice(12, 20)), line(width=7)])
    assert (first.text, second.text, second.characters) == ("aa", "", ())
    assert [c.character for c in first.characters] == ["a", "a"]
    np.testing.assert_allclose([(c.left, c.right) for c in first.characters], [(3, 6), (12, 20)], atol=0.2)
    assert 0.9 < first.characters[0].confidence <= 1
    assert 0.9 < second.confidence <= 1
    (flat,) = read_lines(Session(recogniser(tmp_path / "f.onnx", temperature=2)), [line(slice(3, 6))])
    assert flat.text == "a" and flat.characters[0].confidence < first.characters[0].confidence


def test_edges_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    preprocessing = {"channels": 1, "resize": [4, None]}
    session = Session(recogniser(tmp_path / "m.onnx", temperature=0.05, preprocessing=preprocessing))
    image = line(slice(20, 40), height=16, width=80)
    (result,) = read_lines(session, [np.repeat(image[..., None], 3, axis=-1)])  # grey in colour
    assert result.text == "a"
    assert abs(result.characters[0].left - 20) < 3
    assert abs(result.characters[0].right - 40) < 3


def test_edges_end_with_the_image(tmp_path: Path) -> None:
    """The last step covers columns that the image does not have."""
    nodes = [
        node("Transpose", "x", "planes", perm=[0, 3, 1, 2]),
        node("AveragePool", "planes", "means", kernel_shape=[4, 8], strides=[4, 8], ceil_mode=1),
        node("Squeeze", "means one", "steps"),
        node("Transpose", "steps", "columns", perm=[0, 2, 1]),
        node("MatMul", "columns weights", "m"),
        node("Add", "m start", "y"),
    ]
    scores = {"weights": np.float32([[99, 0, 0]]), "start": np.float32([0, 50, 0])}
    fields = {"kind": "transcribe", "classes": ("a", "b"), "window": None, "columns_per_step": 8}
    constants = {"one": np.int64([2]), **scores}
    path = write_model(tmp_path / "m.onnx", nodes, constants, outputs=3, axes=3, **fields)
    image = line(slice(32, 35), width=35)
    (read,) = read_lines(Session(path), [image])
    Image.fromarray(image).save(tmp_path / "line.png")
    (result,) = infer_paths([tmp_path / "line.png"], path)
    for character in (read.characters[0]._asdict(), result.rows[0]["characters"][0]):
        assert character["character"] == "a" and 24 < character["left"] < 33 and character["right"] == 35


def test_texts_from_right_to_left_are_in_the_order_of_reading(tmp_path: Path) -> None:
    scores = {"weights": np.float32([[0, 40, -40]]), "start": np.float32([10, -15, 15])}
    path = recogniser(tmp_path / "m.onnx", scores, classes=("\u05d0", "\u05d1"), text_direction="rtl")
    image = np.full((4, 30), 0.5, np.float32)
    image[:, 5:8], image[:, 20:24] = 0, 1  # bet on the left, alef on the right
    session, lm = Session(path), CharacterModel.fit(["\u05d0\u05d1"])
    for result in (*read_lines(session, [image]), *read_lines(session, [image], beam=4, lm=lm)):
        assert result.text == "\u05d0\u05d1"
        assert result.characters[0].left > result.characters[1].left


def test_images_of_several_widths(tmp_path: Path) -> None:
    images = [line(*(slice(3 * k, 3 * k + 2) for k in range(n)), width=3 * n + 1) for n in (5, 1, 3, 1)]
    session = Session(recogniser(tmp_path / "m.onnx"))
    assert read_lines(session, [images[0][..., None]]) == read_lines(session, images[:1])
    assert [result.text for result in read_lines(session, images)] == ["aaaaa", "a", "aaa", "a"]
    assert read_lines(session, []) == []


@pytest.mark.parametrize(
    ("steps", "width", "expected"), [(51, 203, 4), (10, 73, 8), (30, 30, 1), (48, 200, 200 / 48)]
)
def test_steps_cover_whole_columns_where_they_fit(steps: int, width: int, expected: float) -> None:
    assert step_width(steps, width) == expected
    assert step_width(5, 33, 8) == 8  # 7 would fit as well
    assert step_width(steps, width, 1000) == expected  # the file is wrong


def test_what_would_be_read_wrong_is_refused(tmp_path: Path) -> None:
    session = Session(recogniser(tmp_path / "m.onnx"))
    image = line(slice(3, 6))
    of_floats = Session(recogniser(tmp_path / "f.onnx", unit_range=False))
    assert read_lines(of_floats, [image.astype(np.float32)])
    of_classes = Session(classifier(tmp_path / "c.onnx"))
    others = CharacterModel.fit(["0", "12"])
    for model, images, options, message in (
        (session, [image[0]], {}, r"images\[0\]: .* \(30,\), expected \(H, W\)"),
        (session, [image], {"beam": 0}, "beam"),
        (session, [image], {"lm": others}, "lm"),
        (of_floats, [image], {}, r"images\[0\]: .* \[0, 1\]"),
        (of_classes, [image], {}, "classify"),
    ):
        with pytest.raises(InputError, match=message):
            read_lines(model, images, **options)


def test_a_language_model_must_know_the_space_and_is_warned_of_other_characters(tmp_path: Path) -> None:
    """Words would run together without the space. Other characters count if the file has no <unk>."""
    image, lm = line(slice(3, 6)), CharacterModel.fit(["a)", ")a"], order=1)
    for classes in ("a ", " a"):
        with pytest.raises(InputError, match="space"):
            read_lines(Session(recogniser(tmp_path / "s.onnx", classes=tuple(classes))), [image], lm=lm)
    session = Session(recogniser(tmp_path / "m.onnx"))
    assert read_lines(session, [image], lm=lm)
    lm.save(tmp_path / "lm.arpa")
    lines = (tmp_path / "lm.arpa").read_text().replace("ngram 1=5", "ngram 1=4").splitlines()
    (tmp_path / "lm.arpa").write_text("\n".join(line for line in lines if "<unk>" not in line))
    with pytest.warns(UserWarning, match="lm lacks .*: b$"):
        read_lines(session, [image], lm=CharacterModel.load(tmp_path / "lm.arpa"))
    brackets = recogniser(tmp_path / "r.onnx", classes=("a", "("), text_direction="rtl")
    assert read_lines(Session(brackets), [image], lm=CharacterModel.load(tmp_path / "lm.arpa"))
