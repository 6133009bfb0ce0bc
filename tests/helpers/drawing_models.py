"""Small models that draw: black and white, of five levels, and in colours."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mdlstm_tk.export.drawing import drawing_model
from mdlstm_tk.models import PixelNet
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import run_rows, uniform_numbers

KINDS = {"black and white": (1, 1), "five levels": (1, 5), "colours": (3, 4)}  # channels and outputs
SIZES = ((1, 1), (1, 7), (7, 1), (5, 8))
ATOL = 1e-5

Floats = npt.NDArray[np.float32]


def drawing_network(kind: str, layers: int = 2) -> PixelNet:
    """A network whose weights are far from where training starts."""
    torch.manual_seed(0)
    network = PixelNet(*KINDS[kind], hidden=6, layers=layers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def write_drawing_model(network: PixelNet, path: Path) -> Session:
    """Write the graph that draws with a network, for pictures of 5×8, and open it."""
    path.write_bytes(drawing_model(network, SIZES[-1]).SerializeToString())
    return Session(path, "cpu")


def picture(network: PixelNet, size: tuple[int, int]) -> Floats:
    """A picture (1, H, W, C) of random levels."""
    levels = np.random.default_rng(1).integers(0, network.levels, (1, *size, network.channels))
    return levels.astype(np.float32) / np.float32(network.levels - 1)


def exact_logits(network: PixelNet, x: Floats) -> npt.NDArray[np.float64]:
    """The logits (1, H, W, C, K) of the whole picture, in float64."""
    exact = copy.deepcopy(network).double()
    with torch.no_grad():
        return exact.logits(torch.from_numpy(x).double()).numpy()


def row_logits(session: Session, x: Floats) -> Floats:
    """The logits of a picture, row by row by ONNX Runtime, which must keep the values that it is given."""
    rows = list(run_rows(session, uniform_numbers(0, 1, x.shape[1:3], x.shape[3]), x))
    assert (np.stack([row["y"] for row in rows], axis=1) == x).all()
    return np.stack([row["logits"] for row in rows], axis=1)
