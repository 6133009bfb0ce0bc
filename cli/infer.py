"""`mdlstm infer`: NumPy and ONNX Runtime; torch and onnx are never imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdlstm_tk.cli.console import err, next_command, note
from mdlstm_tk.cli.find import find_model
from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Session

STDIO = "-"


def infer(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Arrays as .npy; - for stdin.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="An exported .onnx, or a folder of them.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File, folder for several files, or - for stdout.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: ONNX Runtime's choice.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run an exported model on arrays of shape (H, W), (H, W, C) or (N, H, W, C).

    matrix.npy gives matrix.out.npy beside it, - gives the result on stdout. The model is -m, or
    $MDLSTM_MODEL, or the latest run's export, or the only .onnx in this folder.
    """
    from mdlstm_tk.runtime import Session, load_array, save_array
    from mdlstm_tk.runtime.files import check_free

    targets = _targets(files, output)
    for target in targets:
        if target != STDIO:
            check_free(Path(target), force)
    session: Session | None = None
    for source, target in zip(files, targets, strict=True):
        x = load_array(source)
        if session is None:
            path = find_model(model, x.shape[:2] if x.ndim < 4 else x.shape[1:3])
            session = Session(path, device, threads=threads)
            if not quiet:
                note(f"{path} on {session.device} ({session.provider})")
        try:
            y = session(x)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        save_array(target, y)
        if quiet:
            continue
        if target != STDIO:
            note(f"{source} {x.shape} → {target} {y.shape}")
        if err().is_terminal and x.ndim == y.ndim == 2:
            from mdlstm_tk.cli.show import show_grids

            show_grids(err(), {"input": x, "prediction": y})
    if not quiet and output != STDIO and targets[-1] != STDIO:
        next_command(f"python -c \"import numpy; print(numpy.load('{targets[-1]}').round(2))\"")


def _targets(files: list[str], output: str | None) -> list[str]:
    """Where each file's result goes."""
    if len(files) > 1 and files.count(STDIO):
        raise InputError("- (stdin) cannot be mixed with other files")
    if output == STDIO or (output is None and files == [STDIO]):
        if len(files) > 1:
            raise InputError(f"-o - takes one file, got {len(files)}; give a folder")
        return [STDIO]
    if output is None:
        return [str(Path(name).with_suffix("")) + ".out.npy" for name in files]
    if len(files) == 1 and not Path(output).is_dir():
        return [output]
    if Path(output).is_file():
        raise InputError(f"-o {output} is a file, for {len(files)} inputs; give a folder")
    names = [f"{Path(name).stem}.out.npy" if name != STDIO else "stdin.out.npy" for name in files]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"several inputs would be written to {Path(output) / sorted(twice)[0]}")
    return [str(Path(output) / name) for name in names]
