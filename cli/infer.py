"""`mdlstm infer`: run an exported model on files with NumPy and ONNX Runtime, never torch or onnx."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import InputError, MDLSTMError

RUN, LIMITS = "Execution", "Limits"
IN_CHILD = "MDLSTM_ISOLATED"  # environment variable with the process that --isolated has begun in
FILES = "npy, npz, csv, images, in tiles npy, zarr, tif; folders of them; or - for standard input."
MODEL = "Exported file, or a folder, for its newest.  (default: $MDLSTM_MODEL, or the newest export)"
OUTPUT = "File, folder, or - for stdout, as for answers.  (default: beside the inputs; answers: stdout)"
FORMAT = "tsv, csv, json for answers; npy, npz, png, csv, json for arrays; npy, tif, zarr in tiles."
THREADS = "CPU threads of one run, or of all tiles; 0: one per core."


def infer(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help=FILES)],
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL)] = None,
    output: Annotated[str | None, options.output(OUTPUT)] = None,
    output_format: Annotated[str | None, typer.Option("--format", help=FORMAT)] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Of a classifier, the K most likely classes.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Of classes, all probabilities.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="What the network returns, as arrays.")] = False,
    resize: Annotated[Any, options.resize_option()] = None,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave out inputs that have a newer result."),
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
    device: options.Device = "auto",
    threads: Annotated[int, typer.Option(min=0, help=THREADS, rich_help_panel=RUN)] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples, or tiles, of a run.", rich_help_panel=RUN)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of Ray, on $RAY_ADDRESS.", rich_help_panel=RUN)
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=1, help="Extent of a tile, of a tiled model.", rich_help_panel=RUN)
    ] = None,
    trusted: options.Trusted = False,
    isolated: Annotated[
        bool,
        typer.Option(
            "--isolated", help="Run in a process with limits, for files of others.", rich_help_panel=LIMITS
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds that it may take.  (default: 120)", rich_help_panel=LIMITS),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Memory that it may take.  (default: 4 GiB)", rich_help_panel=LIMITS),
    ] = None,
) -> None:
    """Run an exported model on arrays and images.

    Arrays have the shape (H, W), (H, W, C) or (N, H, W, C). The result of matrix.npy is matrix.out.npy,
    beside it. Answers, such as labels, are printed, or written to one table with -o labels.csv. A file that
    cannot be used is reported, the others go on, and the exit code is 1.
    """
    is_child = os.environ.get(IN_CHILD) == str(os.getppid())
    if isolated and not is_child:
        from mdlstm_tk.runtime.limits import run_limited

        if device.startswith("cuda"):
            raise InputError("--isolated runs on the CPU; leave out --device")
        os.environ[IN_CHILD] = str(os.getpid())
        raise typer.Exit(run_limited(console.words, timeout or 120, max_bytes or 2**32))
    device = "cpu" if is_child else device
    if (timeout or max_bytes) and not isolated:
        raise InputError("--timeout and --max-bytes are limits of --isolated; add it, or leave them out")
    from mdlstm_tk.runtime.infer import infer_paths

    of_kind = {"top": top, "probabilities": probabilities or None}
    with ExitStack() as stack:
        bar: Any = None

        def report(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(console.progress(total, unit="tiles"))
            bar(done, "")

        run = infer_paths(
            files,
            model,
            output,
            output_format=output_format,
            raw=raw,
            resize=resize,
            device=device,
            threads=threads,
            batch_size=batch_size,
            workers=workers,
            trusted=trusted,
            skip_existing=skip_existing,
            force=force,
            tile=tile,
            report=report if len(files) == 1 else None,
            **{name: value for name, value in of_kind.items() if value is not None},
        )
        if json and run.table == "-":
            run.table = None  # the rows are in the JSON
        elif json and "-" in [job.target for job in run.jobs]:
            raise InputError("--json prints on stdout, where the arrays would go; name a file with -o")
        console.note(f"{run.model} on {run.session.device}")
        if run.session.reason:
            console.note(f"not on CUDA: {run.session.reason}")
        print_results(run, len(run.jobs), json, {"model": str(run.model), "device": run.session.device})
    if run.skipped:
        console.note(f"skipped, as the result exists: {run.skipped}")


def print_results(results: Any, total: int, json: bool, facts: dict[str, Any]) -> None:
    """Follow an inference: a line for each failure, and for the result of a single file.

    Args:
        results: yields a `Result` for each file.
        total: number of files.
        json: print the facts, and what came of each file, on stdout.
        facts: of the inference.

    Raises:
        MDLSTMError: the only file failed, or one of several.
    """
    records, start = list[dict[str, Any]](), time.perf_counter()
    failures: list[MDLSTMError] = []
    try:
        with ExitStack() as stack:
            show = stack.enter_context(console.progress(total, unit="files")) if total > 1 else None
            for done, result in enumerate(results, 1):
                job = result.job
                answers = {"answers": result.rows} if result.rows else {"shapes": result.shapes}
                record = {"error": str(result.error)} if result.error else {"target": job.target, **answers}
                records.append({"source": job.source, **record})
                if result.error:
                    failures.append(result.error)
                    if total > 1:
                        console.note(f"failed: {result.error}", least=0)
                elif job.target != "-":
                    shapes = ", ".join("x".join(map(str, shape)) for shape in result.shapes)
                    console.note(f"{job.source} → {job.target} {shapes}", 1 if total == 1 else 2)
                if show:
                    show(done, f"{done / (time.perf_counter() - start):.3g} files/s")
    finally:
        if json:
            console.print_json({**facts, "files": records})
    if failures and total == 1:
        raise failures[0]
    if total != 1:
        console.note(f"{total - len(failures)} done, {len(failures)} failed")
    if failures:
        raise MDLSTMError(f"{len(failures)} of {total} files failed; see the lines above")
