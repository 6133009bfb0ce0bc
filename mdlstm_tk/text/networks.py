"""Networks that read texts: an encoder with a linear head, and a network for lines of handwriting, with
convolutions, an MD-LSTM, and LSTMs along columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, as_sizes, valid_mask
from mdlstm_tk.inputs import state_dtype
from mdlstm_tk.layer import MDLSTM, Directions
from mdlstm_tk.models.blocks import check_batched, fill_padding, sizes_in_windows
from mdlstm_tk.models.heads import EncoderNet
from mdlstm_tk.tiling.stages import TileStages

BLANK_MARGIN = 100.0  # how far the logit of the blank exceeds all others after the end of a text
CONVOLUTIONS = ((24, 2, 0), (48, 2, 0), (64, 2, 1), (96, 1, 1))  # features, stride, residual ones after it
ROWS = 4  # that a window of the MD-LSTM joins
MIN_STD = 1e-3  # of the pixels of a line, in units of the input: an empty line stays empty


class TextRecognizer(EncoderNet):
    """Predicts one text per sample (Graves & Schmidhuber 2009): columns are averaged to steps of CTC.

    Output 0 is the blank. After the end of a sample the blank is nearly certain, so that neither the loss
    nor the decoder needs to know the lengths.
    """

    default_windows = ((2, 2), (2, 1))

    @property
    def columns_per_step(self) -> int:
        """Columns of x under one step of the output."""
        return self.stride[1]

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Map x (N, H, W, C) to logits (N, T, 1 + characters), T the width of the encoder's output."""
        y, extents = self.encoder(x, sizes)
        if extents is None:
            logits: Tensor = self.head(y.mean(1))
            return logits
        return end_texts(self.head(y.sum(1) / extents[:, :1, None]), extents[:, 1:])

    def tile_stages(self) -> TileStages:
        """The network as it runs in tiles, see `Encoder.tile_stages`."""
        return TileStages(self.encoder.tile_stages(), pool=(0,), head=self.head)


def end_texts(logits: Tensor, lengths: Tensor | None) -> Tensor:
    """Make the blank nearly certain in logits (N, T, 1 + characters) after the lengths (N, 1) of texts."""
    if lengths is None:
        return logits
    blank = logits.new_zeros(logits.shape[-1])
    blank[1:] = -BLANK_MARGIN
    return fill_padding(logits, lengths, blank)


class Convolution(nn.Module):
    """A convolution, batch normalisation and rectification, without regard to padding: in training, mean
    and deviation are those of the valid positions alone. A `residual` one adds x before the last step."""

    def __init__(
        self, channels: int, features: int, kernel: int = 3, stride: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.residual = stride, residual
        self.convolution = nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(features, momentum=0.02)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map x (N, C, H, W), 0 outside sizes (N, 2), to y (N, F, ⌈H/stride⌉, ⌈W/stride⌉) and its sizes.

        A sample is seen as if zeros surrounded it, whether it is padded or not.
        """
        y = self.convolution(x)
        sizes = sizes_in_windows(sizes, (self.stride, self.stride))
        masks = sizes is not None and not self.training
        y = self.norm(y) if sizes is None or masks else normalise_valid(self.norm, y, sizes)
        y = (y + x if self.residual else y).relu()
        return y * valid_mask(y.shape[2:], sizes)[:, None] if sizes is not None and masks else y, sizes


def normalise_valid(norm: nn.BatchNorm2d, x: Tensor, sizes: Tensor) -> Tensor:
    """Normalise x (N, C, h, w) inside sizes (N, 2) in training, as if there were nothing else; 0 outside.

    A rectification must follow, whose derivative is 0 outside. x becomes 0 there.
    """
    apply, statistics = cast("Any", _Normalisation.apply), cast("Any", norm)
    with torch.no_grad():  # x is the output of a convolution, whose derivative does not depend on it
        clear_padding(x, sizes)
    y, mean, variance, count = apply(x, norm.weight, norm.bias, sizes, norm.eps)
    with torch.no_grad():
        statistics.running_mean.lerp_(mean, norm.momentum)
        statistics.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), norm.momentum)
        statistics.num_batches_tracked += 1
    return cast("Tensor", y)


class _Normalisation(torch.autograd.Function):
    """Batch normalisation by sums over all positions, of which those outside sizes are 0.

    Gathering the valid positions, and scattering the results, takes longer than all sums together.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, sizes: Tensor, eps: float) -> Any:
        """y like x, and the mean (C,), the biased variance (C,) and the number of valid positions."""
        count, zeros = sizes.prod(1).sum().to(bias.dtype), torch.zeros_like(bias)
        share = x.numel() / x.shape[1] / count  # of all positions to the valid ones
        # The moments of all positions; without the zeros there are fewer, and they are farther from 0.
        mean, variance = torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
        mean, variance = mean * share, variance * share - (mean * share).square() * (1 - 1 / share)
        y = clear_padding(nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps), sizes)
        ctx.save_for_backward(x, weight, sizes, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        """With x̂ = (x − mean) / deviation: dx = weight / deviation · (dy − (Σ dy + x̂ Σ dy x̂) / count)."""
        x, weight, sizes, mean, variance, count = ctx.saved_tensors
        own = (x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(dy, *own)
        factor = weight * (variance + ctx.eps).rsqrt() / count
        dx -= nn.functional.batch_norm(x, mean, variance, factor * d_weight, factor * d_bias, eps=ctx.eps)
        return clear_padding(dx, sizes), d_weight, d_bias, None, None


def clear_padding(x: Tensor, sizes: Tensor) -> Tensor:
    """Make x (N, C, h, w) 0 outside sizes (N, 2), in place."""
    if sizes.is_cuda:  # reading them would wait for the GPU
        return x.masked_fill_(~valid_mask(x.shape[2:], sizes)[:, None], 0)
    for sample, (height, width) in zip(x, sizes.tolist(), strict=True):  # a mask would touch all positions
        sample[:, height:] = 0
        sample[:, :, width:] = 0
    return x


def stack_convolutions(channels: int, layers: Sequence[tuple[int, int, int]]) -> nn.ModuleList:
    """Convolutions one after the other, the first of 5×5 and the others of 3×3.

    Args:
        channels: C of x.
        layers: features and stride of a convolution, and the number of residual ones after it.
    """
    convolutions = nn.ModuleList()
    features = (channels, *(count for count, _, _ in layers))
    for (before, count), (_, stride, residual) in zip(pairwise(features), layers, strict=True):
        kernel = 3 if convolutions else 5
        convolutions.append(Convolution(before, count, kernel, stride))
        for _ in range(residual):
            convolutions.append(Convolution(count, count, residual=True))
    return convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class LineRecognizer(nn.Module):
    """Predicts the text of a line, of any height and width.

    Each line is standardised by its own mean and deviation, so that paper and ink need not be alike.
    Convolutions make features of 8×8 pixels, an MD-LSTM in all directions joins them over windows of
    rows, the maximum over the rows is taken, and bidirectional LSTMs run along the columns to the logits.
    Output 0 is the blank, which is nearly certain after the end of a sample, as in `TextRecognizer`.

    In training there are two predictions. The second one, from the convolutions alone, lets them learn
    before the recurrent layers do (the shortcut of Retsinas et al. 2022, arXiv:2404.11339); it is not
    exported.

    Args:
        channels: C of x.
        outputs: the blank and the characters.
        hidden: n, units of each direction of the MD-LSTM; the layers along columns have twice as many.
        layers: number of layers along columns.
        cell, layer_norm, directions: as in `MDLSTM`; the last one is of the MD-LSTM alone.
        dropout: probability of zeroing an input of the layers along columns and of the head in training.

    Attributes:
        stride, columns_per_step: positions of x, along both axes and the second, under a step of y.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 48,
        layers: int = 1,
        cell: str = "stable",
        directions: Directions = "all",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"cell": cell, "layer_norm": layer_norm}
        self.convolutions = stack_convolutions(channels, CONVOLUTIONS)
        features = CONVOLUTIONS[-1][0]
        self.shortcut = nn.Conv1d(features, outputs, 3, padding=1)
        self.grid = MDLSTM(features, hidden, directions=directions, window=(ROWS, 1), **options)
        self.columns = MDLSTM(
            self.grid.output_size,
            2 * hidden,
            ndim=1,
            num_layers=layers,
            directions="all",
            dropout=dropout if layers > 1 else 0.0,
            **options,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.columns.output_size, outputs)
        columns = prod(stride for _, stride, _ in CONVOLUTIONS)
        self.stride = (ROWS * columns, columns)
        self.columns_per_step = columns

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Map x (N, H, W, C) to logits (N, T, 1 + characters), T = ⌈W / 8⌉; in training also to a second
        prediction of this shape.
        """
        check_batched(x, 2)
        valid = None if sizes is None else as_sizes(sizes, x)
        x = standardise(x, valid).permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x, valid = convolution(x, valid)
        y = self.grid(x.permute(0, 2, 3, 1), valid)
        in_windows = sizes_in_windows(valid, (ROWS, 1))
        columns = None if in_windows is None else in_windows[:, 1:]
        if in_windows is not None:
            y = fill_padding(y, in_windows, -torch.inf)
        y = self.columns(self.dropout(y.amax(1)), columns)
        logits = end_texts(self.head(self.dropout(y)), columns)
        if not self.training:
            return logits
        return logits, end_texts(self.shortcut(x.amax(2)).transpose(1, 2), columns)


def standardise(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Subtract the mean of each sample of x (N, H, W, C), and divide by its deviation; 0 outside sizes,
    whatever x holds there. The numbers of pixels and their sums exceed the range of float16."""
    dtype, x = x.dtype, x.to(state_dtype(x))
    if sizes is None:
        x = x - x.mean((1, 2), keepdim=True)
        variance = x.square().mean((1, 2), keepdim=True)
    else:
        count = sizes.prod(1).to(x.dtype)[:, None, None, None]
        x = fill_padding(x, sizes)
        x = fill_padding(x - x.sum((1, 2), keepdim=True) / count, sizes)
        variance = x.square().sum((1, 2), keepdim=True) / count
    # The square root of 0 has no derivative, and that of the smallest number here adds nothing.
    return (x / (variance.clamp(min=1e-30).sqrt() + MIN_STD)).to(dtype)
