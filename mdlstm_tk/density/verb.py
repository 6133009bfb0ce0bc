"""`mdlstm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk._util.sizes import for_axes, format_size, parse_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.cli.console import next_command, note, print_json
from mdlstm_tk.cli.options import (
    Json,
    complete_files,
    complete_run,
    force_option,
    option,
    output_option,
    size_option,
)
from mdlstm_tk.cli.progress import next_of_run


def _parse_image_size(text: str) -> tuple[int, ...]:
    return for_axes(parse_size(text), 2)


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
    count: Annotated[int, option("Number of images.", None, "-n", "--count", min=1)] = 64,
    size: Annotated[
        Any,
        size_option(
            "Size of the images, as 28 or 28x20.", "that of the training images", _parse_image_size
        ),
    ] = None,
    given: Annotated[
        Path | None,
        option(
            "Image to complete: its upper rows, or a .npy file with NaN where it is to be drawn.",
            None,
            metavar="FILE",
            show_default=False,
            autocompletion=complete_files(".png", ".npy"),
        ),
    ] = None,
    temperature: Annotated[float, option("Below 1, likely values become likelier.", None, min=0)] = 1.0,
    seed: Annotated[int, option("Random seed of the images.", None, min=0)] = 0,
    output: Annotated[
        Path,
        output_option(
            "File for all images: .png, .npy for the numbers, or .gif for the order of drawing.",
            metavar="FILE",
        ),
    ] = Path("samples.png"),
    force: Annotated[bool, force_option("Replace the file.")] = False,
    json: Json = False,
) -> None:
    """Draw images with a trained density model, position by position, or complete an image.

    Equal seeds give equal images.
    """
    from mdlstm_tk.density import draw_samples
    from mdlstm_tk.training import open_run

    options: dict[str, Any] = {"seed": seed, "temperature": temperature, "force": force}
    source, shape = draw_samples(output, source, count, size, given=given, **options)
    extents = format_size(shape[1:3])
    if json:
        print_json({"source": str(source), "path": str(output), "images": count, "size": extents})
    else:
        note(f"{output}: {counted(count, 'image')} of {extents}, drawn with {source}")
    next_command(next_of_run(open_run(source), "export"))
