"""`mdlstm_tk.runtime.io.npy`: nothing is unpickled, and nothing large is allocated on a header's word."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import load_array, save_array
from mdlstm_tk.runtime.io.npy import read_capped, read_npy, to_float32
from mdlstm_tk.runtime.io.readers import read_npz


def npy(shape: str, dtype: str = "<f4", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A `.npy` file with any header."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


class Endless(io.RawIOBase):
    """A stream that starts with the given bytes and never ends."""

    def __init__(self, start: bytes) -> None:
        self.start, self.bytes_read = start, 0

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size < 2**20, "reads without a bound"
        self.bytes_read += size
        data, self.start = self.start[:size], self.start[size:]
        return data + b"\0" * (size - len(data))


ARRAYS = {
    "terabytes": (npy("(1000000, 1000000)"), "1000000 bytes"),
    "small items that grow as float32": (npy("(400000,)", "|b1", b"\0" * 400000), "1000000 bytes"),
    "negative extent": (npy("(-1,)", data=b"\0" * 4096), "complete"),
    "extents that are not integers": (npy("(True, 2.5)"), "complete"),
    "pickle": (npy("(1,)", "|O", b"cos\nsystem\n(S'true'\ntR."), "Python objects"),
    "strings": (npy("(1,)", "<U9", b"\0" * 36), "real numbers"),
    "long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 100, "complete"),
    "deep header": (npy("(" * 3000 + ")" * 3000), "complete"),
    "unknown version": (npy("(1,)", data=b"\0" * 4, version=b"\x07\x00"), "complete"),
    "more dimensions than NumPy has": (npy(f"({'1, ' * 100})", data=b"\0" * 4), "complete"),
    "an extent beyond int64 beside a zero": (npy(f"(0, {2**70})"), "complete"),
    "cut off": (npy("(9, 9)", data=b"\0" * 100), "complete"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_are_refused_before_they_are_allocated(case: str, tmp_path: Path) -> None:
    data, message = ARRAYS[case]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_array(path, max_bytes=10**6)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.npy", data)
    with pytest.raises(InputError, match=message):
        read_npz(archive, "x.npz", 10**6)


def test_an_endless_stream_is_read_no_further_than_it_declares() -> None:
    stream = Endless(npy("(3, 5)"))
    np.testing.assert_array_equal(read_npy(stream, "stdin"), np.zeros((3, 5), np.float32))
    assert stream.bytes_read < 1000
    with pytest.raises(InputError, match="1000 bytes"):
        read_capped(Endless(b""), "stdin", 1000)


def test_a_limit_beyond_the_memory_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab")
    with open(tmp_path / "a", "rb") as file:
        assert read_capped(file, "a", 2**60) == b"ab"
    with pytest.raises(InputError, match="larger than 1 bytes"):
        read_capped(io.BytesIO(b"ab"), "a", 1)
    assert read_capped(io.BytesIO(b"ab"), "a", 2) == b"ab"


@pytest.mark.parametrize("dtype", [">f8", "<f4", "<f2", "|u1", "<i8", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_they_are_stored(dtype: str, order: str) -> None:
    a = np.asarray(np.random.default_rng(0).integers(0, 2, (2, 3, 5)), dtype, order=order)
    file = io.BytesIO()
    np.save(file, a)
    file.seek(0)
    np.testing.assert_array_equal(read_npy(file, "a"), a, strict=True)
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, first=a, second=a[0])
        arrays, _ = read_npz(file, "a.npz")
        assert list(arrays) == ["first", "second"]
        np.testing.assert_array_equal(arrays["first"], a, strict=True)
        np.testing.assert_array_equal(arrays["second"], a[0], strict=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, np.nan, np.inf], "holds 2 NaN or infinite"),
        ([1.0, 5e41], r"up to 5e\+41, which float32 cannot hold"),
        ([], "is empty"),
        (["a"], "expected real numbers"),
    ],
)
def test_what_float32_cannot_hold_is_told(values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=f"^y .*{message}"):
        to_float32(np.array(values), "y")


def test_arrays_are_written_as_numpy_writes_them(tmp_path: Path) -> None:
    for array in (np.arange(6.0).reshape(2, 3).T, np.float32(3), np.zeros((0, 2), np.int8)):
        save_array(tmp_path / "a.npy", array)
        np.save(tmp_path / "b.npy", np.asarray(array, order="C"))
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def zeros_archive(compression: int = zipfile.ZIP_DEFLATED, members: int = 1) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for k in range(members):
            archive.writestr(f"{k}.npy", npy("(1000, 1000)", data=bytes(4_000_000)))
    return bytearray(file.getvalue())


def test_zip_bombs_are_refused() -> None:
    bomb = zeros_archive()
    assert len(bomb) < 20_000
    with pytest.raises(InputError, match="3000000 bytes"):
        read_npz(io.BytesIO(bomb), "bomb", 3_000_000)
    with pytest.raises(InputError, match="6000000 bytes"):
        read_npz(io.BytesIO(zeros_archive(members=2)), "bomb", 6_000_000)
    with pytest.raises(InputError, match="compression"):
        read_npz(io.BytesIO(zeros_archive(zipfile.ZIP_BZIP2)), "bomb")
    # The directory declares a size that is smaller than what the member unpacks to.
    directory = bomb.rindex(b"PK\x01\x02")
    bomb[directory + 24 : directory + 28] = struct.pack("<I", 1000)
    with pytest.raises(InputError, match=r"complete|damaged"):
        read_npz(io.BytesIO(bomb), "bomb", 3_000_000)
    file = io.BytesIO()  # members of bool take a quarter of the memory that they do as float32
    np.savez_compressed(file, **{f"a{k}": np.zeros(100_000, bool) for k in range(10)})
    assert len(read_npz(file, "a.npz", 4_000_000)[0]) == 10
    with pytest.raises(InputError, match=r"3900000 bytes.*as float32"):
        read_npz(file, "a.npz", 3_900_000)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_npz(file, "a.npz", 100)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy("(1,)", data=bytes(4)))
        archive.writestr("a", npy("(1,)", data=bytes(4)))
    with pytest.raises(InputError, match="two arrays with the name 'a'"):
        read_npz(file, "x.npz")


@pytest.mark.parametrize("where", range(0, 400, 7))
def test_damaged_archives_end_in_an_error_or_the_same_numbers(where: int) -> None:
    file = io.BytesIO()
    a = np.random.default_rng(0).random((5, 8), dtype=np.float32)
    np.savez_compressed(file, a=a)
    data = bytearray(file.getvalue())
    data[where % len(data)] ^= 0x41
    try:
        for array in read_npz(io.BytesIO(data), "x")[0].values():
            np.testing.assert_array_equal(array, a)
    except InputError:
        pass
