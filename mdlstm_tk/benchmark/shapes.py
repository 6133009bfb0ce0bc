"""The shapes that are measured, and the number of floating-point operations that they take."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from mdlstm_tk._util.sizes import format_size, parse_size
from mdlstm_tk.errors import InputError


@dataclass(frozen=True)
class Shape:
    """One layer and its input: N samples of a grid with C features, and n hidden units.

    Attributes:
        batch: N, the number of samples.
        grid: extents of the grid.
        channels: C, the number of features at each position.
        units: n, the number of hidden units.
        options: further arguments of `MDLSTM`.
    """

    batch: int
    grid: tuple[int, ...]
    channels: int
    units: int
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape from text such as "16,32x32,1,64".

        Raises:
            InputError: the text is not N,GRID,C,n.
        """
        words = [word.strip() for word in text.split(",")]
        if len(words) != 4 or not all(word.isdecimal() for word in (words[0], *words[2:])):
            raise InputError(f"invalid shape '{text}'; expected N,GRID,C,n such as 16,32x32,1,64")
        batch, grid, channels, units = words
        ndim = max(2, grid.count("x") + 1)
        shape = cls(int(batch), parse_size(grid, ndim), int(channels), int(units))
        if min(shape.batch, shape.channels, shape.units) < 1:
            raise InputError(f"invalid shape '{text}'; N, C and n must be at least 1")
        return shape

    def __str__(self) -> str:
        extras = "".join(f", {name}={value}" for name, value in self.options)
        return f"{self.batch}, {format_size(self.grid)}, {self.channels}, {self.units}{extras}"

    @property
    def num_directions(self) -> int:
        return 2 ** len(self.grid) if dict(self.options).get("directions") == "all" else 1

    @property
    def gate_dim(self) -> int:
        """G·n, the length of a position's pre-activations."""
        return (3 + len(self.grid)) * self.units

    @property
    def positions(self) -> int:
        """N·P, the positions of all samples."""
        return self.batch * prod(self.grid)

    @property
    def wavefronts(self) -> int:
        """T, the steps of a sweep."""
        return sum(self.grid) - len(self.grid) + 1

    def flops(self, training: bool) -> int:
        """Floating-point operations in the matrix products; training takes three times as many."""
        inputs = self.channels + len(self.grid) * self.units
        forward = 2 * self.num_directions * self.positions * inputs * self.gate_dim
        return forward * (3 if training else 1)

    def lstm_flops(self, training: bool) -> int:
        """Floating-point operations of `torch.nn.LSTM` over the same number of positions."""
        inputs = self.channels + self.units
        forward = 2 * self.num_directions * self.positions * inputs * 4 * self.units
        return forward * (3 if training else 1)


SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(4, (64, 64), 16, 32),
    Shape(1, (128, 128), 1, 32),
    Shape(1, (16, 16, 16), 1, 32),
    Shape(16, (32, 32), 1, 64, (("directions", "all"),)),
    Shape(16, (32, 32), 1, 64, (("layer_norm", True),)),
    Shape(16, (32, 32), 1, 64, (("recompute", True),)),
    Shape(1, (32, 32), 1, 32),
    Shape(1, (32, 32), 1, 32, (("directions", "all"),)),
    Shape(1, (512, 512), 1, 32),
)
