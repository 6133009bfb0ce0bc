"""The tasks of density models, and images in IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import save
from helpers.pages import read
from PIL import Image

from mdlstm_tk.data import SPLITS
from mdlstm_tk.density import DigitsDensity, Fashion, Ising, fashion, idx
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named

KIND = kind_named("density")


def test_arrays_and_images_are_data_of_kind_density(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = IMAGES / np.float32(255)
    np.savez(tmp_path / "x.npz", x=x)
    task = read(tmp_path / "x.npz", "density")
    assert (task.spec.outputs, task.spec.mean, task.count("train")) == (1, (), 12)
    assert (task.batch(0, 0, 12).y == task.batch(0, 0, 12).x).all()
    (tmp_path / "floats").mkdir()
    for k, image in enumerate(x):  # a TIFF of floating-point numbers is used as it is
        Image.fromarray(image + (k == 3)).save(tmp_path / f"floats/{k}.tif")
    task = read(tmp_path / "floats", "density", levels=4)
    assert (task.spec.outputs, task.count("train")) == (4, 11)
    assert "left out: 1 (3.tif: it has values from 1" in caplog.text
    for k, image in enumerate(IMAGES):
        save(tmp_path / f"bytes/{k}.png", image)
    task = read(tmp_path / "bytes", "density", levels=256)
    batch = np.rint(task.batch(0, 0, 12).x[..., 0] * 255)
    assert {each.astype(np.uint8).tobytes() for each in batch} == {each.tobytes() for each in IMAGES}


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 5)).astype(np.uint8)
HEADER = struct.pack(">4I", 0x803, *IMAGES.shape)
WHOLE = HEADER + IMAGES.tobytes()
LAYOUTS = {
    "as published": ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
    "unpacked, with dots": ("train-images.idx3-ubyte", "t10k-images.idx3-ubyte"),
    "beside their archives": (
        "train-images-idx3-ubyte",
        "train-images-idx3-ubyte.gz",
        "t10k-images-idx3-ubyte",
        "t10k-images-idx3-ubyte.gz",
    ),
    "as torchvision keeps them": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-images-idx3-ubyte"),
    "EMNIST": ("emnist-letters-train-images-idx3-ubyte.gz", "emnist-letters-test-images-idx3-ubyte.gz"),
}


def write_layout(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(WHOLE) if name.endswith(".gz") else WHOLE)
        labels = (folder / name).with_name(Path(name).name.replace("images", "labels"))
        labels.write_bytes(struct.pack(">2I", 0x801, 12) + bytes(12))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_idx_files_are_found_as_users_keep_them(layout: str, tmp_path: Path) -> None:
    write_layout(tmp_path, LAYOUTS[layout])
    clothes = Fashion(KIND, 0.25, tmp_path)
    assert [clothes.count(split) for split in SPLITS] == [9, 3, 12]
    x = clothes.batch(0, 0, 12, "test").x[..., 0]
    assert set(np.unique(x)) == {0, 1}
    assert (x[IMAGES > 0.71 * 255] == 1).all() and (x[IMAGES < 0.29 * 255] == 0).all()


BAD_IDX = {
    "without a header": (HEADER[:9], "9 bytes"),
    "cut off": (WHOLE[:-1], "239"),
    "labels": (struct.pack(">2I", 0x801, 12) + bytes(12), "0x00000801"),
    "no images": (struct.pack(">4I", 0x803, 0, 4, 5), r"\(0, 4, 5\)"),
    "gzip cut off": (gzip.compress(WHOLE)[:-9], "ended before"),
    "not gzip": (b"\x1f\x8b" + bytes(30), "(?i)unknown|incorrect|invalid|not a gzipped"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_damaged_idx_files_are_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD_IDX[name]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        idx.read_idx(path)
    assert "\n" not in str(refused.value)


def test_idx_files_of_another_layout_are_one_line_that_says_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/train-images-idx3-ubyte", "b/train-images-idx3-ubyte"):
        write_layout(tmp_path, (name,))
    for other in ("b/t10k-images-idx3-ubyte", "a/emnist-test-images-idx3-ubyte"):  # of another data set
        write_layout(tmp_path / "two", ("a/train-images-idx3-ubyte", other))
        with pytest.raises(InputError, match=r"has two data sets, .* and .*give a folder"):
            idx.find_idx(tmp_path / "two")
        (tmp_path / "two" / other).unlink()
    write_layout(tmp_path / "one", ("train/train-images-idx3-ubyte", "test/t10k-images-idx3-ubyte"))
    assert set(idx.find_idx(tmp_path / "one")) == {"train", "test"}
    with pytest.raises(InputError, match=r"more than one .* for train.*one data set"):
        Fashion(KIND, 0.1, tmp_path)
    with pytest.raises(InputError, match=r"found train-images-idx3-ubyte; .* --task density"):
        Fashion(KIND, 0.1, tmp_path / "a")
    with pytest.raises(InputError, match="found none for training"):
        Fashion(KIND, 0.1, tmp_path / "nothing")
    (tmp_path / "a/t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 3, 5, 4) + WHOLE[16:76])
    with pytest.raises(InputError, match="4x5 and 5x4"):
        Fashion(KIND, 0.1, tmp_path / "a")
    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "not-installed")
    with pytest.raises(InputError, match="dataset-fashion-mnist"):
        Fashion(KIND, 0.1, tmp_path / "not-installed")


def test_idx_files_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    write_layout(tmp_path, LAYOUTS["EMNIST"])
    before = Fashion(KIND, 0.25, tmp_path).batch(0, 0, 12, "test").x
    for name in LAYOUTS["EMNIST"]:
        (tmp_path / name).write_bytes(gzip.compress(HEADER + (255 - IMAGES).tobytes()))
    assert (Fashion(KIND, 0.25, tmp_path).batch(0, 0, 12, "test").x != before).any()


def test_pictures_are_known_by_their_contents(tmp_path: Path) -> None:
    write_layout(tmp_path, LAYOUTS["EMNIST"])
    trained, again = Fashion(KIND, 0.25, tmp_path), Fashion(KIND, 0.5, tmp_path)
    assert [len(trained.digests[split]) for split in SPLITS] == [9, 3, 12]
    assert {*trained.digests["test"]} == {*again.digests["train"], *again.digests["validation"]}


def test_digits_in_black_and_white_are_those_in_grey_above_a_threshold_and_the_same_in_all_runs() -> None:
    binary, grey = DigitsDensity(KIND, 0), DigitsDensity(KIND, 0, binary=False)
    dark, light = [], []
    for split in SPLITS:
        white = binary.batch(0, 0, 400, split).x > 0.5
        levels = grey.batch(0, 0, 400, split).x
        dark += [image[~mask].max() for image, mask in zip(levels, white, strict=True)]
        light += [image[mask].min() for image, mask in zip(levels, white, strict=True)]
    assert (np.array(dark) < np.array(light)).all()  # each image has a threshold,
    assert max(dark) < 0.7 + 1 / 16
    assert min(light) > 0.3 - 1 / 16
    assert max(dark) > 0.6 > 0.4 > min(light)  # and others have other thresholds
    images, others = (
        {image.tobytes() for split in SPLITS for image in task.batch(0, 0, task.count(split), split).x}
        for task in (binary, DigitsDensity(KIND, 1))
    )
    assert images == others


def all_images(height: int, width: int) -> np.ndarray:
    return np.array(list(product((0.0, 1.0), repeat=height * width))).reshape(-1, height, width, 1)


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (5, 2), (1, 4), (4, 1)])
def test_probabilities_and_entropy_are_those_of_an_enumeration(size: tuple[int, int]) -> None:
    task = Ising(size, beta=0.7)
    log_p = task.log_prob(all_images(*size))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
    assert task.entropy == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-6)


def test_a_long_chain_has_the_entropy_of_the_textbook() -> None:
    beta = 0.5  # a chain: each of the n − 1 bonds is a coin by itself, and the first spin another
    p = 1 / (1 + np.exp(-2 * beta))
    bond = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert Ising((1, 16), beta).entropy == pytest.approx(np.log(2) + 15 * bond, abs=1e-6)
    assert Ising((200, 1), beta).entropy == pytest.approx(np.log(2) + 199 * bond, abs=1e-5)


def test_images_are_drawn_with_their_probabilities() -> None:
    task = Ising((2, 3), beta=0.6)
    x = task.batch(0, 0, 20_000).x
    numbers = (x.reshape(-1, 6) @ 2 ** np.arange(6)[::-1]).astype(int)
    frequency = np.bincount(numbers, minlength=64) / len(x)
    p = np.exp(task.log_prob(all_images(2, 3)))
    assert (np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / len(x)) + 1e-9).all()


def test_the_baseline_of_ising_is_the_exact_probability() -> None:
    task = Ising((3, 4), beta=0.9)
    errors = task.baselines(0)["exact"]
    assert errors["nats"] == pytest.approx(task.entropy, rel=0.05)
    assert errors["bits_per_dim"] == pytest.approx(errors["nats"] / 12 / np.log(2))


@pytest.mark.parametrize("beta", [400.0, -400.0, float("nan"), float("inf")])
def test_couplings_that_overflow_are_refused(beta: float) -> None:
    with pytest.raises(InputError, match="beta must be a number from -300"):
        Ising((4, 4), beta)
    assert np.isfinite(Ising((4, 4), 300.0).entropy)


@pytest.mark.parametrize("size", [(3, 24), (1000, 16), (3, 10**9), (3,), (3, 3, 3), (4, -1), (0, 4)])
def test_sizes_with_too_many_states_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="such as 16x16"):
        Ising(size)
