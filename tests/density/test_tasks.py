"""The tasks of density models, and images in IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import pickle
import struct
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.user_data import read
from PIL import Image

from mdlstm_tk.data import SPLITS
from mdlstm_tk.data.user_data import read_data
from mdlstm_tk.density import DigitsDensity, Fashion, Ising, fashion, idx
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import TrainConfig
from mdlstm_tk.training.run_task import describe_changes, describe_overlap
from mdlstm_tk.training.tasks import load_task


def test_arrays_and_images_are_data_of_kind_density(tmp_path: Path) -> None:
    x = IMAGES / np.float32(255)
    np.savez(tmp_path / "x.npz", x=x)
    task = read(tmp_path / "x.npz", "density")
    assert (task.spec.outputs, task.spec.mean) == (1, ())
    (tmp_path / "floats").mkdir()
    for k, image in enumerate(x):  # a TIFF of floating-point numbers is used as it is
        Image.fromarray(image + (k == 3)).save(tmp_path / f"floats/{k}.tif")
    task = read(tmp_path / "floats", "density", settings={"levels": 4})
    assert [name for name in task.skipped if "values from 1" in name] == task.skipped
    assert len(task.skipped) == 1 and "nearest of 4 levels" in "; ".join(task.summary)


@pytest.mark.parametrize(
    ("kind", "x_range"), [("density", (0, 1)), ("classify", (0, 1)), ("classify", (-1, 9))]
)
def test_training_refuses_numbers_outside_of_the_range_of_its_kind(
    kind: str, x_range: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(kind_named(kind)), "x_range", x_range)
    for past, fits in ((0.0, True), (0.0005, True), (0.5, False)):
        for value in (x_range[0] - past, x_range[1] + past):
            x = np.full((8, 4, 5), value, np.float32)
            np.savez(tmp_path / "x.npz", x=x, y=np.arange(8) % 2)
            with nullcontext() if fits else pytest.raises(InputError, match="expects"):
                read(tmp_path / "x.npz", kind)


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
    clothes = Fashion(0.25, tmp_path)
    assert [clothes.count(split) for split in SPLITS] == [9, 3, 12]
    x = clothes.batch(0, 0, 12, "test").x[..., 0]
    assert set(np.unique(x)) == {0, 1}
    assert (x[IMAGES > 0.71 * 255] == 1).all() and (x[IMAGES < 0.29 * 255] == 0).all()
    task = read(tmp_path, "density", settings={"levels": 256})
    assert (task.spec.size, task.spec.outputs, task.count("test")) == ((4, 5), 256, 12)
    batch = pickle.loads(pickle.dumps(task)).batch(0, 0, 12, "test")  # as a worker process may get it
    assert (np.rint(batch.x[..., 0] * 255) == IMAGES).all()
    assert batch.y is batch.x


def test_images_in_a_folder_with_idx_files_are_counted(tmp_path: Path) -> None:
    write_layout(tmp_path, ("old/train-images-idx3-ubyte",))
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    note = f"images in {tmp_path}, as it has {Path('old/train-images-idx3-ubyte')}, left out: 1"
    assert note in read(tmp_path, "density").summary


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
        Fashion(0.1, tmp_path)
    with pytest.raises(InputError, match=r"found train-images-idx3-ubyte; .* --task density"):
        Fashion(0.1, tmp_path / "a")
    with pytest.raises(InputError, match="found none for training"):
        Fashion(0.1, tmp_path / "nothing")
    (tmp_path / "a/t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 3, 5, 4) + WHOLE[16:76])
    with pytest.raises(InputError, match="4x5 and 5x4"):
        Fashion(0.1, tmp_path / "a")
    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "not-installed")
    with pytest.raises(InputError, match="dataset-fashion-mnist"):
        Fashion(0.1, tmp_path / "not-installed")


def test_idx_files_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    write_layout(tmp_path, LAYOUTS["EMNIST"])
    before = Fashion(0.25, tmp_path).batch(0, 0, 12, "test").x
    for name in LAYOUTS["EMNIST"]:
        (tmp_path / name).write_bytes(gzip.compress(HEADER + (255 - IMAGES).tobytes()))
    assert (Fashion(0.25, tmp_path).batch(0, 0, 12, "test").x != before).any()


def test_runs_know_the_pictures_of_idx_files(tmp_path: Path) -> None:
    contents = {"one": IMAGES, "other": IMAGES[:, ::-1], "upright": IMAGES.swapaxes(1, 2)}
    for name, images in contents.items():
        (tmp_path / name).mkdir()
        for split, part in (("train", images[:9]), ("t10k", images[9:])):
            header = struct.pack(">4I", 0x803, *part.shape)
            (tmp_path / name / f"{split}-images-idx3-ubyte").write_bytes(header + part.tobytes())
    trained, again = Fashion(0.25, tmp_path / "one"), Fashion(0.5, tmp_path / "one")
    assert [len(trained.identities[split]) for split in SPLITS] == [7, 2, 3]
    (change,) = describe_overlap(again.identities, trained.identities["train"])
    assert change.startswith("2 of the 4 samples that the network is validated with are trained on")
    before = {**trained.identities, "test": trained.identities["validation"]}
    (change,) = describe_overlap(before)
    assert change.startswith("2 of the 2 samples that the network is tested on are validated with as well")
    with pytest.raises(InputError, match=r"2 samples .* trained on are now among those"):
        describe_changes(trained.identities, again.identities)
    as_images = read_data(tmp_path / "one", "density", 0.25, 0, 0.0)
    digests = [{each.digest for ids in t.identities.values() for each in ids} for t in (trained, as_images)]
    assert digests[0] == digests[1]
    other = Fashion(0.25, tmp_path / "other")
    assert "9 samples of the run are missing" in "".join(
        describe_changes(trained.identities, other.identities)
    )
    config = TrainConfig(task="fashion", data=str(tmp_path / "one"), validation=0.25)
    with pytest.raises(InputError, match=r"size is \(5, 4\), expected \(4, 5\)"):
        load_task(config, trained.spec, str(tmp_path / "upright"))


def test_digits_in_black_and_white_are_those_in_grey_above_a_threshold_and_the_same_in_all_runs() -> None:
    binary, grey = DigitsDensity(0), DigitsDensity(0, binary=False)
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
        for task in (binary, DigitsDensity(1))
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
    errors = task.baselines(0, 4000)["exact"]
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
