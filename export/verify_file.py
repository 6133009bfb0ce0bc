"""`verify_model`: compare an exported file, in every runtime, with the network that it came from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mdlstm_tk.errors import InputError, require
from mdlstm_tk.export.inputs import Cases, Draw, ExampleRange, draw_like, drawn, random_cases
from mdlstm_tk.export.network import Network
from mdlstm_tk.export.runs import checkpoint_of, checksum, find_checkpoint
from mdlstm_tk.export.verify import (
    RTOL,
    Parity,
    Runtime,
    VerificationReport,
    errors_of_file,
    graph_run,
    session_run,
)
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Extents, FreeExtents, Metadata
from mdlstm_tk.runtime.infer import models_in, open_model
from mdlstm_tk.runtime.inputs import read_feeds
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import prepare
from mdlstm_tk.training import Run, load_checkpoint

Against = nn.Module | Run | str | Path | None
UserInputs = Mapping[str, Any] | Sequence[str | Path]
USUAL = (5, 7, 3)  # extents of a file that does not name the grids of its export


def verify_model(
    model: str | Path,
    against: Against = None,
    *,
    inputs: UserInputs | None = None,
    example_range: ExampleRange | None = None,
    device: str = "auto",
    seeds: int = 2,
    seed: int = 0,
    trusted: bool = False,
) -> VerificationReport:
    """Compare an exported model with the network it came from.

    Two questions are asked, on random inputs: whether the graph in float64 is the network in float64, at
    the own scale of each output; and whether ONNX Runtime computes it within the tolerance that the file
    was exported with. A model that takes several grids is compared on grids of odd shapes as well.

        >>> verify_model("net.onnx", net).raise_if_failed()
        >>> verify_model("runs/diagonal").raise_if_failed()                  # all exports of a run
        >>> verify_model("net.onnx", net, inputs={"mine": x}).raise_if_failed()

    Args:
        model: a file that `export_onnx`, `export_tiles` or `export_run` wrote, or a folder of such files,
            such as that of a run.
        against: the network, or the run or checkpoint file that it was exported from. None: the run in
            whose folder the file lies. If there is none, or the file is not of a run, its own graph is
            evaluated in float64, and an archive of tiles in one tile: that shows whether the runtimes
            compute the graph, but not whether the graph is that of the network.
        inputs: arrays by name, or files that `mdlstm infer` reads, to compare on in place of the inputs
            above. An array is an x without padding, with or without batch and channel axes; for a model
            with further inputs it is a mapping from the names of the inputs to arrays, or a `.npz` file
            that holds such.
        example_range: (low, high) of random x, or a function, as for `export_onnx`. None: as the model was
            exported with.
        device: for ONNX Runtime: "cpu", "cuda", "cuda:N", or "auto", which takes the CPU and, where it
            works, CUDA as well.
        seeds: number of random seeds.
        seed: the first seed.
        trusted: as for `Session`.

    Returns:
        The outcome of every runtime on every case. A failure raises nothing by itself; call
        `raise_if_failed` on the report for that.

    Raises:
        InputError: the model, the run or an input cannot be read, or the model does not take an input.
        DeviceError: the device cannot be used.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    if seeds < 1 or seed < 0:
        raise InputError(f"seeds must be at least 1 and seed at least 0, got seeds={seeds} and seed={seed}")
    model = Path(model)
    files = sorted(models_in(model)) if model.is_dir() else [model]
    if not files:
        raise InputError(
            f"the folder {model} holds no model; make one with: mdlstm export {shlex.quote(str(model))}"
        )
    report = VerificationReport(model)
    for path in files:
        sessions = [open_model(path, device=device, trusted=trusted)]
        if device == "auto" and sessions[0].device != "cpu":
            sessions.insert(0, open_model(path, device="cpu", trusted=trusted))
        metadata = report.models[path] = sessions[0].metadata
        network, reference = _reference(path, metadata, against)
        report.references.append(reference)
        random = _random(sessions[0], example_range, range(seed, seed + seeds))
        cases = random if inputs is None else _of_user(sessions[0], inputs)
        if not cases:
            raise InputError("inputs must hold at least one array or file, got none")
        prefix = f"{path.name}, " if len(files) > 1 else ""
        for runtime, errors in _errors(path, sessions, network, cases, random).items():
            found = report.outcomes.setdefault(runtime, {})
            found |= {prefix + case: error for case, error in errors.items()}
    return report


def _reference(path: Path, metadata: Metadata, against: Against) -> tuple[nn.Module | None, str]:
    """The reference of a file: the network, or None for the file itself; and the same in words."""
    if isinstance(against, nn.Module):
        return against, f"the given {type(against).__name__} in float64"
    source = None if against is None else find_checkpoint(against)[1]
    if source is None and metadata.checkpoint_sha256 is not None:
        with suppress(InputError):
            source = checkpoint_of(path, metadata) or find_checkpoint(path.parent)[1]
    if source is None:
        own = "its own graphs in one tile" if metadata.form == "tiles" else "its own graph in float64"
        return None, own + (", as its run is not here" if metadata.checkpoint_sha256 else "")
    reference = f"the network of {source} in float64"
    if metadata.checkpoint_sha256 not in (None, checksum(source)):
        reference += f" (the run has gone on since {path} was exported; export it again)"
    return load_checkpoint(source).network(), reference


def _errors(
    path: Path, sessions: Sequence[Any], network: nn.Module | None, cases: Cases, random: Cases
) -> dict[str, dict[str, Parity]]:
    """The errors of each runtime on each case. The scales of the outputs are those on random inputs, too,
    as the user's may be too few to know them from."""
    metadata, everything = sessions[0].metadata, {**random, **cases}
    graph: Runtime | None = None
    if metadata.form != "tiles":
        graph = graph_run(onnx.load_model(path, load_external_data=False), metadata, everything)
    if network is not None:
        exact: Runtime = Network(
            network,
            output_names=metadata.output_names,
            integer=metadata.integer,
            channel_axis=metadata.channel_axis,
            channels_last=metadata.channels_last,
            dtype=torch.float64,
        ).run
    elif metadata.form == "tiles":
        exact = session_run(sessions[0], everything, in_one_tile=True)
    elif graph is None:
        raise InputError(
            "the evaluator of onnx does not run this graph; give the network that it came from as "
            "against=... (--against)"
        )
    else:
        exact, graph = graph, None
    expected = {case: exact(inputs) for case, inputs in everything.items()}
    is_known = network is None or metadata.form == "tiles"
    return errors_of_file(graph, sessions, cases, expected, metadata.parity.get("atol", RTOL), is_known)


def _random(session: Any, example_range: ExampleRange | None, seeds: Sequence[int]) -> Cases:
    """Random inputs of a file, as its export drew them.

    Inputs after x without a range are normal, and integers 0 and 1, which every table of embeddings has.
    """
    m: Metadata = session.metadata
    draw = Draw(m.example_range)
    if example_range is not None:
        draw = draw_like(example_range, torch.zeros(1, dtype=torch.long) if m.integer else None, is_x=True)
    draws, shapes = {"x": draw}, dict[str, FreeExtents]()
    for each in session.graph.session.get_inputs() if isinstance(session, Session) else ():
        if each.name not in ("x", "sizes"):
            dtype = np.dtype(session.graph.dtypes[each.name])
            bounds = m.input_ranges.get(each.name, None if dtype.kind == "f" else (0, 1))
            draws[each.name] = Draw(bounds, dtype=dtype.type)
            # Of an input with the grid of x, extents are free where those of x are.
            shapes[each.name] = tuple(e if isinstance(e, int) else None for e in each.shape[1:])

    def arrays(grid: Extents, batch: int, seed: int) -> dict[str, Array]:
        free = [e for e, fixed in zip(grid, m.extents, strict=True) if fixed is None]
        return drawn(draws, {"x": m.shape_of(grid), **shapes}, free, batch, seed)

    multiples = m.multiple_of or (1,) * m.ndim
    usual = [-(-e // k) * k for e, k in zip((*USUAL, *(2,) * m.ndim), multiples, strict=False)]
    return random_cases(arrays, m.grids or [m.grid_like(usual)], seeds)


def _of_user(session: Any, inputs: UserInputs) -> Cases:
    """The user's own arrays by name, or those in files.

    Raises:
        InputError: the model does not take an array, or a file cannot be read.
    """
    metadata, cases = session.metadata, Cases()
    dtypes = session.graph.dtypes if isinstance(session, Session) else {"x": "float32"}
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    for path in () if isinstance(inputs, Mapping) else inputs:
        for name, feed in read_feeds(str(path), metadata).items():
            named[str(path) if name is None else f"{path}: {name}"] = feed.arguments
    for name, value in named.items():
        arrays = dict(value) if isinstance(value, Mapping) else {"x": value}
        try:
            feeds = prepare(arrays.pop("x", None), metadata, dtypes, None, arrays).feeds
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        cases[name] = {key: array for key, array in feeds.items() if key != "sizes"}
    return cases
