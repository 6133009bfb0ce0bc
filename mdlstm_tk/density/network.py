"""Density models: networks that give the exact probability of an image, and draw new ones.

The probability of an image is the product of the probabilities of its values, each given all values before
it in reading order: p(x) = Π p(x_i | x_1 … x_{i−1}) (Larochelle & Murray 2011; van den Oord et al. 2016,
arXiv:1601.06759). At one position the channels follow one another, so that green knows red, and blue both.

Notation
    N, (H, W), C   batch, grid, channels
    K              values that a channel can have; level k of a channel is the value k / (K − 1) in [0, 1]
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
    """The four neighbours that come before each position in reading order, zeros outside the grid.

    Args:
        x: (N, H, W, C).

    Returns:
        (N, H, W + 1, 4C): the values to the left, above to the left, above, and above to the right. The
        extra column W holds the context after each row's last pixel; the leftward sweep needs it to pass
        that pixel on.
    """
    x = nn.functional.pad(x, (0, 0, 1, 2, 1, 0))
    above, row, width = x[:, :-1], x[:, 1:], x.shape[2] - 2
    return torch.cat([row[:, :, :width], *(above[:, :, k : k + width] for k in range(3))], dim=-1)


class DensityNet(nn.Module):
    """Base of the networks: a causal body, and a head that predicts one channel after the other.

    Args:
        body: maps x (N, H, W, C) in [−1, 1], 0 outside sizes, and sizes to (N, H, W, F), such that
            no position depends on itself or on what comes after it in reading order.
        features: F.
        channels: C.
        outputs: logits per channel: K, or 1 for K = 2.
        dropout: probability of zeroing a feature of the body in training.
    """

    def __init__(
        self,
        body: nn.Module,
        features: int,
        channels: int,
        outputs: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.body, self.dropout = body, nn.Dropout(dropout)
        self.channels, self.levels = channels, max(outputs, 2)  # C, K
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features + c, features),
                nn.ReLU(),
                nn.Linear(features, outputs),
            )
            for c in range(channels)
        )

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """The log-probability of each value of x, given all values before it, in nats.

        Args:
            x: (N, H, W, C) in [0, 1]; not checked. Each value counts as its nearest level.
            sizes: (N, 2), the valid extents of each sample, as `MDLSTM` takes them. Inside them, the result
                equals that of the sample without padding.

        Returns:
            (N, H, W, C), 0 outside sizes. Its sum is the log-probability of the image.
        """
        check_batched(x, 2)
        if sizes is not None:
            sizes = as_sizes(sizes, x)
            x = fill_padding(x, sizes)
        indices = self._nearest_levels(x)
        logits = self.logits(indices / (self.levels - 1), sizes)
        log_p = logits.log_softmax(-1).gather(-1, indices.long()[..., None]).squeeze(-1)
        return log_p if sizes is None else fill_padding(log_p, sizes)

    def log_prob(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Return the log-probability of each image (N,) in nats, at least in float32; arguments as of
        `forward`.

        Raises:
            InputError: x has another shape, or a value inside sizes is NaN or outside [0, 1].
        """
        check_batched(x, 2)
        _check_levels("x", x if sizes is None else fill_padding(x, as_sizes(sizes, x)))
        log_p: Tensor = self(x, sizes)
        return log_p.to(state_dtype(log_p)).sum((1, 2, 3))

    def logits(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """The logits (N, H, W, C, K) of all levels of each value of x (N, H, W, C), given those before."""
        check_batched(x, 2)
        centered = 2 * x - 1
        if sizes is not None:
            sizes = as_sizes(sizes, x)
            centered = fill_padding(centered, sizes)
        features = self.dropout(self.body(centered, sizes))
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
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw images, one position after the other in reading order.

        A value is the number of levels whose cumulative probability does not exceed a uniform number, so
        equal numbers give equal images, up to rounding.

        Args:
            n: number of images.
            size: (H, W).
            generator: source of the uniform numbers, on the device of the parameters; torch's own if None.
            uniform: (n, H, W, C) numbers in [0, 1) to use in place of the generator.
            given: values in [0, 1] that are not drawn, (n, H, W, C), or (H, W, C) for all images. Each
                counts as its nearest level; a position with NaN in any channel is drawn. Without a mask
                they may have fewer rows: these are the upper rows of the images.
            mask: (n, H, W) or (H, W) bool, True where `given` holds. What is drawn depends on given values
                before it in reading order alone.
            temperature: divides the logits; below 1 the likely values become likelier.

        Returns:
            (n, H, W, C) in [0, 1], in the dtype and on the device of the parameters.

        Raises:
            InputError: arguments have wrong shapes or values, or probabilities hold NaN.
        """
        parameter = next(self.parameters())
        shape = (n, *size, self.channels)
        if min(shape) < 1 or len(size) != 2:
            raise InputError(f"n and size (H, W) must be at least 1, got {n} and {tuple(size)}")
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature}")
        if uniform is None:
            uniform = torch.rand(shape, generator=generator, device=parameter.device)
        elif tuple(uniform.shape) != shape:
            raise InputError(f"uniform must be (n, H, W, C) = {shape}, got shape {tuple(uniform.shape)}")
        elif not ((uniform >= 0) & (uniform < 1)).all():
            raise InputError("uniform must lie in [0, 1), 1 not included")
        x, is_given = _given_values(given, mask, shape)
        uniform, is_given = uniform.to(parameter.device), is_given.to(parameter.device)
        x = self._nearest_levels(x.to(parameter)) / (self.levels - 1)
        dtype = torch.promote_types(x.dtype, torch.float32)  # float16 overflows, and is too coarse for p
        temperature = max(temperature, torch.finfo(dtype).tiny)
        is_known = torch.ones((), dtype=torch.bool, device=parameter.device)
        for row, column, features in self.contexts(x):
            pixel = x[:, row, column]
            for c in range(self.channels):
                logits = self._channel(c, features, pixel).to(dtype)
                # None is above 0, so that the smallest temperature makes -infinity of them, and no NaN.
                p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
                is_known &= p.isfinite().all()
                level = (uniform[:, row, column, c, None] >= p.cumsum(-1)[:, :-1]).sum(-1)
                value = level.to(x) / (self.levels - 1)
                pixel[:, c] = torch.where(is_given[:, row, column], pixel[:, c], value)
        if not is_known:
            raise InputError("the probabilities of the network hold NaN; it diverged")
        return x

    def contexts(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Iterate over the positions of x (n, H, W, C): row, column, and the body's features (n, F).

        The caller must fill x[:, row, column] in place before advancing. This method computes the whole
        grid for each position; networks that can keep their states do less.
        """
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                yield row, column, self.body(2 * x - 1, None)[:, row, column]


def _given_values(
    given: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """x (n, H, W, C), zeros where values are to be drawn, and (n, H, W), True where they are given."""
    _, height, width, _ = shape
    if given is None:
        if mask is not None:
            raise InputError("mask says where values are given, but given is None")
        return torch.zeros(shape), torch.zeros(shape[:3], dtype=torch.bool)
    given_shape, rows = tuple(given.shape), given.shape[-3] if given.dim() in (3, 4) else 0
    if mask is None and 1 <= rows <= height:
        given = nn.functional.pad(given, (0, 0, 0, 0, 0, height - rows))
        mask = torch.arange(height, device=given.device)[:, None].expand(height, width) < rows
    if tuple(given.shape) not in (shape, shape[1:]):
        raise InputError(
            f"given must be (n, H, W, C) = {shape} or (H, W, C), or have fewer rows and no mask, "
            f"got shape {given_shape}"
        )
    assert mask is not None  # a `given` without a mask has rows, and so gets one above
    if tuple(mask.shape) not in (shape[:3], shape[1:3]) or mask.dtype != torch.bool:
        mask_text = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise InputError(f"mask must be bool of shape (n, H, W) = {shape[:3]} or (H, W), got {mask_text}")
    mask = mask.expand(shape[:3]) & ~given.expand(shape).isnan().any(-1)
    values = given.expand(shape).masked_fill(~mask[..., None], 0)
    _check_levels("given", values)
    return values, mask


def _check_levels(name: str, x: Tensor) -> None:
    """Refuse NaN and values outside [0, 1]."""
    if torch.compiler.is_compiling():  # values are not known while a graph is captured
        return
    if x.isnan().any():
        raise InputError(f"{name} holds NaN, expected values in [0, 1]")
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 1.0)
    if low < 0 or high > 1:
        raise InputError(
            f"{name} must lie in [0, 1], got values from {low:g} to {high:g}; divide bytes by 255"
        )
