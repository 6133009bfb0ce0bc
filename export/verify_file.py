"""`verify_model`: compare an exported file, in every runtime, with the network that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, reason_of, shell_quoted
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError, require
from mdlstm_tk.export.inputs import Case, Draw, ExampleRange, draw_like, random_cases
from mdlstm_tk.export.network import Network, Outputs
from mdlstm_tk.export.runs import find_checkpoint, read_checkpoint
from mdlstm_tk.export.staleness import checkpoint_of, note_if_stale
from mdlstm_tk.export.verify import (
    ATOLS,
    RTOL,
    Parity,
    Runtime,
    errors_of,
    expected_of,
    graph_run,
    runner,
    scales_of,
    session_run,
)
from mdlstm_tk.io import TILED_SUFFIX, Array
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime.infer import models_in, open_model
from mdlstm_tk.runtime.inputs import read_feeds
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import prepare
from mdlstm_tk.runtime.tiles.session import TiledSession
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
        reference: what the files were compared with, in words.
        run: the run that they were compared with; None if it was something else.
        groups: names of the cases in each group: of one file, see `Case`; of several, one group for each.
        outcomes: the errors by runtime, then by the name of the case.
        stale: a line for each file that was exported from another checkpoint.
    """

    model: Path
    models: dict[Path, Metadata]
    reference: str
    run: Run | None
    groups: dict[str, list[str]]
    outcomes: dict[str, dict[str, Parity]]
    stale: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Names of the runtimes that are out of tolerance on at least one case."""
        return [runtime for runtime in self.outcomes if not self.passed(runtime)]

    def passed(self, runtime: str) -> bool:
        """True if a runtime is within tolerance on all cases."""
        return all(outcome.passed for outcome in self.outcomes[runtime].values())

    def worst_errors(self, runtime: str) -> dict[str, float]:
        """The largest absolute error of a runtime in each group of cases; NaN if one of them is NaN."""
        outcomes = self.outcomes[runtime]
        errors = {
            group: [outcomes[name].max_abs for name in names if name in outcomes]
            for group, names in self.groups.items()
        }
        return {group: float(np.max(of_group)) for group, of_group in errors.items() if of_group}

    def title(self) -> str:
        """The file with its form and grid, or the folder and how many files it has; and the reference."""
        name = f"{self.model} ({counted(len(self.models), 'model')})"
        if len(self.models) == 1:
            ((path, metadata),) = self.models.items()
            name = (
                f"{path} ({metadata.form}, {format_size(metadata.grid) if metadata.grid else 'any size'})"
            )
        return f"{name}: largest error against {self.reference}"

    def tolerance(self) -> str:
        """The allowed error of ONNX Runtime, which the files name; of several files the largest."""
        atol = max(metadata.parity.get("atol", RTOL) for metadata in self.models.values())
        return f"{atol:g}·s + {RTOL:g}·|y|"

    def __str__(self) -> str:
        """The title, a line for each runtime with its largest error, and the tolerance."""
        lines = [self.title()]
        for runtime in self.outcomes:
            error = np.max(list(self.worst_errors(runtime).values()))
            verdict = "within tolerance" if self.passed(runtime) else "out of tolerance"
            lines.append(f"{runtime}: {error:.1e}, {verdict}")
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
        if not self.failed:
            return
        outcomes = self.outcomes[self.failed[0]]
        case, worst = max(outcomes.items(), key=lambda item: item[1].max_ratio)
        advice = ""
        if self.stale:
            advice = f"; {self.stale[0]}"
        elif self.run is not None:
            folder = shell_quoted(self.run.folder)
            advice = f"; if it is of another checkpoint, export it again: mdlstm export {folder} --force"
        raise ParityError(
            f"{', '.join(self.failed)}: '{worst.output}' is off by {worst.error:.1e} against "
            f"{self.reference} on {case}, {worst.max_ratio:.3g} times the tolerance{advice}"
        )


@checked
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
            f"the folder {model} holds no model; make one with: mdlstm export {shell_quoted(model)}"
        )
    groups: dict[str, list[str]] = {}
    outcomes: dict[str, dict[str, Parity]] = {}
    sources = [_Source(path, _sessions(path, device, trusted), against) for path in files]
    for source in sources:
        cases, found = source.verify(inputs, example_range, range(seed, seed + seeds))
        prefix = f"{source.path.name}, " if len(files) > 1 else ""
        for case in cases:
            group = source.path.name if prefix else case.group
            groups.setdefault(group, []).append(prefix + case.name)
            for runtime, by_case in found.items():
                outcomes.setdefault(runtime, {})[prefix + case.name] = by_case[case.name]
    return VerificationReport(
        model=model,
        models={source.path: source.metadata for source in sources},
        reference=", and ".join(dict.fromkeys(source.reference for source in sources)),
        run=next((source.run for source in sources if source.run), None),
        stale=tuple(source.stale for source in sources if source.stale),
        groups=groups,
        outcomes=outcomes,
    )


def _sessions(model: Path, device: str, trusted: bool) -> list[Any]:
    """A session on the device; for "auto" one on the CPU and, where it works, one on CUDA."""
    new_session: Any = partial(open_model, model, trusted=trusted)
    session = new_session(device=device)
    if device != "auto" or session.device == "cpu":
        return [session]
    return [new_session(device="cpu"), session]


class _Source:
    """One file, the sessions that run it, and what they are compared with.

    Attributes:
        metadata: of the file.
        reference: what the file is compared with, in words.
        run: the run that the file is compared with; None if it is something else.
        stale: one line if the file was exported from another checkpoint of that run; else "".
        exact: the network in float64; None if only the file is known.
    """

    def __init__(self, path: Path, sessions: Sequence[Any], against: Against) -> None:
        self.path, self.sessions, self.metadata = path, sessions, sessions[0].metadata
        self.run: Run | None = None
        self.stale, self.exact = "", None
        network = self._network(against)
        if network is not None:
            self.reference += " in float64"
            self.exact = Network(
                network,
                output_names=self.metadata.output_names,
                integer=self.metadata.integer,
                channel_axis=self.metadata.channel_axis,
                channels_last=self.metadata.channels_last,
                dtype=torch.float64,
            )

    def _network(self, against: Against) -> nn.Module | None:
        """The network that the file is compared with; None for the file itself."""
        if isinstance(against, nn.Module):
            self.reference = f"the given {type(against).__name__}"
            return against
        source = None if against is None else find_checkpoint(against)
        if source is None and self.metadata.checkpoint_sha256 is not None:
            with suppress(InputError):
                source = find_checkpoint(checkpoint_of(self.path, self.metadata) or self.path.parent)
        if source is None:
            is_tiled = self.path.suffix == TILED_SUFFIX
            self.reference = "its own graphs in one tile" if is_tiled else "its own graph in float64"
            if self.metadata.checkpoint_sha256 is not None:
                self.reference += ", as its run is not here"
            return None
        self.run, checkpoint_path = source
        checkpoint, sha256 = read_checkpoint(checkpoint_path)
        if self.metadata.checkpoint_sha256 not in (None, sha256):
            other = f"{self.path} was exported from another checkpoint than {checkpoint_path}"
            self.stale = note_if_stale(self.path) or other
        self.reference = f"the network of {checkpoint_path}"
        return checkpoint.network()

    def verify(
        self, inputs: UserInputs | None, example_range: ExampleRange | None, seeds: Sequence[int]
    ) -> tuple[list[Case], dict[str, dict[str, Parity]]]:
        """The inputs to compare on, the user's or random ones, and the errors of each runtime on them."""
        metadata, draw = self.metadata, Draw(self.metadata.example_range)
        if example_range is not None:
            example = torch.zeros(0, dtype=torch.long) if metadata.integer else None
            draw = draw_like("x", example_range, example)
        arrays = partial(_arrays, self.sessions[0], draw)
        usual = metadata.grid_like(
            [
                -(-e // m) * m
                for e, m in zip(
                    (*USUAL, *USUAL), metadata.multiple_of or (1,) * metadata.ndim, strict=False
                )
            ]
        )
        cases = list(random_cases(arrays, metadata.grids or [usual], seeds))
        scaling = cases[:2]
        if inputs is not None:
            cases = list(_user_cases(self.sessions[0], inputs))
            if len(cases) == 0:
                raise InputError("inputs must hold at least one array or file, got none")
        graph = None
        if isinstance(self.sessions[0], Session):
            model = onnx.load_model(self.path, load_external_data=False)
            with suppress(Exception):  # the evaluator of onnx lacks operators
                graph = runner(graph_run(model, metadata), metadata, [*cases, *scaling])
        expected = self._expected(cases, graph)
        # The user's inputs may be too few to know the scale of the outputs from.
        of_scale = list(expected.values())
        with suppress(MDLSTMError):
            of_scale += self._expected(scaling if inputs is not None else [], graph).values()
        scales = scales_of(of_scale, metadata)
        found: dict[str, dict[str, Parity]] = {}
        if self.exact and graph:
            whole = [case._replace(parts=(sum(case.parts),)) for case in cases]
            with suppress(*(() if self._runs(graph, cases[0]) else (Exception,))):
                atol = ATOLS["float16" if metadata.dtype == "float16" else "float32"]
                found[GRAPH] = errors_of(graph, whole, expected, metadata, atol, scales)
        if found or not self.exact or graph is None:
            scales = {name: np.maximum(scale, 1) for name, scale in scales.items()}
        for session in self.sessions:
            run = runner(session_run(session), metadata, [*cases, *scaling])
            atol = metadata.parity.get("atol", RTOL)
            found[f"ONNX Runtime, {session.device}"] = errors_of(
                run, cases, expected, metadata, atol, scales
            )
        return cases, found

    def _runs(self, graph: Runtime, case: Case) -> bool:
        """True if the evaluator of onnx, which lacks operators, and has some in part, runs a graph."""
        try:
            graph(case.inputs)
        except Exception:  # of all kinds
            return False
        return True

    def _expected(self, cases: Sequence[Case], graph: Runtime | None) -> dict[str, Outputs]:
        """What the reference returns, by the names of cases."""
        if self.exact is not None:
            return expected_of(self.exact, cases)
        run = graph or session_run(self.sessions[0], in_one_tile=True)
        try:
            return {case.name: run(case.inputs) for case in cases}
        except Exception as error:  # as above
            raise InputError(
                f"the evaluator of onnx does not run this graph ({reason_of(error)}); give the network "
                "that it came from as against=... (--against)"
            ) from None


def _arrays(session: Any, draw: Draw, grid: Grid, batch: int, seed: int) -> dict[str, Array]:
    """Random inputs of a file on a grid, as its export drew them.

    Inputs after x without a range are normal, and integers 0 and 1, which every table of embeddings has.
    """
    metadata, rng = session.metadata, np.random.default_rng(seed)
    drawn = {"x": draw((batch, *metadata.shape_of(grid)), rng)}
    for each in session.graph.session.get_inputs() if isinstance(session, Session) else ():
        if each.name in ("x", "sizes"):
            continue
        dtype = np.dtype(session.graph.dtypes[each.name])
        free = (e for e, fixed in zip(grid, metadata.extents, strict=True) if fixed is None)
        # Of an input with the grid of x, extents are free where those of x are.
        shape = [extent if isinstance(extent, int) else next(free, 1) for extent in each.shape[1:]]
        bounds = metadata.input_ranges.get(each.name, None if dtype.kind == "f" else (0, 1))
        drawn[each.name] = Draw(bounds, dtype=dtype.type)((batch, *shape), rng)
    return drawn


def _user_cases(session: Session | TiledSession, inputs: UserInputs) -> Iterator[Case]:
    """The user's own arrays by name, or those in files. Samples with `sizes` are cases of their own,
    without their padding.

    Raises:
        InputError: the model does not take an array, or a file cannot be read.
    """
    metadata, is_graph = session.metadata, isinstance(session, Session)
    dtypes: Any = session.graph.dtypes if is_graph else {"x": "float32"}  # type: ignore[union-attr]
    items: Any = inputs.items() if isinstance(inputs, Mapping) else _feeds(inputs, metadata)
    for name, value in items:
        arrays = dict(value) if isinstance(value, Mapping) else {"x": value}
        sizes = arrays.pop("sizes", None)
        if "x" not in arrays:
            raise InputError(f"{name} must hold the inputs {', '.join(metadata.inputs)}")
        try:
            whole = prepare(arrays.pop("x"), metadata, dtypes, sizes, arrays).feeds
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        valid = whole.pop("sizes", None)
        if valid is None:
            yield Case(str(name), str(name), whole, (len(whole["x"]),))
            continue
        for k, extents in enumerate(valid.tolist()):
            sample = {key: array[k : k + 1] for key, array in whole.items()}
            sample["x"] = sample["x"][0][metadata.region(extents)][np.newaxis]
            yield Case(f"{name}, sample {k}", str(name), sample, (1,))


def _feeds(paths: Sequence[str | Path], metadata: Metadata) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The arrays of files: all inputs of the model in one file, or each x by itself."""
    for path in paths:
        for name, feed in read_feeds(str(path), metadata).items():
            yield str(path) if name is None else f"{path}: {name}", feed.arguments
