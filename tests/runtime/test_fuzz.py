"""Mutated models and arrays end in a result, or in one line.

A model may end or stop the process that runs it, as the model check says nothing about time, memory and
mistakes in ONNX Runtime; such a model runs once more in an isolated session. Case k is always the same.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.crafted_models import NEGATE, call, crafted, node, scanning, tensor
from onnx import numpy_helper
from PIL import Image

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.model_check import OPERATORS

CASE_SECONDS = 30.0
MEMORY_BYTES = 6 * 2**30
INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 127, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
COUNTS = [pytest.param(300, marks=pytest.mark.slow), pytest.param(5_000, marks=pytest.mark.weekly)]


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


@pytest.mark.filterwarnings("ignore")  # those of Pillow
@pytest.mark.parametrize("count", COUNTS)
def test_mutated_arrays_are_read_or_refused_in_one_line(count: int, tmp_path: Path) -> None:
    files = array_seeds(tmp_path)
    for k in range(count):
        rng = random.Random(k)
        suffix = rng.choice(sorted(files))
        data = mutated_bytes(rng.choice(files[suffix]), rng, files[rng.choice(sorted(files))])
        path = tmp_path / f"case{rng.choice([*[suffix] * 9, *files])}"  # sometimes of another type
        path.write_bytes(data)
        try:
            read_input(str(path), 2**24)
        except InputError as error:
            is_one_line = "\n" not in str(error)
            assert is_one_line, k


def model_case(k: int) -> bytes:
    rng, seeds = random.Random(k), model_seeds()
    data = rng.choice(seeds)
    if rng.random() < 0.6:
        data = mutated_model(data, rng)
    return mutated_bytes(data, rng, seeds) if rng.random() < 0.4 else data


def run_model(k: int, **limits: Any) -> None:
    """Load and run a model; any other error than ours is raised."""
    try:
        session = Session(model_case(k), "cpu", timeout=2, **limits)
        metadata = session.metadata
        session(np.ones((2, *metadata.grid_like((2,) * metadata.ndim), metadata.channels), np.float32))
    except MDLSTMError as error:
        if "\n" in str(error):
            raise AssertionError(f"case {k}: {error}") from None


def start_worker() -> None:
    """Bound the memory of a worker, and keep what ONNX Runtime prints from the terminal."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.skipif(sys.platform == "win32", reason="workers have limits of POSIX")
def test_mutated_models_end_in_numbers_or_one_line(count: int) -> None:
    context = multiprocessing.get_context("spawn")
    worker = ProcessPoolExecutor(1, context, start_worker)
    for k in range(count):
        try:
            worker.submit(run_model, k).result(CASE_SECONDS)
        except (BrokenProcessPool, TimeoutError):
            for process in multiprocessing.active_children():
                process.kill()
            worker.shutdown()
            worker = ProcessPoolExecutor(1, context, start_worker)
            run_model(k, isolated=True, max_bytes=2**30)
    worker.shutdown()
