"""Files and rows through tiled models: what `mdlstm infer` does where the model is a `.tiles`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.answers import ResultOptions
from mdlstm_tk.runtime.batching import Outcome
from mdlstm_tk.runtime.inference import (
    Engine,
    Inference,
    answer_document,
    check_options,
    closing_with,
    collect,
)
from mdlstm_tk.runtime.io.arrays import STDIO, open_output
from mdlstm_tk.runtime.io.files import ensure_writable
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.io.writers import Format
from mdlstm_tk.runtime.isolation.rule import choose_isolation
from mdlstm_tk.runtime.jobs import Job, LeftOut, jobs_for_model, remaining_jobs
from mdlstm_tk.runtime.model_discovery import find_models
from mdlstm_tk.runtime.tiles.archive import is_archive
from mdlstm_tk.runtime.tiles.files import TileOptions, infer_tiled
from mdlstm_tk.runtime.tiles.plan import tile_extents
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.runtime.tiles.stream import stream_rows


def stream_paths(
    model: str | Path | None = None,
    output: str | Path = STDIO,
    *,
    device: str = "auto",
    timeout: float | None = None,
    isolated: bool | None = None,
) -> tuple[int, int]:
    """Read rows from standard input, and write those of the result as they come.

    Args:
        model, device, timeout, isolated: as for `infer_paths`; a tiled model whose directions go downwards.
        output: a `.npy` file, which appears when all rows are written, or "-" for standard output.

    Returns:
        The number of rows that were read, and of those that were written.

    Raises:
        InputError: the model cannot stream, or standard input is no `.npy` stream of rows.
        MDLSTMError: ONNX Runtime fails, or the file cannot be written.
    """
    path = find_models(model, tiled=True)[-1]
    if not is_archive(path):
        raise InputError(
            f"--stream needs a tiled model (mdlstm export RUN --form tiles), and {path} is none"
        )
    isolated, _ = choose_isolation([path], MAX_BYTES, limited=timeout is not None, isolated=isolated)
    with TiledSession(path, device, timeout=timeout, isolated=bool(isolated)) as session:
        if output == STDIO:
            return stream_rows(session, sys.stdin.buffer, sys.stdout.buffer)
        with open_output(output) as file:
            return stream_rows(session, sys.stdin.buffer, file)


def infer_in_tiles(
    path: Path,
    jobs: list[Job],
    left_out: LeftOut,
    tiles: TileOptions,
    options: ResultOptions,
    *,
    target: str | None,
    output_format: Format | None,
    collected: Path | None,
    single: bool,
    device: str,
    threads: int,
    batch_size: int | None,
    engine: Engine,
    workers: int | None,
    max_bytes: int | None,
    timeout: float | None,
    isolated: bool | None,
    skip_existing: bool,
    force: bool,
    newer_run: Path | None,
) -> Inference:
    """What `infer_paths` does where the model is a tiled export: `max_bytes` bounds resident memory, and
    files are read here, region by region."""
    isolated, problem = choose_isolation([path], MAX_BYTES, limited=timeout is not None, isolated=isolated)
    with ExitStack() as resources:
        session = resources.enter_context(
            TiledSession(
                path, device, threads=threads, timeout=timeout, max_bytes=max_bytes, isolated=bool(isolated)
            )
        )
        metadata = session.metadata
        check_options(metadata, options, path, collected)
        jobs = jobs_for_model(jobs, metadata, target, output_format, options.probabilities)
        if collected:
            ensure_writable(collected, force)
        remaining = remaining_jobs(jobs, skip_existing, force)
        tile_extents(tiles.tile, metadata.ndim)
        if engine == "ray":
            if tiles.resume:
                raise InputError("--resume goes on with runs of --engine local; leave it out with Ray")
            tiles = replace(tiles, workers=workers or max(1, os.cpu_count() or 1))
        outcomes = infer_tiled(session, remaining, tiles, batch_size, options, force=force)
        outcomes = closing_with(resources.pop_all(), _raising(outcomes) if single else outcomes)
    document = answer_document(jobs, metadata, options, single=single)
    if collected and document:
        outcomes, document = collect(outcomes, document, collected), None
    return Inference(
        outcomes=outcomes,
        jobs=remaining,
        skipped=len(jobs) - len(remaining),
        left_out=left_out,
        single=single,
        document=document,
        collected=collected,
        model=path,
        kind=metadata.kind,
        newer_run=newer_run,
        device=session.device,
        provider=session.provider,
        reason=session.reason,
        isolated=session.isolated,
        isolation_problem=problem,
    )


def _raising(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Pass outcomes on, and raise the first error."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise InputError(outcome.error)
        yield outcome
