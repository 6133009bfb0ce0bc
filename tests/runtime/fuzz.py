"""Fuzz the readers of models and arrays with mutated files.

    python tests/runtime/fuzz.py models --count 20000
    python tests/runtime/fuzz.py arrays --count 20000
    python tests/runtime/fuzz.py models --only 1234        # one case again, in this process

A case is right if it ends in a result or in an error of mdlstm-tk. Cases run in a worker process. A model
may end or stop that process, as the model check says nothing about time, memory and mistakes in ONNX
Runtime; such a model runs once more in an isolated session, which must end in one line. Case k is always
the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.crafted_models import NEGATE, call, crafted, node, scanning, tensor

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.model_check import OPERATORS, check_model

CASE_SECONDS = 30.0
MEMORY_BYTES = 6 * 2**30
INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 127, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1)


def mutated_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes that are changed, inserted, removed, cut off or joined with another file."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, size = rng.randrange(len(result) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                result[place : place + size] = rng.randbytes(size)
            case 1:
                result[place:place] = rng.randbytes(size)
            case 2:
                del result[place : place + size]
            case 3:
                number = rng.choice(INTEGERS) % 2**64
                result[place : place + 8] = number.to_bytes(8, rng.choice(("little", "big")))
            case 4:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                result[place:place] = other[start : start + size * 8]
            case _ if rng.random() < 0.2:
                del result[place:]
    return bytes(result)


def mutated_model(data: bytes, rng: random.Random) -> bytes:
    """A model with other operators, attributes, names, shapes and tensors, which still is one."""
    model = onnx.load_model_from_string(data)
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    lists = [*(graph.node for graph in graphs), *(function.node for function in model.functions)]
    nodes = [n for nodes in lists for n in nodes]
    for _ in range(rng.choice((1, 1, 2, 4))):
        target = rng.choice(nodes)
        match rng.randrange(8):
            case 0:
                target.op_type = rng.choice(sorted(OPERATORS)).decode()
            case 1 if target.attribute:
                attribute = rng.choice(target.attribute)
                attribute.i = rng.choice(INTEGERS)
                attribute.ints.append(rng.choice(INTEGERS))
            case 2 if target.input:
                source = rng.choice(nodes)
                target.input[rng.randrange(len(target.input))] = rng.choice(
                    [*source.input, *source.output, "x", ""]
                )
            case 3:
                target.input.append(rng.choice([*rng.choice(nodes).output, "x", ""]))
            case 4:
                rng.choice(lists).append(target)
            case 5 if model.graph.initializer:
                stored = rng.choice(model.graph.initializer)
                if len(stored.dims) < 2 and stored.data_type == onnx.TensorProto.INT64 and stored.raw_data:
                    values = np.frombuffer(stored.raw_data, np.int64).copy()
                    values.flat[rng.randrange(values.size)] = rng.choice(INTEGERS[2:9])
                    stored.CopyFrom(numpy_helper.from_array(values, stored.name))
                else:
                    stored.dims.append(rng.choice((0, 1, 2, 2**40)))
            case 6:
                value = rng.choice([*model.graph.input, *model.graph.output])
                dims = value.type.tensor_type.shape.dim
                if dims:
                    rng.choice(dims).dim_value = rng.choice(INTEGERS)
                value.type.tensor_type.elem_type = rng.choice((1, 1, 1, 7, 8, 9, 16))
            case _:
                prop = rng.choice(model.metadata_props)
                prop.value = rng.choice(
                    (prop.value, "null", "[1, 2]", str(rng.choice(INTEGERS)), '"a"', "{")
                )
    return model.SerializeToString()


@cache
def model_seeds() -> list[bytes]:
    models = (
        crafted(),
        crafted([call("f", "x", "t"), call("f", "t", "y")], functions=[NEGATE]),
        scanning(node("Add", "v two", "v_out")),
        crafted([node("Reshape", "x shape", "y", allowzero=0)], [tensor("shape", [-1, 2, 2, 1])]),
        crafted(
            [
                node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
                node("Conv", "t w", "c", kernel_shape=[1, 1]),
                node("Softmax", "c", "s", axis=1),
                node("Transpose", "s", "y", perm=[0, 2, 3, 1]),
            ],
            [tensor("w", np.ones((1, 1, 1, 1)), np.float32)],
        ),
        crafted(
            [
                node("Shape", "x", "s"),
                node("Expand", "one s", "e"),
                node("MatMul", "x e", "m"),
                node("Gather", "m index", "g", axis=3),
                node("Concat", "g x", "c", axis=3),
                node("ReduceSum", "c axes", "y"),
            ],
            [tensor("one", [1.0], np.float32), tensor("index", [0]), tensor("axes", [3])],
        ),
    )
    return [model.SerializeToString() for model in models]


@cache
def array_seeds(folder: Path) -> dict[str, list[bytes]]:
    """Files of every type, by suffix; they are written in a folder."""
    rng = np.random.default_rng(0)
    files: dict[str, list[bytes]] = {}

    def add(suffix: str, write: Callable[[Path], object]) -> None:
        path = folder / f"seed{suffix}"
        write(path)
        files.setdefault(suffix, []).append(path.read_bytes())

    for dtype in ("<f4", ">f8", "|u1", "|b1", "<i8", "<c8", "<U3"):
        add(".npy", lambda path, dtype=dtype: np.save(path, rng.integers(0, 2, (3, 4, 1)).astype(dtype)))
    add(".npz", lambda path: np.savez(path, a=np.eye(3), b=np.arange(4)))
    add(".npz", lambda path: np.savez_compressed(path, x=np.zeros((2, 3, 3)), y=np.zeros(2)))
    add(".csv", lambda path: path.write_bytes(b"1,2.5,-3\n4,5e3,6\n"))
    pixels = rng.integers(0, 255, (9, 7, 3)).astype(np.uint8)
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".gif", ".webp", ".ppm"):
        add(suffix, Image.fromarray(pixels).save)
        add(suffix, Image.fromarray(pixels[..., 0]).save)
    return files


def model_case(k: int) -> bytes:
    rng, seeds = random.Random(k), model_seeds()
    data = rng.choice(seeds)
    if rng.random() < 0.6:
        data = mutated_model(data, rng)
    return mutated_bytes(data, rng, seeds) if rng.random() < 0.4 else data


def run_model(data: bytes, **limits: Any) -> str:
    """Check, load and run a model; returns how far it came."""
    reached = "refused by the check"
    try:
        check_model(data, "case.onnx")
        reached = "not loaded"
        session = Session(data, "cpu", timeout=2, **limits)
        reached, metadata = "failed", session.metadata
        session(np.ones((2, *metadata.grid_like((2,) * metadata.ndim), metadata.channels), np.float32))
    except MDLSTMError:
        return reached
    return "ran"


def run_array(k: int, folder: Path) -> str:
    """Read a mutated file, sometimes by the suffix of another type; returns how it ended."""
    rng, files = random.Random(k), array_seeds(folder)
    suffix = rng.choice(sorted(files))
    data = mutated_bytes(rng.choice(files[suffix]), rng, files[rng.choice(sorted(files))])
    path = folder / f"case{rng.choice([*[suffix] * 9, *files])}"
    path.write_bytes(data)
    try:
        read_input(str(path), 2**24)
    except InputError as error:
        return "refused" if "\n" not in str(error) else "WRONG: an error of several lines"
    return "read"


def run_case(kind: str, folder: Path, k: int) -> str:
    """Run case k, and return how it ended."""
    return run_model(model_case(k)) if kind == "models" else run_array(k, folder)


def run_in_worker(kind: str, folder: Path, k: int) -> str:
    try:
        return run_case(kind, folder, k)
    except Exception as error:
        return f"WRONG {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def start_worker() -> None:
    """Bound the memory of a worker, and keep what ONNX Runtime prints from the terminal."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def campaign(kind: str, count: int, folder: Path) -> int:
    """Run all cases in a worker, and in a new one if a case ends it; returns the number of wrong ones."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    start = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"), start_worker)
    worker = start()
    for k in range(count):
        try:
            ended = worker.submit(run_in_worker, kind, folder, k).result(CASE_SECONDS)
        except (BrokenProcessPool, TimeoutError) as error:
            for process in multiprocessing.active_children():
                process.kill()
            worker.shutdown()
            worker = start()
            ended = f"WRONG {type(error).__name__}: the worker ended or took too long"
            if kind == "models":
                isolated = run_model(model_case(k), isolated=True, max_bytes=2**30)
                ended = f"ended or stopped the process; isolated, it {isolated}"
        ends[ended.split(":")[0]] += 1
        if ended.startswith("WRONG"):
            wrong.append(f"{k}: {ended}")
    worker.shutdown()
    for ended, number in ends.most_common():
        print(f"{number:7} {ended}")
    print(*wrong, sep="\n")
    return len(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("models", "arrays"))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mdlstm-fuzz-") as name:
        if arguments.only is not None:
            print(run_case(arguments.kind, Path(name), arguments.only))
        else:
            sys.exit(campaign(arguments.kind, arguments.count, Path(name)) > 0)


if __name__ == "__main__":
    main()
