"""`export_run`: export the network of a finished training run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from mdlstm_tk._util.sizes import for_axes, format_size
from mdlstm_tk._util.text import counted, printable
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.inputs import ExampleRange
from mdlstm_tk.export.onnx import ExportReport, export_onnx
from mdlstm_tk.io import TILED_SUFFIX
from mdlstm_tk.io.files import suffix_of
from mdlstm_tk.io.metadata import Dtype, Form, FreeExtents, Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.session import read_metadata
from mdlstm_tk.training import Run, load_checkpoint, open_run

CHECKPOINTS = ("best.safetensors", "last.safetensors")  # of a run


def export_run(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    grid: FreeExtents | None = None,
    force: bool = False,
    form: Form | None = None,
    padded: bool = False,
    multiple_of: int | Sequence[int] | None = None,
    dtype: Dtype = "float32",
    atol: float | None = None,
) -> ExportReport:
    """Export a run's checkpoint to ONNX, verified before the file is written.

    The best checkpoint is exported, or the last one if training ended before there was a best one, unless
    a checkpoint is named. The file is verified on random inputs of the mean and deviation that the training
    data have. Its metadata name the model, the task, the classes and the checkpoint's SHA-256.

    >>> export_run("runs/diagonal", grid=(32, 32)).path
    PosixPath('runs/diagonal/model-32x32.onnx')

    Args:
        run: a run, its folder, or one of its checkpoint files.
        path: a file name that ends in `.onnx`, or a folder for model-HxW.onnx or model-any.onnx; the
            run's folder if None. With form "tiles", a file name that ends in `.tiles`, or a folder for
            model.tiles. The folder must exist.
        grid: extents to export for, one for all axes or one for each, None among them where they are free.
            None: the run's own grid, or any grid if form is "scan" or "tiles"; what `resize` of the run
            leaves free, as the width in 64x*, is free then. Any grid, too, if the run's samples differ in
            size or are cropped.
        force: replace an existing file.
        form, padded, multiple_of, dtype, atol: as for `export_onnx`; form "tiles" takes atol alone.

    Returns:
        The report of the export.

    Raises:
        InputError: there is no such run, folder or form, no sample of the run fits the grid, its network is
            not registered, or the file exists and `force` is false.
        MDLSTMError: the network cannot be exported, or the file cannot be written.
        ParityError: ONNX Runtime disagrees with the network. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    run, checkpoint_path = find_checkpoint(run)
    sha256 = checksum(checkpoint_path) if checkpoint_path.is_file() else ""
    checkpoint = load_checkpoint(checkpoint_path)  # after its checksum, as training may replace the file
    spec = checkpoint.spec
    if path is not None and Path(path).suffix == TILED_SUFFIX:
        form = form or "tiles"
    grid = None if grid is None else for_axes(tuple(grid), len(spec.size))
    resize = spec.preprocessing.resize if spec.preprocessing else None
    if grid is not None and len(grid) != len(spec.size):
        raise InputError(
            f"the samples of the run have {counted(len(spec.size), 'axis', 'axes')}, as "
            f"{format_size(spec.size)}, got the grid {format_size(grid)}"
        )
    if resize and None in resize and form != "tiles":  # all images have one height, and any width
        grid = grid or resize
    if form is None:  # a file for one size would refuse other samples of mixed sizes
        form = "scan" if None in (grid or ()) or (spec.mixed_sizes and not grid) else "unrolled"
    if form == "unrolled":
        grid = grid or spec.size
    known = {each.name for each in fields(Metadata)}
    metadata = {
        "model": printable(checkpoint.config.model),
        "task": printable(spec.name),
        "user_data": bool(checkpoint.config.data),
        "kind": spec.kind,
        "classes": spec.classes or None,
        **{name: value or None for name, value in spec.decoding.items() if name in known},
        "more": {name: value for name, value in spec.decoding.items() if name not in known},
        "preprocessing": spec.preprocessing and asdict(spec.preprocessing),
        "x_range": spec.x_range or kind_named(spec.kind).x_range,
        "unit_range": _is_unit_range(spec),
        "checkpoint_sha256": sha256,
    }
    file = _path(run, grid, None if path is None else Path(path), form)
    return export_onnx(
        checkpoint.network(),
        file,
        grid=grid,
        form=form,
        padded=padded,
        multiple_of=multiple_of,
        dtype=dtype,
        channels=spec.channels,
        channels_last=True,
        example_range=_values_of(spec),
        metadata=metadata,
        atol=atol,
        replace=force,
    )


def _values_of(spec: TaskSpec) -> ExampleRange | None:
    """Random x as the data of training: of their mean and deviation, or in the range of the kind; None if
    neither is known."""
    if not spec.mean:
        return kind_named(spec.kind).x_range

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x * torch.tensor(spec.std) + torch.tensor(spec.mean)

    return draw


def _is_unit_range(spec: TaskSpec) -> bool:
    """False if mean or deviation of x, where they are known, say that it lies outside of [0, 1]. Numbers
    from there deviate by one half at most."""
    moments = zip(spec.mean, spec.std, strict=True)
    return all(-0.1 <= mean <= 1.1 and std <= 0.6 for mean, std in moments)


def find_checkpoint(run: Run | str | Path) -> tuple[Run, Path]:
    """A run, and the checkpoint that is meant by it.

    Args:
        run: a run or its folder, which stand for its best checkpoint, or a `.safetensors` file.

    Raises:
        InputError: there is no such run or file.
    """
    if not isinstance(run, Run):
        path = Path(run)
        if path.suffix == ".safetensors":
            return Run(path.parent), path
        run = open_run(path)
    return run, run.checkpoint


def checksum(path: Path) -> str:
    """The SHA-256 of a file; it takes some 0.5 ms for each MiB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_of(model: Path, metadata: Metadata) -> Path | None:
    """The checkpoint of the run in a model's folder that it was exported from; None if there is none."""
    for path in (model.parent / name for name in CHECKPOINTS):
        if path.is_file() and checksum(path) == metadata.checkpoint_sha256:
            return path
    return None


def note_if_stale(model: Path) -> str:
    """One line if the run in whose folder a model lies has gone on since the export; else "", also where
    there is no run, or no model that can be read."""
    with suppress(InputError, OSError):
        metadata, is_run = read_metadata(model), any((model.parent / n).is_file() for n in CHECKPOINTS)
        if is_run and metadata.checkpoint_sha256 is not None and not checkpoint_of(model, metadata):
            return f"the run has gone on since {model} was exported; export it again with --force"
    return ""


def _path(run: Run, grid: FreeExtents | None, output: Path | None, form: Form) -> Path:
    """The file of an export, whose name tells its size if `output` is a folder."""
    suffix = TILED_SUFFIX if form == "tiles" else ".onnx"
    if output is not None and suffix_of(output) in (".onnx", TILED_SUFFIX) and not output.is_dir():
        return output
    if output is not None and output.is_file():
        raise InputError(f"{output} is a file; give a folder, or a file name that ends in {suffix}")
    name = "model" if form == "tiles" else f"model-{_size_label(grid, form)}"
    return (run.folder if output is None else output) / f"{name}{suffix}"


def _size_label(grid: FreeExtents | None, form: Form) -> str:
    """The part of a file's name that tells the size, such as "8x12", "48xany" or "any"."""
    if grid is None or set(grid) == {None} or (form == "scan" and None not in grid):
        return "any"
    return format_size(grid).replace("*", "any")
