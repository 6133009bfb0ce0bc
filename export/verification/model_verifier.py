"""`verify_model`: compare every runtime that can run an exported file with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import reason_of, shell_quoted
from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.export.interface import Interface, without_original
from mdlstm_tk.export.model_file import operators_to_trust
from mdlstm_tk.export.run_export import find_checkpoint, read_checkpoint
from mdlstm_tk.export.staleness import checkpoint_of, note_if_stale
from mdlstm_tk.export.verification.cases import (
    SEEDS,
    Case,
    ExampleRange,
    RandomValues,
    TensorType,
    UserInputs,
    inputs_of_file,
    random_cases,
    sampler,
    tensor_types,
    user_cases,
)
from mdlstm_tk.export.verification.parity import ATOL, Parity, compare_cases
from mdlstm_tk.export.verification.report import VerificationReport
from mdlstm_tk.export.verification.runtimes import (
    Runtime,
    evaluate_graph,
    expected_outputs,
    graph_run,
    session_run,
    with_padding,
)
from mdlstm_tk.io import TILED_SUFFIX, Array
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.runtime.infer import models_in, open_model
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.training import Run

Against = nn.Module | Run | str | Path | None
DEFAULT_GRID = (5, 7, 3)  # of a model that does not name the grids of its export


@checked
def verify_model(
    model: str | Path,
    against: Against = None,
    *,
    inputs: UserInputs | None = None,
    example_range: ExampleRange | None = None,
    device: str = "auto",
    seeds: int = SEEDS,
    seed: int = 0,
    trusted: bool = False,
) -> VerificationReport:
    """Compare an exported model with the network it came from.

    PyTorch in float32, ONNX Runtime and the ONNX reference evaluator are each compared with the float64
    reference, on random inputs. A model that takes several grids is compared on grids of odd shapes as
    well. The tolerance is the one that the model was exported with.

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
    model, files = Path(model), [Path(model)]
    if model.is_dir():
        files = sorted(models_in(model))
    if not files:
        raise InputError(
            f"the folder {model} holds no model; make one with: mdlstm export {shell_quoted(model)}"
        )
    verifiers: list[_FileVerifier] = []
    groups: dict[str, list[str]] = {}
    outcomes: dict[str, dict[str, Parity]] = {}
    for path in files:
        sessions = _sessions(path, device, trusted)
        with without_original(against) if isinstance(against, nn.Module) else nullcontext():
            verifier = _FileVerifier(path, sessions, against)
            cases, of_file = verifier.run(inputs, example_range, range(seed, seed + seeds))
        verifiers.append(verifier)
        prefix = f"{path.name}, " if len(files) > 1 else ""
        for case in cases:
            groups.setdefault(path.name if prefix else case.group, []).append(prefix + case.name)
            for runtime, by_case in of_file.items():
                outcomes.setdefault(runtime, {})[prefix + case.name] = by_case[case.name]
    return VerificationReport(
        model=model,
        models={path: verifier.metadata for path, verifier in zip(files, verifiers, strict=True)},
        reference=", and ".join(dict.fromkeys(verifier.reference for verifier in verifiers)),
        run=next((verifier.training_run for verifier in verifiers if verifier.training_run), None),
        stale=tuple(verifier.stale for verifier in verifiers if verifier.stale),
        groups=groups,
        outcomes=outcomes,
    )


def _sessions(model: Path, device: str, trusted: bool) -> Sequence[Session] | Sequence[TiledSession]:
    """A session on the device; for "auto" one on the CPU and, where it works, one on CUDA."""
    new_session: Any = partial(open_model, model, trusted=trusted)
    session = new_session(device=device)
    if device != "auto" or session.device == "cpu":
        return [session]
    return [new_session(device="cpu"), session]


class _FileVerifier:
    """One file, the runtimes that run it, and what they are compared with.

    Attributes:
        metadata: of the file.
        reference: what the file is compared with, in words.
        training_run: the run that the file is compared with; None if it is something else.
        stale: one line if the file was exported from another checkpoint of that run; else "".
        interface, exact: the network that the file came from, and that in the precision of the reference;
            None if only the file is known.
        model: the graph; None for an archive of tiles.
    """

    def __init__(
        self,
        path: Path,
        sessions: Sequence[Session] | Sequence[TiledSession],
        against: Against,
    ) -> None:
        self.sessions, self.metadata = sessions, sessions[0].metadata
        self.model = (
            None if path.suffix == TILED_SUFFIX else onnx.load_model(path, load_external_data=False)
        )
        self.training_run: Run | None = None
        self.stale = ""
        self.interface: Interface | None = None
        self.exact: Interface | None = None
        network = self._network(path, against)
        if network is not None:
            mixed = self.metadata.reference == "mixed"
            interface = Interface(
                network,
                output_names=self.metadata.output_names,
                integer=self.metadata.integer,
                channel_axis=self.metadata.channel_axis,
                channels_last=self.metadata.channels_last,
                mixed=mixed,
            )
            self.interface = interface if mixed else interface.float()
            self.exact = self.interface.reference(self.metadata.reference)
            self.reference += f" in {'its own precision' if mixed else self.metadata.reference}"

    def _network(self, path: Path, against: Against) -> nn.Module | None:
        """The network that the file is compared with; None for the file itself."""
        if isinstance(against, nn.Module):
            self.reference = f"the given {type(against).__name__}"
            return against
        source = None if against is None else find_checkpoint(against)
        if source is None and self.metadata.checkpoint_sha256 is not None:
            with suppress(InputError):
                source = find_checkpoint(checkpoint_of(path, self.metadata) or path.parent)
        if source is None:
            self.reference = (
                "its own graphs in one tile" if self.model is None else "its own graph in float64"
            )
            if self.metadata.checkpoint_sha256 is not None:
                self.reference += ", as its run is not here"
            return None
        run, checkpoint_path = source
        checkpoint, sha256 = read_checkpoint(checkpoint_path)
        if self.metadata.checkpoint_sha256 not in (None, sha256):
            other = f"{path} was exported from another checkpoint than {checkpoint_path}"
            self.stale = note_if_stale(path) or other
        self.training_run, self.reference = run, f"the network of {checkpoint_path}"
        return checkpoint.network()

    def run(
        self, inputs: UserInputs | None, example_range: ExampleRange | None, seeds: Sequence[int]
    ) -> tuple[list[Case], dict[str, dict[str, Parity]]]:
        """The inputs to compare on, the user's or random ones, and the errors of each runtime on them."""
        metadata, types = self.metadata, dict[str, TensorType]()
        if isinstance(self.sessions[0], Session):
            types = tensor_types(self.sessions[0])
        draw = RandomValues(metadata.example_range)
        if example_range is not None:
            draw = sampler(
                "x", example_range, torch.zeros(0, dtype=torch.long) if metadata.integer else None
            )
        draws = inputs_of_file(metadata, types, draw)
        for_scale: list[Case] = []
        if inputs is None:
            cases = self._random_cases(draws, seeds)
        else:
            cases = user_cases(self.sessions[0], inputs)
            with suppress(MDLSTMError):  # a network may take no random inputs
                # The user's inputs may be too few to know the scale of the outputs from.
                random = self._random_cases(draws, seeds)[:2]
                longest = max((case.name for case in cases), key=len)  # no name of the user's is longer
                for_scale = [Case(f"{longest} {k}", "", case.inputs) for k, case in enumerate(random)]
        runtimes, reference, together, graph = self._runtimes([*cases, *for_scale])
        expected = expected_outputs(reference, [*cases, *for_scale], together)
        comparison = expected, cases, metadata, metadata.parity.get("atol", ATOL), self.exact, graph
        return cases, {name: compare_cases(run, *comparison) for name, run in runtimes.items()}

    def _random_cases(
        self, draws: Callable[[Grid, int, int], dict[str, Array]], seeds: Sequence[int]
    ) -> list[Case]:
        """The random cases of the export. A file of version 1 does not name their grids, and gets one.

        Raises:
            MDLSTMError: the network does not take them.
        """
        metadata, run = self.metadata, session_run(self.sessions[0])
        multiples = metadata.multiple_of or (1,) * metadata.ndim
        usual = (*DEFAULT_GRID, *(2,) * metadata.ndim)
        grid = tuple(-(-extent // m) * m for extent, m in zip(usual, multiples, strict=False))
        grids = metadata.grids or [metadata.grid_like(grid)]
        cases = list(random_cases(draws, grids, seeds))
        (self.interface.run if self.interface else run)(cases[0].inputs)
        return cases

    def _runtimes(self, cases: Sequence[Case]) -> tuple[dict[str, Runtime], Runtime, bool, Runtime | None]:
        """The runtimes by name, the reference, True if that may compute several cases in one batch, and the
        graph in float64 if it is to be compared with a network in float64."""
        metadata, model, runtimes = self.metadata, self.model, dict[str, Runtime]()
        largest = np.max([metadata.grid_of(case.inputs["x"].shape) for case in cases], axis=0).tolist()
        limit, names = metadata.grid_like(tuple(largest)), list(metadata.output_names)

        def unpadded(run: Runtime) -> Runtime:
            return with_padding(run, metadata, limit) if metadata.takes_sizes else run

        reference: Runtime
        together = False
        if self.interface is not None and self.exact is not None:
            runtimes["torch, float32"], reference = self.interface.run, self.exact.run
            together = True
        elif model is not None:
            reference = unpadded(graph_run(model, names, in_double=True))
        else:
            reference = session_run(self.sessions[0], in_one_tile=True)
        for session in self.sessions:
            runtimes[f"ONNX Runtime, {session.device}"] = unpadded(session_run(session))
        if model is not None:
            evaluator = unpadded(graph_run(model, names))
            try:  # it lacks operators, and has some in part
                evaluator(cases[0].inputs)
                if self.interface is None:
                    reference(cases[0].inputs)
                runtimes["ONNX reference evaluator"] = evaluator
            except Exception as error:  # of all kinds
                if self.interface is None:
                    reason = ", ".join(operators_to_trust(model)) or reason_of(error)
                    raise InputError(
                        f"the reference evaluator of onnx does not run this graph ({reason}); give the "
                        "network that it came from as against=... (--against)"
                    ) from None
        graph = None
        if self.interface is not None and model is not None and metadata.reference == "float64":
            graph = unpadded(partial(evaluate_graph, model, names))
        return runtimes, reference, together, graph
