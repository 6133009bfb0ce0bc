"""The fuzzer of arrays and images: read a mutated file, and run models on what it holds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from fuzz.array_formats import mutate_file
from fuzz.array_seeds import write_array_seeds
from fuzz.command import run_command
from fuzz.mutate import mutate_bytes
from fuzz.outcome import ViolationError
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.io import READABLE
from mdlstm_tk.runtime.io.readers import read_input

MAX_BYTES = 2**24  # that a file may take
MEMORY = 6 * MAX_BYTES + 2**27  # by which a case may grow
LIMIT = 15.0  # seconds of a case
LARGEST = 4096  # positions of an array that a model is run on
COMMAND_SHARE = 0.01  # of the cases, on the command line as well
OTHER_SUFFIX = 0.1  # of the cases
ADDRESS_SPACE = 6 * 2**30
PER_WORKER = 5000


class ArrayFuzzer:
    """Cases made of the files in a corpus.

    Args:
        corpus: folder that `write_corpus` made.
        scratch: an empty folder; scratch/case holds the present case.
    """

    def __init__(self, corpus: Path, scratch: Path) -> None:
        paths = sorted(corpus.glob("files/*"))
        self.seeds = [(path.suffix, path.read_bytes()) for path in paths]
        self.names = [path.name for path in paths]
        self.models = sorted(corpus.glob("models/*.onnx"))
        self.sessions = [Session(path, "cpu", timeout=5) for path in self.models]
        self.folder = scratch / "case"

    def make(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        """Make a case in the folder; return what was changed, and a function that runs it."""
        which, other = rng.randrange(len(self.seeds)), rng.randrange(len(self.seeds))
        suffix, data = self.seeds[which]
        levels = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.3:
                data, level = mutate_bytes(rng, data, self.seeds[other][1]), "bytes"
            else:
                data, level = mutate_file(rng, data, suffix), "structure"
            levels.append(level)
        if rng.random() < OTHER_SUFFIX:
            suffix = rng.choice((*READABLE, "", ".PNG"))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        path = self.folder / f"x{suffix}"
        path.write_bytes(data)
        on_command_line = rng.random() < COMMAND_SHARE
        model = rng.randrange(len(self.models))

        def run() -> str | None:
            if on_command_line:
                options = ["-o", self.folder / "y", "--max-bytes", MAX_BYTES, "--force", "--device", "cpu"]
                run_command(["infer", path, "-m", self.models[model], *options])
            self._read_and_run(path)
            return None

        return f"{self.names[which]} as x{suffix}: {'+'.join(levels)}", run

    def _read_and_run(self, path: Path) -> None:
        file = read_input(str(path), MAX_BYTES)
        for session in self.sessions:
            with suppress(InputError):  # most models do not take this array
                for name, x in file.arrays_for(session.metadata).items():
                    _check_array(name, x)
                    if x.size <= LARGEST:
                        session(x)


def _check_array(name: str | None, x: object) -> None:
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "buif":
        raise ViolationError("exception", f"the array {name!a} is not of numbers")
    if x.nbytes > MAX_BYTES:
        raise ViolationError("memory", f"the array {name!a} takes {x.nbytes} bytes")


def write_corpus(folder: Path, small: bool) -> None:
    """Write the files, and the models that take them: of one and of three channels, and prepared images."""
    import torch

    from mdlstm_tk import MDLSTM
    from mdlstm_tk.export import export_onnx

    write_array_seeds(folder / "files")
    (folder / "models").mkdir()
    prepared = {"preprocessing": {"channels": 1, "resize": [4, 8]}}
    variants = {"grey": (1, True, {}), "colour": (3, False, {}), "prepared": (1, True, prepared)}
    for name, (channels, channels_last, metadata) in list(variants.items())[: 1 if small else None]:
        torch.manual_seed(0)
        module = MDLSTM(channels, 2, channels_last=channels_last)
        export_onnx(module, folder / "models" / f"{name}.onnx", form="scan", metadata=metadata)
