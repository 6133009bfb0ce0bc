"""`mdlstm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.sizes import format_size, parse_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import next_command, note, print_json
from mdlstm_tk.cli.options import (
    OUTPUT,
    Json,
    complete_files,
    complete_model_or_run,
    parse_size_text,
    with_imports,
)
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.samples import Given


def sample(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|MODEL]",
            help="Run folder of a task of kind density, or a file that mdlstm export --drawing wrote.",
            show_default="the latest run",
            autocompletion=complete_model_or_run,
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of images.")] = 64,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size_text,
            help="Size of the images, as 28 or 28x20.",
            show_default="that of the training images",
        ),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Image to complete: its upper rows, or a .npy file with NaN where it is to be drawn.",
            show_default="nothing is given",
            autocompletion=complete_files(".png", ".npy"),
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1, likely values become likelier.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the images.")] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File for all images: .png, .npy for the numbers, or .gif for the order of drawing.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("samples.png"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Draw images with a trained density model, position by position, or complete an image.

    Equal seeds give equal images. A model that mdlstm export --drawing wrote needs no PyTorch.
    """
    from mdlstm_tk.report.contact_sheet import check_output, write_samples
    from mdlstm_tk.runtime.io.files import ensure_writable

    check_output(output)
    ensure_writable(output, force)
    extents = parse_size(size) if size else None
    if extents and len(extents) != 2:
        raise InputError(f"--size must be a height and a width, got {size}")
    options = {"seed": seed, "temperature": temperature}
    if source is not None and source.suffix == ".onnx":
        images, part = _draw_with_model(source, count, extents, given, options)
    else:
        source, images, part = _draw_with_run(source, count, extents, given, options)
    write_samples(output, images, None if part is None else part.mask)
    size = format_size(images.shape[1:3])
    if json:
        print_json({"source": str(source), "path": str(output), "images": count, "size": size})
    else:
        note(f"{output}: {count} images of {size}, drawn with {source}")
    if source.is_dir():
        next_command(with_imports(f"mdlstm export {shell_quoted(source)} --drawing"))


def _draw_with_model(
    path: Path, count: int, size: Any, given: Path | None, options: dict[str, Any]
) -> tuple[Array, Given | None]:
    from mdlstm_tk.runtime import Session
    from mdlstm_tk.runtime.model_discovery import run_of
    from mdlstm_tk.runtime.samples import drawn_size, read_given

    with Session(path, "cpu") as session:
        size = size or drawn_size(session.metadata, str(path), run_of(path))
        part = read_given(given, size, session.metadata.channels) if given else None
        return session.sample(count, size, given=part, **options), part


def _draw_with_run(
    folder: Path | None,
    count: int,
    size: Any,
    given: Path | None,
    options: dict[str, Any],
) -> tuple[Path, Array, Given | None]:
    require("torch", "train")
    from mdlstm_tk.runtime.samples import read_given
    from mdlstm_tk.training import latest_run, load_checkpoint, open_run, sample_run

    run = open_run(folder) if folder else latest_run()
    spec = load_checkpoint(run.checkpoint).spec
    extents: Any = size or spec.size
    part = read_given(given, extents, spec.channels) if given else None
    return run.folder, sample_run(run, count, size, given=part, **options), part
