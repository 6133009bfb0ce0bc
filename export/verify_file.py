"""`verify_model`: compare an exported file, in every runtime, with the network that it came from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import InputError, ParityError, require
from mdlstm_tk.export.inputs import Cases, Draw, ExampleRange, draw_like, random_cases
from mdlstm_tk.export.network import Network, Outputs
from mdlstm_tk.export.runs import checkpoint_of, find_checkpoint, note_if_stale, read_checkpoint
from mdlstm_tk.export.verify import (
    ATOLS,
    RTOL,
    Parity,
    Runtime,
    errors_of,
    graph_run,
    scales_of,
    session_run,
)
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Extents, Metadata
from mdlstm_tk.runtime.infer import models_in, open_model
from mdlstm_tk.runtime.inputs import read_feeds
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import prepare
from mdlstm_tk.training import Run

Against = nn.Module | Run | str | Path | None
UserInputs = Mapping[str, Any] | Sequence[str | Path]
USUAL = (5, 7, 3)  # extents of a file that does not name the grids of its export
GRAPH = "graph in float64"


@dataclass(frozen=True)
class VerificationReport:
    """The result of `verify_model`; `print` shows a line for each runtime.

    Attributes:
        model: the file, or the folder with the files.
        models: the metadata of each file that was verified, by its path.
        references: what the files were compared with, in words.
        outcomes: the errors by runtime, then by the name of the case.
        stale: a line for each file that was exported from another checkpoint.
    """

    model: Path
    models: dict[Path, Metadata] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    outcomes: dict[str, dict[str, Parity]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of the runtimes that are out of tolerance on at least one case."""
        return [name for name in self.outcomes if not self.worst(name)[1].passed]

    @property
    def reference(self) -> str:
        """The references of the files, in words."""
        return ", and ".join(dict.fromkeys(self.references))

    def worst(self, runtime: str) -> tuple[str, Parity]:
        """The case on which a runtime is furthest out of tolerance, or closest to that, and its error."""
        return max(self.outcomes[runtime].items(), key=lambda item: item[1].max_ratio)

    def tolerance(self) -> str:
        """The largest error that is allowed in ONNX Runtime."""
        atols = {metadata.parity.get("atol", RTOL) for metadata in self.models.values()}
        return " or ".join(f"{atol:g}·s + {RTOL:g}·|y|" for atol in sorted(atols))

    def __str__(self) -> str:
        """The file and the reference, a line for each runtime, and the tolerance."""
        lines = [f"{self.model} ({counted(len(self.models), 'model')}) against {self.reference}"]
        for runtime in self.outcomes:
            case, parity = self.worst(runtime)
            verdict = "out of tolerance" if runtime in self.failed else "within tolerance"
            lines.append(f"{runtime}: {parity.error:.1e} on {case}, {verdict}")
        return "\n".join([*lines, f"tolerance: {self.tolerance()}"])

    def as_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All outcomes as JSON values, by runtime and case."""
        return {
            runtime: {case: outcome.as_dict() for case, outcome in outcomes.items()}
            for runtime, outcomes in self.outcomes.items()
        }

    def raise_if_failed(self) -> None:
        """Do nothing if all runtimes passed.

        Raises:
            ParityError: a runtime failed; names the case.
        """
        for runtime in self.failed[:1]:
            case, worst = self.worst(runtime)
            raise ParityError(
                f"{', '.join(self.failed)}: '{worst.output}' is off by {worst.error:.1e} against "
                f"{self.reference} on {case}, {worst.max_ratio:.3g} times the tolerance"
                + "".join(f"; {line}" for line in self.stale[:1])
            )


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
            above. An array is an x, with or without batch and channel axes; for a model with further inputs
            it is a mapping from the names of the inputs to arrays, or a `.npz` file that holds such.
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
        network, reference, stale = _reference(path, metadata, against)
        report.references.append(reference)
        report.stale.extend(stale)
        drawn = _random(sessions[0], example_range, range(seed, seed + seeds))
        cases = drawn if inputs is None else _of_user(sessions[0], inputs)
        if not cases:
            raise InputError("inputs must hold at least one array or file, got none")
        prefix = f"{path.name}, " if len(files) > 1 else ""
        for runtime, errors in _errors(path, sessions, network, cases, drawn).items():
            found = report.outcomes.setdefault(runtime, {})
            found |= {prefix + case: error for case, error in errors.items()}
    return report


def _reference(path: Path, metadata: Metadata, against: Against) -> tuple[nn.Module | None, str, list[str]]:
    """The reference of a file: the network, or None for the file itself; the same in words; and a line
    if the file was exported from another checkpoint."""
    if isinstance(against, nn.Module):
        return against, f"the given {type(against).__name__} in float64", []
    source = None if against is None else find_checkpoint(against)[1]
    if source is None and metadata.checkpoint_sha256 is not None:
        with suppress(InputError):
            source = checkpoint_of(path, metadata) or find_checkpoint(path.parent)[1]
    if source is None:
        own = "its own graphs in one tile" if metadata.form == "tiles" else "its own graph in float64"
        return None, own + (", as its run is not here" if metadata.checkpoint_sha256 else ""), []
    checkpoint, sha256 = read_checkpoint(source)
    stale = []
    if metadata.checkpoint_sha256 not in (None, sha256):
        other = f"{path} was exported from another checkpoint than {source}"
        stale.append(note_if_stale(path) or other)
    return checkpoint.network(), f"the network of {source} in float64", stale


def _errors(
    path: Path, sessions: Sequence[Any], network: nn.Module | None, cases: Cases, drawn: Cases
) -> dict[str, dict[str, Parity]]:
    """The errors of each runtime on each case. The scales of the outputs are those on random inputs, too,
    as the user's may be too few to know them from."""
    metadata, everything = sessions[0].metadata, {**drawn, **cases}
    graph: Runtime | Exception = ValueError("tiles")
    if isinstance(sessions[0], Session):
        graph = graph_run(onnx.load_model(path, load_external_data=False), metadata, everything)
    if network is not None:
        exact: Runtime = Network(
            network,
            output_names=metadata.output_names,
            integer=metadata.integer,
            channel_axis=metadata.channel_axis,
            channels_last=metadata.channels_last,
            dtype=torch.float64,
        ).finite
    elif metadata.form == "tiles":
        exact = session_run(sessions[0], everything, in_one_tile=True)
    elif isinstance(graph, Exception):
        raise InputError(
            f"the evaluator of onnx does not run this graph ({reason_of(graph)}); give the network that it "
            "came from as against=... (--against)"
        )
    else:
        exact = graph
    expected: dict[str, Outputs] = {case: exact(inputs) for case, inputs in everything.items()}
    scales, found = scales_of(expected.values(), metadata), {}
    if network is not None and not isinstance(graph, Exception):
        atol = ATOLS["float16" if metadata.dtype == "float16" else "float32"]
        found[GRAPH] = errors_of(graph, cases, expected, metadata, atol, scales)
    is_right = all(error.passed for error in found.get(GRAPH, {}).values())
    if (found and is_right) or network is None or metadata.form == "tiles":
        scales = {name: np.maximum(scale, 1) for name, scale in scales.items()}
    for session in sessions:
        run, atol = session_run(session, everything), metadata.parity.get("atol", RTOL)
        atol = atol if is_right else min(atol, ATOLS[metadata.dtype])  # else it would hide a wrong graph
        name = f"ONNX Runtime, {session.device}"
        found[name] = errors_of(run, cases, expected, metadata, atol, scales)
    if not is_right and all(e.passed for name in found.keys() - {GRAPH} for e in found[name].values()):
        del found[GRAPH]  # the evaluator is wrong, as in Resize to some extents
    return found


def _random(session: Any, example_range: ExampleRange | None, seeds: Sequence[int]) -> Cases:
    """Random inputs of a file, as its export drew them.

    Inputs after x without a range are normal, and integers 0 and 1, which every table of embeddings has.
    """
    m: Metadata = session.metadata
    draw = Draw(m.example_range)
    if example_range is not None:
        draw = draw_like(example_range, torch.zeros(1, dtype=torch.long) if m.integer else None, is_x=True)
    others = session.graph.session.get_inputs() if isinstance(session, Session) else ()

    def arrays(grid: Extents, batch: int, seed: int) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        drawn = {"x": draw((batch, *m.shape_of(grid)), rng)}
        for each in (each for each in others if each.name not in ("x", "sizes")):
            dtype = np.dtype(session.graph.dtypes[each.name])
            free = (e for e, fixed in zip(grid, m.extents, strict=True) if fixed is None)
            # Of an input with the grid of x, extents are free where those of x are.
            shape = [extent if isinstance(extent, int) else next(free, 1) for extent in each.shape[1:]]
            bounds = m.input_ranges.get(each.name, None if dtype.kind == "f" else (0, 1))
            drawn[each.name] = Draw(bounds, dtype=dtype.type)((batch, *shape), rng)
        return drawn

    multiples = m.multiple_of or (1,) * m.ndim
    usual = [-(-e // k) * k for e, k in zip((*USUAL, *(2,) * m.ndim), multiples, strict=False)]
    return random_cases(arrays, m.grids or [m.grid_like(usual)], seeds)


def _of_user(session: Any, inputs: UserInputs) -> Cases:
    """The user's own arrays by name, or those in files. Samples with `sizes` are cases of their own,
    without their padding.

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
        sizes, x = arrays.pop("sizes", None), arrays.pop("x", None)
        try:
            feeds = prepare(x, metadata, dtypes, sizes, arrays).feeds
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        valid = feeds.pop("sizes", None)
        if valid is None:
            cases[name] = feeds
            continue
        for k, extents in enumerate(valid.tolist()):
            sample = {key: array[k : k + 1] for key, array in feeds.items()}
            sample["x"] = sample["x"][0][metadata.region(extents)][np.newaxis]
            cases[f"{name}, sample {k}"] = sample
    return cases
