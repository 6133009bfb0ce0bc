"""Exported files of each form, for an environment with the lowest ONNX Runtime and without torch.

    python tests/lowest_onnxruntime.py save FOLDER     # the files, with inputs and results in float64
    python tests/lowest_onnxruntime.py check FOLDER    # runs them with NumPy and ONNX Runtime alone

`.ci/lowest-onnxruntime` calls both.
"""

from __future__ import annotations

import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCES = {"float32": 1e-5, "float16": 5e-3}
FORMS: dict[str, dict[str, Any]] = {  # arguments of `export_onnx`
    "unrolled": {},
    "unrolled-sizes": {"padded": True},
    "unrolled-float16": {"dtype": "float16"},
    "scan": {"form": "scan"},
    "scan-sizes": {"form": "scan", "padded": True},
    "scan-float16": {"form": "scan", "dtype": "float16"},
}
LAYERS: dict[int, dict[str, Any]] = {  # arguments of `MDLSTM`, by the number of axes
    2: {"directions": [(1, 1), (-1, 1)], "num_layers": 2, "window": (2, 1), "layer_norm": True},
    3: {"directions": [(1, 1, 1), (-1, 1, -1)], "cell": "stable"},
}
GRIDS = {2: (4, 3), 3: (2, 2, 3)}


def save(folder: Path) -> None:
    """Export a layer in each form, and save what it returns in float64."""
    import torch

    from mdlstm_tk import MDLSTM
    from mdlstm_tk.export import export_onnx, float64_reference

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for (name, settings), ndim in zip(FORMS.items(), cycle(LAYERS), strict=False):
        layer, grid = MDLSTM(2, 4, ndim=ndim, **LAYERS[ndim]).eval(), GRIDS[ndim]
        feeds: dict[str, Any] = {"x": np.random.default_rng(0).random((3, *grid, 2), np.float32)}
        if settings.get("padded"):
            feeds["sizes"] = np.asarray([grid, (1,) * ndim, (2,) * ndim])
        export_onnx(layer, folder / f"{name}.onnx", **{"grid": grid, **settings})
        np.savez(folder / f"{name}.npz", expected=float64_reference(layer)(**feeds), **feeds)


def check(folder: Path) -> None:
    """Run the files, and fail if one is out of tolerance."""
    import onnxruntime

    from mdlstm_tk.runtime import Session

    for name, settings in FORMS.items():
        arrays = dict(np.load(folder / f"{name}.npz"))
        expected = arrays.pop("expected")
        y = Session(folder / f"{name}.onnx", "cpu")(**arrays)
        tolerance = TOLERANCES[settings.get("dtype", "float32")]
        np.testing.assert_allclose(y, expected, atol=tolerance, rtol=0, err_msg=name)
    assert "torch" not in sys.modules
    print(f"ONNX Runtime {onnxruntime.__version__}, NumPy {np.__version__}: {len(FORMS)} files agree")


if __name__ == "__main__":
    {"save": save, "check": check}[sys.argv[1]](Path(sys.argv[2]))
