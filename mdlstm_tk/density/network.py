"""Density models: networks that give the exact probability of an image, and draw new ones.

The probability of an image is the product of the probabilities of its values, each given all values before
it in reading order: p(x) = Π p(x_i | x_1 … x_{i−1}) (Larochelle & Murray 2011; van den Oord et al. 2016,
arXiv:1601.06759). At one position the channels follow one another, so that green knows red, and blue both.

Notation
    N, (H, W), C   batch, grid, channels
    K              levels of a channel; level k is the value k / (K − 1) in [0, 1]
    F              features of the body's output
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import state_dtype
from mdlstm_tk.models.blocks import check_batched, fill_padding


def neighbours(x: Tensor) -> Tensor:
    """The four neighbours of each position that come before it: left, above to the left, above, and above
    to the right; zeros outside the grid.

    Args:
        x: (N, H, W, C).

    Returns:
        (N, H, W + 1, 4C). The further column holds the context after each row's last pixel, which the
        leftward sweep needs to pass that pixel on.
    """
    x = nn.functional.pad(x, (0, 0, 1, 2, 1, 0))
    above, row, width = x[:, :-1], x[:, 1:], x.shape[2] - 2
    return torch.cat([row[:, :, :width], *(above[:, :, k : k + width] for k in range(3))], dim=-1)


class DensityNet(nn.Module):
    """A causal body, and a head that predicts one channel after the other.

    Args:
        body: maps x (N, H, W, C) in [−1, 1], 0 outside sizes, and sizes to (N, H, W, F), such that no
            position depends on itself or on what comes after it in reading order.
        features: F.
        channels: C.
        outputs: logits of a channel: K, or 1 for K = 2.
        dropout: probability of zeroing a feature of the body in training.
    """

    def __init__(
        self, body: nn.Module, features: int, channels: int, outputs: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.body, self.dropout = body, nn.Dropout(dropout)
        self.channels, self.levels = channels, max(outputs, 2)  # C, K
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(features + c, features), nn.ReLU(), nn.Linear(features, outputs))
            for c in range(channels)
        )

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """The log-probability of each value of x, given all values before it, in nats.

        Args:
            x: (N, H, W, C) in [0, 1], which is not checked. Each value counts as its nearest level.
            sizes: (N, 2), the valid extents of each sample, as `MDLSTM` takes them.

        Returns:
            (N, H, W, C), 0 outside sizes. Its sum is the log-probability of the image.
        """
        check_batched(x, 2)
        if sizes is not None:
            sizes = as_sizes(sizes, x)
            x = fill_padding(x, sizes)
        levels = self._nearest_levels(x)
        logits = self.logits(levels / (self.levels - 1), sizes)
        log_p = logits.log_softmax(-1).gather(-1, levels.long()[..., None]).squeeze(-1)
        return log_p if sizes is None else fill_padding(log_p, sizes)

    def log_prob(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """The log-probability of each image (N,) in nats, at least in float32; arguments as of `forward`.

        Raises:
            InputError: a value inside sizes is NaN or outside [0, 1].
        """
        check_batched(x, 2)
        _check_unit("x", x if sizes is None else fill_padding(x, as_sizes(sizes, x)))
        log_p: Tensor = self(x, sizes)
        return log_p.to(state_dtype(log_p)).sum((1, 2, 3))

    def logits(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """The logits (N, H, W, C, K) of all levels of each value of x (N, H, W, C), given those before."""
        check_batched(x, 2)
        centred = 2 * x - 1
        if sizes is not None:
            sizes = as_sizes(sizes, x)
            centred = fill_padding(centred, sizes)
        features = self.dropout(self.body(centred, sizes))
        return torch.stack([self._channel(c, features, x) for c in range(self.channels)], dim=-2)

    def _nearest_levels(self, x: Tensor) -> Tensor:
        """The numbers of the levels, 0 … K − 1, that are nearest to values in [0, 1]."""
        return (x * (self.levels - 1)).round().clamp(0, self.levels - 1)

    def _channel(self, c: int, features: Tensor, x: Tensor) -> Tensor:
        """The logits (…, K) of channel c, from features (…, F) and the first c channels of x (…, C)."""
        logits: Tensor = self.heads[c](torch.cat([features, 2 * x[..., :c] - 1], dim=-1))
        # A single logit is white's; black's is 0.
        return torch.cat([torch.zeros_like(logits), logits], dim=-1) if logits.shape[-1] == 1 else logits

    @torch.no_grad()
    def sample(
        self,
        n: int,
        size: tuple[int, int],
        *,
        uniform: Tensor | None = None,
        given: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw images, one position after the other in reading order.

        Args:
            n: number of images.
            size: (H, W).
            uniform: (n, H, W, C) numbers in [0, 1) that decide the images: a value is the number of levels
                whose cumulative probability does not exceed its number. None: random ones.
            given: (h, W, C) or (n, h, W, C), values in [0, 1] of the upper rows that are not drawn. A
                position with NaN in any channel is drawn; it depends on the values before it alone.
            temperature: divides the logits; below 1 the likely values become likelier.

        Returns:
            (n, H, W, C) in [0, 1], in the dtype and on the device of the parameters.

        Raises:
            InputError: `given` does not fit or leaves nothing to draw, temperature is not positive, or
                probabilities hold NaN.
        """
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature}")
        parameter, shape = next(self.parameters()), (n, *size, self.channels)
        dtype = state_dtype(parameter)  # 16 bits overflow, and are too coarse for probabilities
        uniform = (torch.rand(shape) if uniform is None else uniform).to(parameter.device)
        x = torch.full(shape, torch.nan, dtype=parameter.dtype, device=parameter.device)
        if given is not None:
            if given.shape[-2:] != x.shape[-2:] or not 1 <= given.shape[-3] <= size[0]:
                expected = f"(h, W, C) = (1 to {size[0]}, {size[1]}, {self.channels})"
                raise InputError(f"given has shape {tuple(given.shape)}, expected {expected}")
            x[:, : given.shape[-3]] = given.to(x)
        is_given = ~x.isnan().any(-1)  # (n, H, W)
        if is_given.all():
            raise InputError(
                "all of the image is given; give its upper rows, or NaN where it is to be drawn"
            )
        x = x.masked_fill(~is_given[..., None], 0)
        _check_unit("given", x)
        x = self._nearest_levels(x) / (self.levels - 1)
        for row, column, features in self.contexts(x):
            pixel = x[:, row, column]
            for c in range(self.channels):
                logits = self._channel(c, features, pixel).to(dtype)
                # None is above 0, so that a low temperature makes -infinity of them, and no NaN.
                p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
                level = (uniform[:, row, column, c, None] >= p.cumsum(-1)[:, :-1]).sum(-1)
                drawn = torch.where(p.isfinite().all(-1), level.to(x) / (self.levels - 1), torch.nan)
                pixel[:, c] = torch.where(is_given[:, row, column], pixel[:, c], drawn)
        if x.isnan().any():
            raise InputError("the probabilities of the network hold NaN; it diverged")
        return x

    def contexts(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """The positions of x (n, H, W, C) in reading order: row, column, and the body's features (n, F).

        The caller must fill x[:, row, column] in place before it goes on. This method computes the whole
        grid for each position; networks that can keep their states do less.
        """
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                yield row, column, self.body(2 * x - 1, None)[:, row, column]


def _check_unit(name: str, x: Tensor) -> None:
    """Refuse NaN and values outside [0, 1], which would count as black or white."""
    if not torch.compiler.is_compiling() and not ((x >= 0) & (x <= 1)).all():
        low, high = float(x.min()), float(x.max())
        raise InputError(
            f"{name} must lie in [0, 1], got values from {low:g} to {high:g}; divide bytes by 255"
        )
