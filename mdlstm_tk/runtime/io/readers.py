"""Read the files that `mdlstm infer` takes: `.npy`, `.npz`, `.csv` and images.

The type of a file follows from its suffix, or from its content if it has none. Arrays stay as they are
stored; a session converts and checks them. `InputFile.arrays_for` prepares images, and takes the samples
from files to train on.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import all_documents, kind_named
from mdlstm_tk.runtime.io import READABLE, suffix_of
from mdlstm_tk.runtime.io.npy import (
    FLOAT_BYTES,
    MAX_BYTES,
    MORE_BYTES,
    STDIO,
    Array,
    byte_limit,
    label_of,
    open_input,
    read_capped,
    read_npy,
)
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.shapes import Shapes

if TYPE_CHECKING:
    from mdlstm_tk.runtime.preprocessing import Preprocessing

MAGIC = {  # how the content of a file begins; none of these begins a table of numbers
    ".npy": (np.lib.format.MAGIC_PREFIX,),
    ".npz": (b"PK",),
    "image": (
        *(b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"RIFF"),
        *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    ),
    "idx": (b"\0\0\x08",),
}
IS_IDX = (
    "{} is an IDX file, the format of MNIST, which no model reads; to run one on its images, save them as "
    ".npy, divided by 255"
)
MAGIC_BYTES = max(len(start) for starts in MAGIC.values() for start in starts)
TRAINING_ARRAYS = {"x", "y", "names", "sizes", "ndim"}  # in a file to train on, see `mdlstm_tk.data.arrays`
OF_TARGETS = ("y", "names")  # those which no model takes, unless its inputs have these names

Arrays: TypeAlias = dict[str | None, Array]
"""The arrays of one file in order: by name for a `.npz`, else a single one under None."""


@dataclass(frozen=True)
class InputFile:
    """The content of a file.

    Attributes:
        label: what error messages call the file.
        arrays: its arrays of real numbers, or the pixels of an image as `decode_image` returns them.
        is_image: True if the file is an image.
        left_out: names of arrays that hold no numbers: the y of a file to train on.
        document: the bytes of a document on standard input, which has no arrays; else None.
        suffix: that of such documents.
    """

    label: str
    arrays: Arrays
    is_image: bool = False
    left_out: tuple[str, ...] = ()
    document: bytes | None = None
    suffix: str = ""

    def holds_inputs(self, metadata: Metadata) -> bool:
        """True if the arrays are several inputs of the model, by their names."""
        return self._names_inputs(metadata) and not self.is_to_train_on(metadata)

    def _names_inputs(self, metadata: Metadata) -> bool:
        names = set(self.arrays)
        return len(names) > 1 and metadata.required_inputs <= names <= set(metadata.inputs)

    def is_to_train_on(self, metadata: Metadata) -> bool:
        """True if the arrays are those of a file to train on, rather than inputs of the model."""
        if "x" not in self.arrays or not TRAINING_ARRAYS.issuperset(self.arrays):
            return False
        x, sizes = self.arrays["x"], self.arrays.get("sizes")
        lacks_channels = (
            sizes is not None and x.ndim == metadata.ndim + 1 and sizes.shape[:1] == x.shape[:1]
        )
        answers_positions = bool(kind_named(metadata.kind).answers) and metadata.window is not None
        is_cropped = sizes is not None and answers_positions  # there are none for padding
        return not self._names_inputs(metadata) or (
            (lacks_channels or is_cropped) and "y" not in self.arrays
        )

    def arrays_for(self, metadata: Metadata) -> Arrays:
        """The arrays as a model takes them."""
        arrays = _samples(self, metadata) if self.is_to_train_on(metadata) else self.arrays
        kind = kind_named(metadata.kind)
        if takes_pixels(metadata):
            for x in (x for name, x in arrays.items() if name != "sizes"):
                if warning := raw_pixels(self.label, x, self.is_image):
                    warnings.warn(warning, stacklevel=2)
                    break
        if self.is_image:
            preprocessing = preprocessing_for(metadata, self.label)
            check_scaled(metadata, arrays[None].dtype, self.label)
            try:
                x = preprocessing(arrays[None])
            except InputError as error:
                raise InputError(f"{self.label}: ", error) from None
            if preprocessing.channels == 1:
                x = x[..., 0]
            arrays = {None: x if metadata.channels_last or x.ndim == 2 else np.moveaxis(x, -1, 0)}
        for x in (x for name, x in arrays.items() if name != "sizes"):
            if wrong := kind.outside_range(x):
                raise InputError(f"{self.label} has {wrong}")
        return arrays


@checked
def load_image(source: str | Path, metadata: Metadata, max_bytes: int = MAX_BYTES) -> Array:
    """Read an image as the array that a model takes.

        >>> x = load_image("photo.jpg", session.metadata)

    Args:
        source: path of the file, or "-" for standard input.
        metadata: of the model. If they do not say how images are prepared, the image is converted to the
            channels of the model, with values from 0 to 1 if it has 8 or 16 bits.
        max_bytes: maximum size in bytes of the file, and of the pixels as in `decode_image`.

    Returns:
        float32 of shape (H, W) if the model takes one channel, else (H, W, 3), or (3, H, W) if the model is
        channels-first.

    Raises:
        InputError: the file does not exist, is not an image, is damaged or too large, or the model does not
            take images.
        MissingExtraError: Pillow is not installed.
    """
    label = label_of(source)
    with open_input(source) as file:
        image = _read_image(file, label, byte_limit(max_bytes))
    return image.arrays_for(metadata)[None]


def read_input(source: str, max_bytes: int = MAX_BYTES) -> InputFile:
    """Read a file.

    Args:
        source: path of the file; "-" is standard input.
        max_bytes: maximum size in bytes of the file, and of the arrays in it.

    Raises:
        InputError: the file does not exist, has an unsupported type, is damaged or too large, or holds
            other than real numbers.
        MissingExtraError: the file is an image, and Pillow is not installed.
    """
    label, suffix = label_of(source), "" if source == STDIO else suffix_of(source)
    if suffix and suffix not in READABLE:
        if "-ubyte" in Path(source).name:
            raise InputError(IS_IDX.format(label))
        hint = "; tiled models read zarr" if suffix == ".zarr" else ""
        raise InputError(
            f"unsupported file type '{suffix}' of {source}; expected one of {', '.join(READABLE)}{hint}"
        )
    with open_input(source) as file:
        if not suffix:
            start = file.read(MAGIC_BYTES)
            file = cast("IO[bytes]", _Rest(start, file))
            suffix = next((kind for kind, starts in MAGIC.items() if start.startswith(starts)), ".csv")
            if documents := next((each for each in all_documents() if start.startswith(each.starts)), None):
                if source != STDIO:
                    raise InputError(
                        f"{source} may be a {documents.name}; if it is, give its name the suffix "
                        f"{documents.suffix}"
                    )
                data = read_capped(file, label, max_bytes)
                return InputFile(label, {}, document=data, suffix=documents.suffix)
        if suffix == "idx":
            raise InputError(IS_IDX.format(label))
        if suffix == ".npy":
            return InputFile(label, {None: read_npy(file, label, max_bytes)})
        if suffix == ".npz":  # is read from its end, which a pipe cannot seek
            seekable = file if file.seekable() else io.BytesIO(read_capped(file, label, max_bytes))
            arrays, left_out = read_npz(seekable, label, max_bytes)
            if not arrays:
                raise InputError(f"{label} holds no array")
            return InputFile(label, arrays, left_out=left_out)
        if suffix == ".csv":  # a number takes at least two bytes as text, and eight once it is parsed
            return InputFile(label, {None: _read_csv(read_capped(file, label, max_bytes // 4), label)})
        return _read_image(file, label, max_bytes)


def _read_image(file: IO[bytes], label: str, max_bytes: int) -> InputFile:
    from mdlstm_tk.runtime.preprocessing import decode_image  # imported late: most files are arrays

    pixels = decode_image(read_capped(file, label, max_bytes), label, max_bytes)
    return InputFile(label, {None: pixels}, is_image=True)


def raw_pixels(label: str, x: Array, is_image: bool = False) -> str:
    """The warning for whole numbers beyond 1 that a model of images is given; "" for other arrays, and for
    images of integers, which are scaled."""
    is_integer = x.dtype.kind in "ui"
    if is_integer and is_image:
        return ""
    if not 1 < x.max(initial=0) < np.inf or not (is_integer or (x == np.rint(x)).all()):
        return ""
    return (
        f"{label} holds whole numbers beyond 1, which are used as they are, but the model was trained on "
        "images, whose 8 or 16 bits are scaled to [0, 1]; divide by 255 or 65535"
    )


def takes_pixels(metadata: Metadata) -> bool:
    """True if a model was trained on images in [0, 1], and takes other numbers, too."""
    is_of_images = metadata.preprocessing is not None and metadata.unit_range
    return is_of_images and kind_named(metadata.kind).x_range is None


def check_scaled(metadata: Metadata, dtype: np.dtype[Any], label: str) -> None:
    """Refuse an image whose bits are scaled to [0, 1], for a model of other numbers."""
    if dtype.kind != "f" and not metadata.unit_range:
        raise InputError(
            f"{label} is an image whose values are scaled to [0, 1], but the model was trained on others; "
            "give a .npy file, or a TIFF of floats"
        )


def preprocessing_for(metadata: Metadata, label: str) -> Preprocessing:
    """How images are prepared for a model; see `load_image`."""
    from mdlstm_tk.runtime.preprocessing import Preprocessing

    if metadata.ndim != 2:
        raise InputError(
            f"{label} is an image, but the model takes grids of "
            f"{counted(metadata.ndim, 'axis', 'axes')}; give a .npy file"
        )
    if metadata.preprocessing is not None:
        return Preprocessing.from_json(metadata.preprocessing)
    if metadata.channels not in (1, 3):
        raise InputError(
            f"{label} is an image and gives 1 or 3 channels, but the model takes {metadata.channels}; "
            "give a .npy file"
        )
    return Preprocessing(metadata.channels)


def read_npz(file: IO[bytes], label: str, max_bytes: int = MAX_BYTES) -> tuple[Arrays, tuple[str, ...]]:
    """Read the arrays in an open, seekable `.npz` file. Returns them by their names, and the name of a y
    that is left out, as it holds no real numbers in a file to train on."""
    import zipfile  # imported late: it is slow to import, and most files are .npy

    if file.seek(0, io.SEEK_END) > max_bytes:
        raise InputError(f"{label} is larger than {max_bytes} bytes", MORE_BYTES)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InputError(f"{label} is not a complete .npz archive; write it with numpy.savez") from None
    arrays: Arrays = {}
    left_out: tuple[str, ...] = ()
    with archive:
        names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
        is_to_train_on = {"x", "y"} <= set(names) <= TRAINING_ARRAYS
        size = sum(member.file_size for member in archive.infolist())  # zipfile reads no more of them
        for name, member in zip(names, archive.infolist(), strict=True):
            if name in arrays:
                raise InputError(f"{label} holds two arrays with the name '{name}'; rename one of them")
            if size <= max_bytes:
                try:
                    arrays[name] = _read_member(archive, member, f"'{name}' in {label}", label, max_bytes)
                except InputError:
                    if not is_to_train_on or name not in OF_TARGETS:
                        raise
                    left_out = (*left_out, name)
            values = sum(array.size for array_name, array in arrays.items() if array_name not in OF_TARGETS)
            if max(size, FLOAT_BYTES * values) > max_bytes:
                raise InputError(
                    f"{label} unpacks to more than {max_bytes} bytes, as stored or as float32",
                    MORE_BYTES,
                )
    return arrays, left_out


def _read_member(archive: Any, member: Any, name: str, label: str, max_bytes: int) -> Array:
    if member.compress_type not in (0, 8):  # stored or deflated
        raise InputError(f"{label} uses a compression that numpy.savez does not; save it with numpy.savez")
    try:
        with archive.open(member) as packed:
            array = read_npy(packed, name, max_bytes)
            packed.read(1)  # at the end of a member zipfile verifies its checksum
            return array
    except InputError:
        raise
    except Exception:  # zipfile and zlib raise all kinds of exceptions for damaged members
        raise InputError(f"{name} is damaged or encrypted") from None


def _samples(file: InputFile, metadata: Metadata) -> Arrays:
    """The samples in a file to train on: x (N, *grid) or (N, *grid, C), perhaps with their sizes (N, D),
    and with ndim, which is D. An x alone may also be one sample.

    Returns:
        x with all axes; with sizes, each sample by itself, cropped to its extents.
    """
    arrays, label, ndim = file.arrays, file.label, metadata.ndim
    x, sizes = arrays["x"], arrays.get("sizes")
    if "ndim" in arrays and arrays["ndim"].tolist() != ndim:
        axes = arrays["ndim"].tolist()
        raise InputError(f"ndim in {label} is {axes!s:.40}, but that of the model is {ndim}")
    if x.ndim == ndim + 1:
        is_channel = metadata.channels == x.shape[-1 if metadata.channels_last else 0]
        is_plain = (
            metadata.channels > 1 or is_channel or not metadata.channel_axis
        )  # a session knows its axes
        if len(arrays) > 1 or file.left_out or not is_plain:
            x = np.expand_dims(x, -1 if metadata.channels_last else 1)
    if not x.size:
        raise InputError(f"{label} holds no sample")
    if sizes is None:
        return {"x": x}
    shapes = Shapes(metadata)
    grid = shapes.grid(x)
    fits = x.ndim == ndim + 2 and sizes.shape == (len(x), ndim) and sizes.dtype.kind in "iu"
    if not fits or not ((sizes >= 1) & (sizes <= grid)).all():
        raise InputError(
            f"the sizes in {label}, {sizes.dtype} of shape {sizes.shape}, do not fit x of shape {x.shape}; "
            f"expected whole numbers (N, {ndim}) from 1 to {grid}"
        )
    return {f"x[{k}]": x[k][shapes.region(extents)] for k, extents in enumerate(sizes)}


class _Rest:
    """The stream of a file whose first bytes were read; a pipe gives them in pieces, and cannot go back."""

    def __init__(self, start: bytes, file: IO[bytes]) -> None:
        self._start, self._file = start, file

    def read(self, size: int) -> bytes:
        start, self._start = self._start[:size], self._start[size:]
        return start + self._file.read(size - len(start))

    def seekable(self) -> bool:
        return False


def _read_csv(data: bytes, label: str) -> Array:
    text = data.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise InputError(f"{label} is empty")
    rows = re.split("\r\n|\r|\n", text.rstrip())
    if "" in rows:  # which NumPy leaves out
        raise InputError(f"{label} has no numbers in row {rows.index('') + 1}; write them, or remove it")
    try:
        return np.loadtxt(io.StringIO(text), delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        reason = str(error).split("; use")[0].rstrip(".")[:200]
        raise InputError(
            f"{label} is not a table of comma-separated numbers without a heading: {reason}"
        ) from None
