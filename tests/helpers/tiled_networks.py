"""Random networks that can run in tiles, and what a network in tiles is compared with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.tiling import Stage, TileStages

CELLS: list[dict[str, Any]] = [
    {"cell": "graves"},
    {"cell": "graves", "peephole": True},
    {"cell": "stable", "layer_norm": True},
    {"cell": "leaky"},
    {"cell": "mean"},
    {"cell": "slstm"},
]


class RandomNet(nn.Module):
    """Stages with random options. Weights are such that states neither vanish nor grow."""

    def __init__(self, seed: int, ndim: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.ndim, self.channels = ndim, int(rng.integers(1, 3))
        self.layers, self.befores, self.afters = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        features = self.channels
        for k in range(int(rng.integers(1, 3))):
            directions = list(product((1, -1), repeat=ndim))
            chosen = rng.permutation(len(directions))[: rng.integers(1, 4)]
            cell = CELLS[rng.integers(len(CELLS))]
            # Layer norm over two or three units would amplify rounding errors a hundred times.
            units = int(rng.integers(2, 4)) + 3 * ("layer_norm" in cell)
            layer = MDLSTM(
                features,
                units,
                ndim=ndim,
                num_layers=int(rng.integers(1, 3)) if k == 0 else 1,
                directions=[directions[i] for i in chosen],
                merge=rng.choice(["concat", "sum", "mean"]),  # type: ignore[arg-type]
                window=tuple(rng.integers(1, 3, ndim).tolist()) if rng.random() < 0.5 else 1,
                backend="torch",  # which compiles nothing
                **cell,
            )
            features = layer.output_size
            self.layers.append(layer)
            self.befores.append(nn.Tanh() if rng.random() < 0.3 else nn.Identity())
            after = nn.Linear(features, 3, bias=bool(rng.random() < 0.7)) if rng.random() < 0.6 else None
            features = 3 if after else features
            self.afters.append(after or nn.Identity())
        self.pool = tuple(d for d in range(ndim) if rng.random() < 0.2)
        self.head = nn.Sequential(nn.Linear(features, 2), nn.Sigmoid()) if rng.random() < 0.6 else None
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.uniform_(parameter, -0.5, 0.5, generator)

    def forward(self, x: Tensor) -> Tensor:
        for before, layer, after in zip(self.befores, self.layers, self.afters, strict=True):
            x = after(layer(before(x)))
        x = x.mean([1 + d for d in self.pool]) if self.pool else x
        return x if self.head is None else self.head(x)

    def tile_stages(self) -> TileStages:
        parts = zip(self.layers, self.befores, self.afters, strict=True)
        stages = [Stage(a, _unless_identity(b), _unless_identity(c)) for a, b, c in parts]
        return TileStages(stages, self.pool, self.head)

    def random_grid(self, rng: np.random.Generator) -> tuple[int, ...]:
        return tuple(rng.integers(1, {1: 60, 2: 20, 3: 8}[self.ndim], self.ndim).tolist())


def _unless_identity(module: nn.Module) -> Any:
    return None if isinstance(module, nn.Identity) else module


def exact(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The network on the whole grid in float64, with the fast backends; see also `float64_reference`."""
    double = network.double().eval()

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        return double(torch.from_numpy(x).double()).numpy()

    return run
