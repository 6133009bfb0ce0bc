"""Pictures of samples hold the numbers that they show."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mdlstm_tk.data.task import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.kinds import panels

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("fade", [0.0, 0.25, 1.0])
def test_an_input_is_drawn_in_its_own_range_and_faded_to_white(channels: int, fade: float) -> None:
    """Colours lie in [0, 1], and only larger values are scaled."""
    x = (RNG.random((4, 6, channels)) * 0.5).astype(np.float32)
    grey = x[..., :1]
    unit = x if channels == 3 else ((grey - grey.min()) / (grey.max() - grey.min())).repeat(3, -1)
    drawn = panels.draw_input(x, fade)
    assert drawn.dtype == np.uint8 and drawn.shape == (4, 6, 3)
    assert np.abs(drawn - 255 * (unit + (1 - unit) * fade)).max() < 0.51
    assert not panels.draw_input(np.full_like(x[..., :1], 7)).any()


def test_masks_lie_over_their_image_and_unknown_positions_show_it_alone() -> None:
    x, mask = RNG.random((3, 5, 3)).astype(np.float32), RNG.integers(0, 2, (3, 5))
    mask[0, 0] = UNLABELLED
    colors = [(200, 10, 30), (0, 90, 250)]
    drawn, plain = panels.draw_mask(x, mask, colors), panels.draw_input(x)
    share = panels.MASK_OPACITY
    expected = (1 - share) * plain + share * np.array(colors)[mask]
    expected[0, 0] = plain[0, 0]
    assert np.abs(drawn - expected).max() < 0.51


def test_classes_have_colors_of_their_own_or_those_of_the_palette() -> None:
    from matplotlib import colormaps

    names = tuple(map(str, range(20)))
    colors = panels.class_colors(TaskSpec("t", "segment", 1, 20, (8, 8), names))
    every = [tuple(round(255 * part) for part in color) for color in colormaps["tab20"].colors]
    assert colors == every[::2] + every[1::2]  # the saturated ones first
    palette = {"mask_palette": (1, 2, 3, 4, 5, 6)}
    spec = TaskSpec("t", "segment", 1, 2, (8, 8), ("a", "b"), decoding=palette)
    assert panels.class_colors(spec) == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize("is_right", [True, False, None])
def test_a_caption_says_the_truth_unless_the_answer_is_right(is_right: bool | None) -> None:
    batch = Batch(RNG.random((1, 4, 6, 1)).astype(np.float32), np.zeros(1), np.array([[3, 5]]))
    panel = panels.answer_panel(batch, "", "stop", is_right, "70 %")
    lines = panel.name.split("\n")
    assert "70 %" in lines[0] and panel.is_right is is_right and panel.image.shape == (3, 5, 3)
    assert [line.endswith("stop") for line in lines[1:]] == [True] * (not is_right)


@pytest.mark.parametrize(
    ("extents", "expected"), [((9, 7), (9, 7)), ((1280, 640), (640, 320)), ((20, 2800), (10, 1400))]
)
@pytest.mark.parametrize("is_grey", [True, False])
def test_an_address_holds_the_image_and_large_ones_are_scaled(
    extents: tuple[int, int], expected: tuple[int, int], is_grey: bool
) -> None:
    image = RNG.integers(0, 255, (*extents, 1 if is_grey else 3)).astype(np.uint8)
    url = panels.Panel("", np.broadcast_to(image, (*extents, 3))).url
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert picture.size == expected[::-1] and picture.mode == ("L" if is_grey else "RGB")
    assert extents != expected or np.array_equal(np.asarray(picture).reshape(image.shape), image)
