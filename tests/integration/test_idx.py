"""IDX files, the format of MNIST, and folders of them as data. They may be a stranger's."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.user_data import read
from PIL import Image

from mdlstm_tk.data.builtin import fashion
from mdlstm_tk.data.builtin.fashion import Fashion
from mdlstm_tk.data.idx import read_idx
from mdlstm_tk.data.spec import SPLITS
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import (
    configure,
    configure_comparison,
    load_checkpoint,
    new_job,
    open_run,
    plan_comparison,
    resume_job,
    train,
)
from mdlstm_tk.training.tasks import load_task

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 5)).astype(np.uint8)
HEADER = struct.pack(">4I", 0x803, *IMAGES.shape)
WHOLE = HEADER + IMAGES.tobytes()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte.gz"])
def test_a_folder_of_idx_files_is_data_of_kind_density(name: str, tmp_path: Path) -> None:
    content = gzip.compress(WHOLE) if name.endswith(".gz") else WHOLE
    (tmp_path / name).write_bytes(content)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 3, 4, 5) + WHOLE[16:76])
    assert (read_idx(tmp_path / name) == IMAGES).all()
    task = read(tmp_path, "density", levels=256)
    assert (task.spec.kind, task.spec.size, task.spec.outputs) == ("density", (4, 5), 256)
    assert (task.count("train") + task.count("validation"), task.count("test")) == (12, 3)
    batch = task.batch(0, 0, 3, "test")
    assert (np.rint(batch.x[..., 0] * 255) == IMAGES[:3]).all()
    assert batch.y is batch.x


def test_the_built_in_clothes_are_read_from_idx_files(tmp_path: Path) -> None:
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(WHOLE))
    task = Fashion(0, 0.25, tmp_path)
    assert [task.count(split) for split in ("train", "validation", "test")] == [9, 3, 12]  # type: ignore[arg-type]
    x = task.batch(0, 0, 12, "test").x[..., 0]
    assert set(np.unique(x)) == {0, 1}
    assert (x[IMAGES > 0.71 * 255] == 1).all()
    assert (x[IMAGES < 0.29 * 255] == 0).all()


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
def test_files_are_found_as_users_keep_them(layout: str, tmp_path: Path) -> None:
    write_layout(tmp_path, LAYOUTS[layout])
    task = Fashion(0, 0.25, tmp_path)
    assert [task.count(split) for split in SPLITS] == [9, 3, 12]
    assert read(tmp_path, "density").count("test") == 12


def test_a_built_in_task_takes_the_folder_of_its_files_and_a_run_needs_it_again(tmp_path: Path) -> None:
    folder, run = tmp_path / "mnist", tmp_path / "run"
    write_layout(folder, LAYOUTS["as published"])
    options = {"task": "fashion", "data": str(folder), "hidden": 2, "layers": 1, "validation": 0.25}
    job = new_job(configure({**options, "steps": 2, "batch_size": 2}), run)
    assert (job.task.name, job.task.spec.size, job.config.size) == ("fashion", (4, 5), "4x5")
    assert train(job)["split"] == "test"
    x = job.task.batch(0, 0, 12, "test").x
    assert (x == Fashion(0, 0.25, folder).batch(0, 0, 12, "test").x).all()
    resumed = resume_job(run, {"steps": 3})
    assert Path(resumed.config.data) == folder
    assert train(resumed)["step"] <= 3
    checkpoint = load_checkpoint(open_run(run).last)
    assert load_task(checkpoint.config, checkpoint.spec, str(folder)).count("train") == 9
    with pytest.raises(InputError, match="--data PATH"):  # a stranger's run names no files of this machine
        load_task(checkpoint.config, checkpoint.spec)
    plan = plan_comparison(configure_comparison("fashion", {}, {"data": str(folder)}), 1, tmp_path / "c")
    assert plan.config.data == str(folder)
    with pytest.raises(InputError, match="fashion, got 'ising'"):
        configure({"task": "ising", "data": str(folder)})
    with pytest.raises(InputError, match="resize"):
        new_job(configure({**options, "resize": "8"}), tmp_path / "resized")


def test_files_of_another_layout_are_one_line_that_says_what_is_expected(tmp_path: Path) -> None:
    for name in ("a/train-images-idx3-ubyte", "b/train-images-idx3-ubyte"):
        write_layout(tmp_path, (name,))
    with pytest.raises(InputError, match=r"more than one .* for train.*one data set"):
        Fashion(0, 0.1, tmp_path)
    with pytest.raises(InputError, match=r"found train-images-idx3-ubyte; .* --task density"):
        Fashion(0, 0.1, tmp_path / "a")
    with pytest.raises(InputError, match="found neither"):
        Fashion(0, 0.1, tmp_path / "nothing")
    (tmp_path / "a/t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 3, 5, 4) + WHOLE[16:76])
    with pytest.raises(InputError, match="4x5 and 5x4"):
        Fashion(0, 0.1, tmp_path / "a")


def test_clothes_that_are_not_installed_are_one_line_that_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="dataset-fashion-mnist"):
        Fashion(0, 0.1, tmp_path)


BAD = {
    "empty": (b"", "0 bytes"),
    "header alone": (HEADER, "12, 4, 5"),
    "cut off": (WHOLE[:-1], "239"),
    "too long": (WHOLE + b"x", "241"),
    "labels": (struct.pack(">2I", 0x801, 12) + bytes(12), "0x00000801"),
    "no images": (struct.pack(">4I", 0x803, 0, 4, 5), r"\(0, 4, 5\)"),
    "a huge shape": (struct.pack(">4I", 0x803, *[2**32 - 1] * 3) + bytes(9), "4294967295"),
    "gzip cut off": (gzip.compress(WHOLE)[:-9], "too early"),
    "not gzip": (b"\x1f\x8b" + bytes(30), "damaged"),
    "a bomb": (gzip.compress(bytes(2**20)), "more than 65536"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_idx(path, 2**16)
    assert "\n" not in str(refused.value)
    if name != "a bomb":
        with pytest.raises(InputError, match=message):
            read(tmp_path, "density")


def test_only_regular_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(WHOLE)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").symlink_to(outside)
    with pytest.raises(InputError, match="leads out"):
        read(folder, "density")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        read_idx(tmp_path / "pipe")


def test_arrays_and_images_are_data_of_kind_density(tmp_path: Path) -> None:
    x = IMAGES / np.float32(255)
    np.savez(tmp_path / "x.npz", x=x)
    task = read(tmp_path / "x.npz", "density")
    assert task.spec.outputs == 1
    assert task.spec.mean == ()
    assert len(task.batch(0, 0, 4).x) == 4
    (tmp_path / "floats").mkdir()
    for k, image in enumerate(x):  # a TIFF of floating-point numbers is used as it is
        Image.fromarray(image + (k == 3)).save(tmp_path / f"floats/{k}.tif")
    task = read(tmp_path / "floats", "density", levels=4)
    assert [name for name in task.skipped if name.startswith("3.tif: its values lie in [1")] == task.skipped
    assert len(task.skipped) == 1 and "nearest of 4 levels" in "; ".join(task.summary)
    np.savez(tmp_path / "large.npz", x=2 * x)
    with pytest.raises(InputError, match=r"expected \[0, 1\]"):
        read(tmp_path / "large.npz", "density")
