"""`mdlstm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli.console import next_command, note, print_json
from mdlstm_tk.cli.options import (
    OUTPUT,
    Json,
    OwnCell,
    OwnModel,
    complete_files,
    complete_run,
    named_files,
    parse_size_text,
)
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.text import shell_quoted


def sample(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Run folder of a task of kind density.",
            show_default="the latest run",
            autocompletion=complete_run,
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
    own_model: OwnModel = None,
    own_cell: OwnCell = None,
    json: Json = False,
) -> None:
    """Draw images with a trained density model, position by position, or complete an image.

    Equal seeds give equal images.
    """
    require("torch", "train")
    from mdlstm_tk.runtime.io.files import ensure_writable
    from mdlstm_tk.runtime.samples import check_output, read_given, write_samples
    from mdlstm_tk.sizes import parse_size
    from mdlstm_tk.training import latest_run, load_checkpoint, open_run, sample_run

    check_output(output)
    ensure_writable(output, force)
    code = named_files(own_model, own_cell)
    run = open_run(source, code) if source else latest_run(code)
    spec = load_checkpoint(run.checkpoint, code).spec
    extents = parse_size(size) if size else spec.size
    if len(extents) != 2:
        raise InputError(f"--size must be a height and a width, got {size}")
    part = read_given(given, extents, spec.channels) if given else None
    images = sample_run(run, count, extents, seed=seed, given=part, temperature=temperature)
    write_samples(output, images, None if part is None else part.mask)
    if json:
        print_json({"run": str(run.folder), "path": str(output), "images": count, "size": extents})
    else:
        note(f"{output}: {count} images of {extents[0]}x{extents[1]}, drawn with {run.folder}")
    next_command(f"mdlstm report {shell_quoted(run.folder)}")
