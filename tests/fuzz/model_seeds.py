"""Models to mutate: exports of this project's networks in each form and kind, and models made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from helpers.crafted_models import FLOAT, call, crafted, function, info, node, scanning, tensor
from helpers.foreign_models import GO, PASS_ON, body
from onnx import helper

CLASSES = ["cat", "dog", "é"]
CLASSIFY = {"kind": "classify", "classes": CLASSES, "task": "pets", "model": "md"}


def write_model_seeds(folder: Path, small: bool = False) -> None:
    """Write models as NAME.onnx, and their inputs after x as NAME.npz.

    Args:
        folder: where to; it is created.
        small: only those which are made without torch, and one export.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in crafted_seeds().items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for name, module, options in _exports(small):
        from mdlstm_tk.export import export_onnx

        export_onnx(module(), folder / f"{name}.onnx", **options)
        extra = options.get("extra_inputs") or {}
        if extra:
            np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in extra.items()})


def crafted_seeds() -> dict[str, onnx.ModelProto]:
    """Small models with a loop, functions, control flow and operators that an export does not have."""
    twice = function("twice", node("Neg", "a", "t"), node("Neg", "t", "b"))
    negate = function("negate", node("Neg", "a", "b"))
    names = (("s", "v"), ("s_out", "v_out"))
    inputs, outputs = ([info(name, FLOAT, [2, 2, 1]) for name in pair] for pair in names)
    steps = [node("Add", "s v", "s_out"), node("Identity", "s_out", "v_out")]
    scan_body = helper.make_graph(steps, "body", inputs, outputs)
    loop = node("Loop", "three go x", "y", body=body(*PASS_ON))
    return {
        "crafted-identity": crafted(),
        "crafted-loop": crafted([loop], [GO, tensor("three", 3)]),
        "crafted-endless": scanning(node("Add", "v two", "v_out"), rows=10**9, width=0),
        "crafted-functions": crafted(
            [call("twice", "x", "t"), call("negate", "t", "y")], functions=[negate, twice]
        ),
        "crafted-reshape": crafted(
            [node("Reshape", "x shape", "t"), node("ReduceSum", "t axes", "u"), node("Add", "t u", "y")],
            [tensor("shape", [-1, 2, 2, 1]), tensor("axes", [1])],
        ),
        "crafted-scan": crafted(
            [node("Scan", "zeros x", "last y", body=scan_body, num_scan_inputs=1)],
            [tensor("zeros", np.zeros((2, 2, 1)), np.float32)],
        ),
    }


def _exports(small: bool) -> Iterator[tuple[str, Callable[[], Any], dict[str, Any]]]:
    import torch
    from helpers.networks import Conditioned, ManyHeads
    from torch import nn

    from mdlstm_tk import MDLSTM
    from mdlstm_tk.models import create

    def layer(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            torch.manual_seed(0)
            return MDLSTM(*arguments, **options)

        return make

    def network(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            torch.manual_seed(0)
            return create(*arguments, **options)

        return make

    grid = {"grid": (2, 3)}
    yield "unrolled", layer(1, 2), grid
    if small:
        return
    yield "scan", layer(1, 2, directions="all"), {"form": "scan"}
    yield "padded", layer(1, 2), {**grid, "padded": True}
    yield "padded-scan", layer(2, 2, window=2), {"form": "scan", "padded": True}
    yield "functions", layer(1, 2), {**grid, "functions": True}
    yield "float16", layer(1, 2, cell="stable"), {**grid, "dtype": "float16"}
    yield "int8", layer(2, 4), {**grid, "dtype": "int8"}
    yield "one-axis", layer(2, 2, ndim=1), {"grid": (3,)}
    yield "three-axes", layer(1, 2, ndim=3, cell="leaky"), {"grid": (2, 2, 2)}
    yield "channels-first", layer(2, 2, channels_last=False, peephole=True), grid
    yield "layer-norm", layer(1, 2, layer_norm=True, cell="mean"), grid
    yield "outputs", ManyHeads, {**grid}
    yield "outputs-scan", ManyHeads, {"form": "scan"}
    extra = {"z": torch.ones(1, 2), "k": torch.ones(1, dtype=torch.int64)}
    yield "extra-inputs", Conditioned, {**grid, "extra_inputs": extra}
    preprocessing = {"channels": 1, "resize": [4, 8]}
    kinds: dict[str, dict[str, Any]] = {
        "classify": {**CLASSIFY, "preprocessing": preprocessing},
        "segment": {
            "kind": "segment",
            "classes": CLASSES,
            "mask_values": [0, 7, 255],
            "mask_palette": list(range(9)),
            "preprocessing": {"channels": 1, "resize": None},
        },
        "transcribe": {"kind": "transcribe", "classes": ["a", " "], "preprocessing": preprocessing},
    }
    for kind, metadata in kinds.items():
        size = {"grid": (4, 8)}
        yield kind, network("md", 1, 3, kind=kind, hidden=2), {**size, "metadata": metadata}
        yield (
            f"{kind}-scan",
            network("md", 1, 3, kind=kind, hidden=2),
            {"form": "scan", "metadata": metadata},
        )
