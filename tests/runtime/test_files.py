"""Files: what is found, read and written; damaged ones are refused, and nothing is ever half-written."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io.files import check_free, find_files, open_output, read_file, write_arrays

RNG = np.random.default_rng(0)
X = RNG.random((3, 4)).astype(np.float32)


def npy(array: Any) -> bytes:
    np.save(buffer := io.BytesIO(), array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    np.savez(buffer := io.BytesIO(), **arrays)
    return buffer.getvalue()


def png(pixels: Any) -> bytes:
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


READ: dict[str, tuple[str, bytes, dict[str | None, Any]]] = {
    "npy": ("x.npy", npy(X), {None: X}),
    "upper case": ("x.NPY", npy(X), {None: X}),
    "Fortran order": ("x.npy", npy(np.asfortranarray(X)), {None: X}),
    "big-endian": ("x.npy", npy(X.astype(">f8")), {None: X.astype(">f8")}),
    "bool": ("x.npy", npy(X > 0.5), {None: X > 0.5}),
    "npz": ("x.npz", npz(b=X, a=X + 1), {"b": X, "a": X + 1}),
    "npz of one": ("x.npz", npz(y=X), {"y": X}),
    "csv": ("x.csv", b"1,2.5\n-3,4e1\n", {None: [[1, 2.5], [-3, 40]]}),
    "csv of Windows": ("x.csv", b"\xef\xbb\xbf1,2\r\n3,4\r\n\r\n", {None: [[1, 2], [3, 4]]}),
    "csv of one row": ("x.csv", b" 1, 2", {None: [[1, 2]]}),
    "png": ("x.png", png(np.uint8([[1, 2]])), {None: [[1, 2]]}),
    "npy without a suffix": ("pipe", npy(X), {None: X}),
    "npz without a suffix": ("pipe", npz(x=X), {"x": X}),
    "csv without a suffix": ("pipe", b"-1,2", {None: [[-1, 2]]}),
    "png without a suffix": ("pipe", png(np.uint8([[1, 2]])), {None: [[1, 2]]}),
}


@pytest.mark.parametrize("name", READ)
def test_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file, data, arrays = READ[name]
    (tmp_path / file).write_bytes(data)
    read = read_file(tmp_path / file)
    assert read.is_image == ("png" in name) and [*read.arrays] == [*arrays]
    for key, array in arrays.items():
        np.testing.assert_array_equal(read.arrays[key], array)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert [*read_file("-").arrays] == [*arrays]


REFUSED = {
    "missing": ("nix.npy", None),
    "empty npy": ("x.npy", b""),
    "objects": ("x.npy", npy(np.array([{}]))),
    "cut off": ("x.npy", npy(X)[:-1]),
    "a huge header": ("x.npy", npy(X).replace(b"(3, 4)", b"(3000000000, 40000)")),
    "npz for npy": ("x.npz", npy(X)),
    "empty npz": ("x.npz", npz()),
    "a heading": ("x.csv", b"a,b\n1,2\n"),
    "an empty row": ("x.csv", b"1,2\n\n3,4\n"),
    "ragged rows": ("x.csv", b"1,2\n3\n"),
    "a comment": ("x.csv", b"1,2\n# 3,4\n"),
    "empty csv": ("x.csv", b""),
    "no image": ("x.png", b"no image"),
    "a script": ("x.eps", b"%!PS-Adobe"),
    "a null character": ("x\0.npy", None),
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    file, data = REFUSED[name]
    if data is not None:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=file.split(".")[0].replace("\0", ".")):
        read_file(tmp_path / file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["npy", "npz", "csv", "big-endian"])
def test_damaged_arrays_are_refused_or_read(tmp_path: Path, name: str) -> None:
    file, data, _ = READ[name]
    for n in range(0, len(data), 2 if name == "npz" else 1):
        for damaged in (data[:n], data[:n] + bytes([data[n] ^ int(RNG.integers(1, 256))]) + data[n + 1 :]):
            (tmp_path / file).write_bytes(damaged)
            with suppress(InputError):
                assert all(isinstance(x, np.ndarray) for x in read_file(tmp_path / file).arrays.values())


def test_folders_are_searched_without_hidden_files_and_results(tmp_path: Path) -> None:
    names = "b.npy a.PNG sub/c.csv sub/.hidden/d.npy .e.npy f.out.npy f.txt z.zarr/zarr.json"
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = find_files([str(tmp_path), str(tmp_path / "f.out.npy"), "nix.npy"])
    assert [relative for _, relative in found] == ["a.PNG", "b.npy", "sub/c.csv", "f.out.npy", "nix.npy"]
    assert [r for _, r in find_files([str(tmp_path)], (".zarr",))] == ["z.zarr"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"\.npz"):
        find_files([str(tmp_path / "empty")])


WRITTEN: dict[str, tuple[dict[str | None, Any], str]] = {
    "npy": ({None: X}, "npy"),
    "integers": ({None: np.int64([[1, -2]])}, "npy"),
    "npz": ({"a": X, None: X + 1}, "npz"),
    "csv": ({None: X}, "csv"),
    "csv of integers": ({None: np.uint8([[1, 2]])}, "csv"),
    "csv of one channel": ({None: X[..., None]}, "csv"),
    "json": ({None: X}, "json"),
    "json by name": ({"a": X, "b": X}, "json"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    arrays, form = WRITTEN[name]
    path = tmp_path / f"y.{form}"
    for _ in range(2):
        with open_output(path) as file:
            write_arrays(file, arrays, form)
        data = path.read_bytes()
    if form == "json":
        values = json.loads(data)
        read: Any = values if isinstance(values, dict) else {None: values}
    else:
        read = {key if len(arrays) > 1 else None: x for key, x in read_file(path).arrays.items()}
    for key, array in arrays.items():
        value = np.asarray(read["y" if key is None and len(arrays) > 1 else key])
        np.testing.assert_array_equal(value.astype(array.dtype), array.reshape(value.shape))
    assert path.read_bytes() == data  # equal results are equal files


def test_masks_keep_values_and_palette(tmp_path: Path) -> None:
    mask, palette = np.uint8([[0, 7], [9, 7]]), (1, 2, 3, 4, 5, 6, 7, 8, 9)
    for values, dtype in (((0, 7, 9), np.uint8), ((0, 7, 65535), np.uint16)):
        with open_output(tmp_path / "m.png") as file:
            write_arrays(file, {None: mask.astype(dtype)}, "png", values, palette)
        image = Image.open(tmp_path / "m.png")
        np.testing.assert_array_equal(np.asarray(image), mask)
        if dtype == np.uint8:
            assert image.getpalette()[7 * 3 : 7 * 3 + 3] == [4, 5, 6]  # type: ignore[index]
    with open_output(tmp_path / "f.png") as file:
        write_arrays(file, {None: np.float32([[0, 0.5, 1.0005]])}, "png")
    assert np.asarray(Image.open(tmp_path / "f.png")).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("arrays", "form"),
    [
        ({"a": X, "b": X}, "npy"),
        ({None: X[None, None]}, "csv"),
        ({None: X[None]}, "csv"),
        ({None: X * 3}, "png"),
        ({None: X[None, None]}, "png"),
        ({None: np.int64([[-1]])}, "png"),
        ({None: np.int64([[65536]])}, "png"),
        ({None: X * np.nan}, "png"),
        ({None: X * np.nan}, "json"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_written(
    tmp_path: Path, arrays: dict[str | None, Any], form: str
) -> None:
    with pytest.raises(InputError, match="--format"), open_output(tmp_path / "y") as file:
        write_arrays(file, arrays, form)
    assert not [*tmp_path.iterdir()]


def write_half(path: Path, failure: BaseException) -> None:
    with open_output(path) as file:
        file.write(b"half")
        raise failure


@pytest.mark.parametrize(
    ("failure", "error"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), MDLSTMError)],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, failure: BaseException, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "folder" / "y.npy"
    if exists:
        path.parent.mkdir()
        path.write_bytes(b"old")
        path.chmod(0o640)
    with pytest.raises(error):
        write_half(path, failure)
    assert [each.name for each in path.parent.iterdir()] == ["y.npy"] * exists
    with open_output(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    if exists and os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o640


def test_what_exists_is_replaced_by_force_alone(tmp_path: Path) -> None:
    (tmp_path / "y").write_bytes(b"old")
    with pytest.raises(InputError, match="--force"), open_output(tmp_path / "y", force=False):
        pass
    check_free(tmp_path / "y", force=True)
    for force in (False, True):
        with pytest.raises(InputError, match="folder"):
            check_free(tmp_path, force)
    with pytest.raises(MDLSTMError, match="cannot write"), open_output(tmp_path / "y" / "z"):
        pass
    assert (tmp_path / "y").read_bytes() == b"old"
    (tmp_path / "link").symlink_to(tmp_path / "y")
    with open_output(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "y").read_bytes() == b"new"
