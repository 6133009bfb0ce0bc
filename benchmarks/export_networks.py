"""40 networks as users bring them, exported, and run in two runtimes, compared with PyTorch in float64.

python benchmarks/export_networks.py            # all, some 5 minutes
python benchmarks/export_networks.py unet crnn  # those whose names contain one of the words
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from outside_networks import NETWORKS

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.runtime import Session


def in_openvino(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path.read_bytes()), "CPU", settings)
    return list(compiled(feeds).values())


def outputs_of(result: Any) -> list[np.ndarray]:
    return list(result.values()) if isinstance(result, dict) else [result]


def error(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """The largest error of floats in units of the largest output, at least 1."""
    errors = [
        np.abs(y - e).max() / max(1, np.abs(e).max()) for y, e in zip(found, exact, strict=True) if e.size
    ]
    return float(max(errors))


def measure(name: str, folder: Path) -> str:
    """One line of the table."""
    make, examples, options, shapes = NETWORKS[name]
    torch.manual_seed(0)
    net, start = make().eval(), time.perf_counter()
    try:
        report = export_onnx(net, folder / "m.onnx", examples, **options)
    except MDLSTMError as refusal:
        return f"refused: {refusal}"
    seconds, rng, metadata = time.perf_counter() - start, np.random.default_rng(1), report.metadata
    session, reference = Session(report.path, "cpu", trusted=True), float64_reference(net)
    in_runtime, elsewhere, problem = [report.max_abs], [], ""
    example_z = examples[1] if isinstance(examples, tuple) else None
    for shape in shapes:
        x = rng.random((2, *shape), np.float32)
        if metadata.integer:
            x = np.floor(9 * x)
        further = {}
        if example_z is not None:
            is_grid, is_last = "z" in options.get("grid_inputs", ()), metadata.channels_last
            channels = example_z.shape[-1 if is_last else 1]
            grid = shape[:-1] if is_last else shape[1:]
            z_shape = (*grid, channels) if is_last else (channels, *grid)
            further["z"] = rng.random((2, *(z_shape if is_grid else example_z.shape[1:])), np.float32)
        exact = outputs_of(reference(x.astype(np.int64) if metadata.integer else x, **further))
        in_runtime.append(error(outputs_of(session(x, **further)), exact))
        try:
            of_file = x if metadata.channel_axis else x[..., None]
            elsewhere.append(error(in_openvino(report.path, {"x": of_file, **further}), exact))
        except Exception as failure:  # OpenVINO raises exceptions of all kinds
            problem = next(line for line in reversed(str(failure).splitlines()) if line.strip())[:70]
    trust = ", ".join(report.needs_trust)
    size = "x".join(str(e or "*") for e in metadata.grid) if metadata.grid else "any"
    in_openvino_text = f"{max(elsewhere):.1e}" if elsewhere else problem or "not compared"
    return (
        f"{metadata.form:8} {size:8} {max(in_runtime):.1e}  {in_openvino_text:12} {seconds:5.1f} s  {trust}"
    )


def main() -> None:
    words = sys.argv[1:]
    print(f"{'network':24} form     size     ONNX Runtime  OpenVINO  export  needs trusted=True for")
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            if not words or any(word in name for word in words):
                print(f"{name:24} {measure(name, Path(folder))}", flush=True)


if __name__ == "__main__":
    main()
