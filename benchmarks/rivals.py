"""The layer beside networks that a user would try instead, with equally many parameters.

    python benchmarks/rivals.py                    # takes three minutes on an otherwise idle machine

Every network maps x (N, H, W, C) to features at each position, (N, H, W, ·). All take turns within one
process, on one thread: forward, forward and backward, and their exports under ONNX Runtime, each of which
has to agree with torch.

No network with two-dimensional state spaces is among them: of those that the index had in November 2026,
mamba-ssm and bidirectional-mamba need CUDA, and mambapy, in plain torch, is for sequences.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from contenders import make_step
from measuring import (
    Step,
    argument_parser,
    interleave,
    markdown,
    milliseconds,
    ort_session,
    ratio,
    torch_threads,
)
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.capture import silenced
from mdlstm_tk.training.networks import count_parameters

CHANNELS, UNITS = 3, 32  # C and n of the layer; the widths of the others below give as many parameters
SHAPES = ((1, 64, 64), (8, 64, 64), (1, 256, 256))  # N and the grid
MOST_DIFFERENT = 0.02  # of the numbers of parameters
ATOL = 1e-4  # of an export, in units of the largest absolute output
LAYER = "MD-LSTM"


class RowsAndColumns(nn.Module):
    """Two bidirectional `nn.LSTM`s, one along the rows of x (N, H, W, C), one along its columns."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.rows = nn.LSTM(channels, units, batch_first=True, bidirectional=True)
        self.columns = nn.LSTM(channels, units, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        along_rows = self.rows(x.reshape(batch * height, width, channels))[0]
        turned = x.transpose(1, 2).reshape(batch * width, height, channels)
        along_columns = self.columns(turned)[0].reshape(batch, width, height, -1).transpose(1, 2)
        return torch.cat([along_rows.reshape(batch, height, width, -1), along_columns], -1)


class Convolutions(nn.Module):
    """Seven 3×3 convolutions over x (N, H, W, C), each followed by ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width if k else channels, width, 3, padding=1) for k in range(7)]
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


class PatchAttention(nn.Module):
    """A ViT block: one `nn.TransformerEncoderLayer` over the patches of x (N, H, W, C).

    Positions of patches enter as sines and cosines, which are no parameters. A linear layer turns each
    token into `features` numbers at each position of its patch.
    """

    PATCH = 8

    def __init__(self, channels: int, width: int, features: int) -> None:
        super().__init__()
        self.embed = nn.Linear(self.PATCH**2 * channels, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.unfold = nn.Linear(width, self.PATCH**2 * features)
        self.width, self.features = width, features

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        down, across, patch = height // self.PATCH, width // self.PATCH, self.PATCH
        patches = x.reshape(batch, down, patch, across, patch, channels).transpose(2, 3)
        tokens = self.embed(patches.reshape(batch, down * across, -1)) + self._places(down, across)
        y: Tensor = self.unfold(self.block(tokens))
        y = y.reshape(batch, down, across, patch, patch, self.features).transpose(2, 3)
        return y.reshape(batch, height, width, self.features)

    def _places(self, down: int, across: int) -> Tensor:
        """(down·across, width): a quarter each for sine and cosine of the row and of the column."""
        frequencies = 100.0 ** -torch.linspace(0, 1, self.width // 4)
        rows = (torch.arange(down)[:, None] * frequencies)[:, None].expand(-1, across, -1)
        columns = (torch.arange(across)[:, None] * frequencies)[None].expand(down, -1, -1)
        return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], -1).flatten(0, 1)


# By name: how to make the network, and what a position's output depends on.
NETWORKS = {
    LAYER: (partial(MDLSTM, CHANNELS, UNITS, directions="all"), "whole grid"),
    "2 nn.LSTM": (partial(RowsAndColumns, CHANNELS, 50), "its row and its column"),
    "7 convolutions": (partial(Convolutions, CHANNELS, 28), "15×15 positions"),
    "ViT block": (partial(PatchAttention, CHANNELS, 48, 2), "whole grid, by patches of 8×8"),
}
NETWORK_COLUMNS = ("network", "sees", "features", "parameters")
PASSES = ("forward", "training", "ONNX Runtime")
COLUMNS = ("N, grid, C", "network", *(text for name in PASSES for text in (f"{name} ms", f"÷ {LAYER}")))


def make_networks() -> dict[str, nn.Module]:
    """The networks, after a check that they have equally many parameters."""
    torch.manual_seed(0)
    networks = {name: make().eval() for name, (make, _) in NETWORKS.items()}
    expected = count_parameters(networks[LAYER])
    for name, network in networks.items():
        count = count_parameters(network)
        if abs(count / expected - 1) > MOST_DIFFERENT:
            raise SystemExit(f"{name} has {count} parameters, expected {expected} ± {MOST_DIFFERENT:.0%}")
    return networks


def network_table(networks: Mapping[str, nn.Module]) -> list[list[str]]:
    """The field of view of each network, its features at each position, and its parameters."""
    x = torch.zeros(1, PatchAttention.PATCH, PatchAttention.PATCH, CHANNELS)
    return [
        [name, NETWORKS[name][1], str(network(x).shape[-1]), str(count_parameters(network))]
        for name, network in networks.items()
    ]


def export_all(networks: Mapping[str, nn.Module], x: Tensor, folder: Path) -> Iterator[tuple[str, Path]]:
    """Export every network for inputs like x; the layer in both forms. Yields names and files."""
    for form, suffix in (("unrolled", ""), ("scan", ", scan")):
        path = folder / f"{form}.onnx"
        yield LAYER + suffix, export_onnx(networks[LAYER], path, grid=tuple(x.shape[1:-1]), form=form).path
    for name, network in networks.items():
        if name != LAYER:
            path = folder / f"{name}.onnx"
            copied = copy.deepcopy(network)  # since the exporter replaces the weights of an nn.LSTM
            with silenced():
                torch.onnx.export(copied, (x,), path, dynamo=True, external_data=False, verbose=False)
            yield name, path


def runtime_step(path: Path, x: Tensor, expected: np.ndarray) -> Step:
    """A call of ONNX Runtime on one thread.

    Raises:
        SystemExit: the file does not compute what torch computes.
    """
    session = ort_session(path.read_bytes())
    feeds = {session.get_inputs()[0].name: x.numpy()}
    error = float(np.abs(session.run(None, feeds)[0] - expected).max())
    if not error <= ATOL * float(np.abs(expected).max()):
        raise SystemExit(f"{path.name} differs from torch by {error:.1e}")
    return lambda: session.run(None, feeds)


def measure(networks: Mapping[str, nn.Module], shape: Sequence[int], seconds: float) -> list[list[str]]:
    """The rows of one shape: milliseconds, and ratios to the layer's."""
    x = torch.randn(*shape, CHANNELS)
    with torch_threads(1), tempfile.TemporaryDirectory() as folder:
        with torch.no_grad():
            expected = {name: network(x).numpy() for name, network in networks.items()}
        exported = {
            name: runtime_step(path, x, expected[name.removesuffix(", scan")])
            for name, path in export_all(networks, x, Path(folder))
        }
        passes = [
            {name: make_step(network, x, training) for name, network in networks.items()}
            for training in (False, True)
        ]
        times = [interleave(steps, seconds) for steps in (*passes, exported)]
    rows, (batch, height, width) = [], shape
    for name in exported:
        row = [f"{batch}, {height}x{width}, {CHANNELS}", name]
        for each in times:
            is_there = name in each  # there is one pass of torch for both forms of the layer
            row += [f"{milliseconds(each[name]):.1f}" if is_there else ""]
            row += [f"{ratio(each[name], each[LAYER]):.2f}" if is_there else ""]
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("N", "H", "W"))
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds for each pass of a shape")
    options = parser.parse_args(words)
    networks = make_networks()
    print(markdown(NETWORK_COLUMNS, network_table(networks), 2))
    rows = [row for shape in options.shape or SHAPES for row in measure(networks, shape, options.seconds)]
    print(f"\n{markdown(COLUMNS, rows, 2)}")


if __name__ == "__main__":
    main()
