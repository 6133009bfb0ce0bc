"""The fuzzer of models: load a mutated model, run it, and run `mdlstm info` and `mdlstm infer` on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fuzz.command import run_command
from fuzz.model_graphs import mutate_model
from fuzz.model_seeds import write_model_seeds
from fuzz.mutate import mutate_bytes
from fuzz.outcome import ViolationError, unclean
from fuzz.protobuf import mutate_message
from mdlstm_tk.runtime import Metadata, Session

MAX_BYTES = 2**26  # that a model and a sample may take
MEMORY = 4 * MAX_BYTES + 2**28  # by which a case may grow
TIMEOUT = 0.5  # seconds of a run
LIMIT = 20.0  # seconds of a case
COMMAND_SHARE = 0.05  # of the cases that load, on the command line as well
ADDRESS_SPACE = 6 * 2**30
PER_WORKER = 2000


class ModelFuzzer:
    """Cases made of the models in a corpus.

    Args:
        corpus: folder that `write_corpus` made.
        scratch: an empty folder; scratch/case holds the present case.
    """

    def __init__(self, corpus: Path, scratch: Path) -> None:
        paths = sorted(corpus.glob("*.onnx"))
        self.names = [path.stem for path in paths]
        self.seeds = [path.read_bytes() for path in paths]
        self.extra = [_load_extra(path.with_suffix(".npz")) for path in paths]
        self.folder = scratch / "case"
        self.folder.mkdir()

    def make(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        """Make a case in the folder; return what was changed, and a function that runs it."""
        which, other = rng.randrange(len(self.seeds)), rng.randrange(len(self.seeds))
        data, level = self._mutate(rng, self.seeds[which], self.seeds[other])
        path = self.folder / "model.onnx"
        path.write_bytes(data)
        on_command_line = rng.random() < COMMAND_SHARE

        def run() -> str | None:
            with Session(data, "cpu", timeout=TIMEOUT, max_bytes=MAX_BYTES) as session:
                _check_metadata(session.metadata)
                _check_outputs(session(_input(session.metadata), **self.extra[which]))
            if on_command_line:
                self._call_commands(session.metadata)
            return None

        return f"{self.names[which]}: {level}", run

    def _mutate(self, rng: random.Random, seed: bytes, donor: bytes) -> tuple[bytes, str]:
        level = rng.choice(("bytes", "fields", "fields", "meaning", "meaning", "meaning"))
        if level == "bytes":
            return mutate_bytes(rng, seed, donor), level
        if level == "fields":
            for _ in range(rng.choice((1, 1, 2, 4))):
                seed = mutate_message(rng, seed, onnx.ModelProto.DESCRIPTOR, donor)
            return seed, level
        model, other = onnx.ModelProto.FromString(seed), onnx.ModelProto.FromString(donor)
        changes = mutate_model(rng, model, other)
        return model.SerializeToString(deterministic=True), changes

    def _call_commands(self, metadata: Metadata) -> None:
        """Call `info` and `infer` as a user does."""
        x, y = self.folder / "x.npy", self.folder / "y"
        np.save(x, _input(metadata)[0])
        model = self.folder / "model.onnx"
        run_command(["info", model, "--json", "--max-bytes", MAX_BYTES])
        run_command(["info", model, "--max-bytes", MAX_BYTES])
        options = ["-m", model, "--device", "cpu", "--force"]
        run_command(["infer", x, *options, "-o", y])
        if metadata.kind in ("classify", "transcribe"):
            for style in ("txt", "csv", "json"):
                run_command(["infer", x, *options, "--format", style])


def _load_extra(path: Path) -> dict[str, Any]:
    return dict(np.load(path)) if path.exists() else {}


def _input(metadata: Metadata) -> Any:
    """Two samples of the grid that the metadata name, or of a small one; zeros if that is large."""
    grid = list(metadata.grid or (4, 8, 2)[: metadata.ndim])
    channels = metadata.channels
    if prod(grid) * channels > 10**6:
        return np.zeros((1, *grid, channels), np.float32)
    shape = (2, *grid, channels) if metadata.channels_last else (2, channels, *grid)
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def _check_metadata(metadata: Metadata) -> None:
    for text in (metadata.version, metadata.form, metadata.layout, metadata.dtype, *metadata.inputs):
        if problem := unclean(text):
            raise ViolationError("message", f"metadata hold {problem} in {text!a:.200}")


def _check_outputs(outputs: Any) -> None:
    for name, y in (outputs if isinstance(outputs, dict) else {"y": outputs}).items():
        if not isinstance(y, np.ndarray) or y.dtype.kind not in "biuf":
            raise ViolationError("exception", f"the output {name!a} is of {getattr(y, 'dtype', type(y))}")


def write_corpus(folder: Path, small: bool) -> None:
    write_model_seeds(folder, small)
