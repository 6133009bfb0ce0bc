"""Networks of the kinds that users bring: strides, skip connections, several outputs, several inputs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM, BoundaryState
from mdlstm_tk.tiling import Stage, TileStages

CELLS: list[dict[str, Any]] = [
    {"cell": "graves"},
    {"cell": "graves", "peephole": True},
    {"cell": "stable", "layer_norm": True},
    {"cell": "leaky"},
    {"cell": "mean"},
    {"cell": "slstm"},
]


class UNet(nn.Module):
    """Channels first: a stride of 2 down, an MDLSTM layer, a stride of 2 up, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.body = MDLSTM(3, 2, directions="all", channels_last=False)
        self.up = nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.up(self.body(self.down(x).relu()))], dim=1))


class ConvStem(nn.Module):
    """A stem as in torchvision, x (N, 3, H, W), before a channels-last layer.

    Args:
        positions: positions of the layer's grid if the head takes them all, so that the network takes one
            grid only; None if it takes their mean.
    """

    def __init__(self, positions: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.layer = MDLSTM(4, 3)
        self.positions = positions
        self.head = nn.Linear(3 * (positions or 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.stem(x).permute(0, 2, 3, 1))
        return self.head(h.flatten(1) if self.positions else h.mean(dim=(1, 2)))


class Pyramid(nn.Module):
    """Maps at two scales that are joined, as in a feature pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.body = nn.Conv2d(2, 4, 3, 2, 1), MDLSTM(4, 4, channels_last=False)
        self.side = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.down(x))
        return self.side(x) + functional.interpolate(h, size=x.shape[2:], mode="nearest")


class Columns(nn.Module):
    """A recogniser: convolutions, a maximum over the rows, and a recurrent layer of torch along the
    columns, of which the outputs and the final state are used.

    Args:
        kind: of the recurrent layer.
        **options: of it.
    """

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
        self.body, self.after = MDLSTM(4, 4, channels_last=False), kind(4, 3, **options)
        self.head = nn.Linear(6 if self.after.bidirectional else 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x)).amax(2).permute(2, 0, 1)
        if self.after.batch_first:
            y, state = self.after(y.transpose(0, 1))
        else:
            y, state = self.after(y)
            y = y.transpose(0, 1)
        h = state[0] if isinstance(state, tuple) else state
        return (self.head(y) + h.mean((0, 2))[:, None, None]).log_softmax(-1)


class WindowedConv(nn.Module):
    """A layer with a window, followed by a convolution without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(1, 4, window=2)
        self.convolution = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.layer(x).movedim(-1, 1)).movedim(1, -1)


class Conditioned(nn.Module):
    """x and two more inputs: numbers z (N, 2), and a class k (N,) which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(2, 3)
        self.shift = nn.Linear(2, 3)
        self.embedding = nn.Embedding(4, 3)

    def forward(self, x: Tensor, z: Tensor, k: Tensor | None = None) -> Tensor:
        y = self.layer(x) + self.shift(z)[:, None, None]
        return y if k is None else y + self.embedding(k)[:, None, None]


class Everything(nn.Module):
    """Further inputs of each type, two of them grids, one of these with its channels first; and outputs one
    of which is an input. Names are those that torch gives to other values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.second = MDLSTM(2, 3), MDLSTM(3, 3, channels_last=False)
        self.shift, self.table = nn.Linear(2, 3), nn.Embedding(4, 3)

    def forward(
        self, x: Tensor, tanh: Tensor, k: Tensor, mask: Tensor, z: Tensor, more: Tensor | None = None
    ) -> dict[str, Tensor]:
        y = self.layer(x) + self.second(z).movedim(1, -1)
        y = y + self.shift(tanh.log())[:, None, None] + self.table(k)[:, None, None]
        return {"y": torch.where(mask[..., None], y, 0), "mean": y.mean((1, 2)).tanh(), "same": tanh}


class Padded(nn.Module):
    """A convolution, which does not know `sizes`; layers with different windows; and another input."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        options: Any = {"channels_last": channels_last}
        self.stem, self.shift = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(2, 1)
        self.fine, self.coarse = MDLSTM(3, 2, **options), MDLSTM(3, 3, window=2, **options)

    def forward(self, x: Tensor, z: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        is_last = self.fine.channels_last
        x = self.stem(x.movedim(-1, 1) if is_last else x)
        x = x.movedim(1, -1) if is_last else x
        fine: Tensor = self.fine(x, sizes)
        shift = self.shift(z)
        return {"fine": fine + shift[..., None, None], "coarse": self.coarse(x, sizes), "shift": shift}


class Step(nn.Module):
    """A row of a grid, given the states above it and to its left: what a sampler calls row after row."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer, self.head = MDLSTM(2, 3, num_layers=2, **options), nn.Linear(3, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        """h, c: (N, layers, W, n), of the row above."""
        above = tuple(
            BoundaryState((h[:, k, :, None], None), (c[:, k, :, None], None))
            for k in range(self.layer.num_layers)
        )
        y, states = self.layer(x, initial_state=above, return_state=True)
        below = [
            torch.stack([getattr(state, name)[0].squeeze(-2) for state in states], dim=1) for name in "hc"
        ]
        return {"y": self.head(y), "h_n": below[0], "c_n": below[1]}


class ManyHeads(nn.Module):
    """Channels first, with several outputs: a map, numbers for the whole sample, and a mask of integers.

    Args:
        container: dict, tuple or list: what they are returned in.
    """

    def __init__(self, container: type = dict) -> None:
        super().__init__()
        self.container = container
        self.layer = MDLSTM(3, 2, directions="all", channels_last=False)
        self.map = nn.Conv2d(8, 2, 1)
        self.numbers = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> object:
        h = self.layer(x)
        outputs = {
            "map": self.map(h),
            "numbers": self.numbers(h.mean(dim=(2, 3))),
            "mask": self.map(h).argmax(1),
        }
        return outputs if self.container is dict else self.container(outputs.values())


class FoldedHeight(nn.Module):
    """A recogniser that folds the height of an image into features, so that it takes one height only."""

    def __init__(self, height: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.layer = MDLSTM(3 * (height // 2), 4, ndim=1, directions="all")
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x).permute(0, 3, 1, 2).flatten(2)))


class Tokens(nn.Module):
    """A grid of indices of a table with 7 rows: integers (N, H, W), or floats (N, H, W, 1)."""

    def __init__(self, last_axis: int) -> None:
        super().__init__()
        self.has_axis = bool(last_axis)
        self.table, self.layer = nn.Embedding(7, 4), MDLSTM(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.table(x[..., 0].long() if self.has_axis else x))


class Function(nn.Module):
    """A layer, and a function of x or of the output.

    Args:
        before, after: the functions.
        **options: of the layer.
    """

    def __init__(self, before: Any = None, after: Any = None, **options: Any) -> None:
        super().__init__()
        self.layer, self.before, self.after = MDLSTM(1, 2, **options), before, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x if self.before is None else self.before(x))
        return y if self.after is None else self.after(y)


class RandomNet(nn.Module):
    """One or two layers with random options, which run in tiles, too. Weights are such that states neither
    vanish nor grow.

    Args:
        seed: of everything that is random.
        ndim: grid axes.
    """

    def __init__(self, seed: int, ndim: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.ndim, self.channels = ndim, int(rng.integers(1, 3))
        self.stages, features = [], self.channels
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
            before = nn.Tanh() if rng.random() < 0.3 else None
            after = nn.Linear(features, 3, bias=bool(rng.random() < 0.7)) if rng.random() < 0.6 else None
            features = 3 if after else features
            self.stages.append(Stage(layer, before, after))
        self.parts = nn.ModuleList(part for stage in self.stages for part in (stage.layer, stage.after))
        self.pool = tuple(d for d in range(ndim) if rng.random() < 0.2)
        self.head = nn.Sequential(nn.Linear(features, 2), nn.Sigmoid()) if rng.random() < 0.6 else None
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.uniform_(parameter, -0.5, 0.5, generator)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage.layer(x if stage.before is None else stage.before(x))
            x = x if stage.after is None else stage.after(x)
        x = x.mean([1 + d for d in self.pool]) if self.pool else x
        return x if self.head is None else self.head(x)

    def tile_stages(self) -> TileStages:
        return TileStages(self.stages, self.pool, self.head)
