"""The loss of texts: connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn import functional as F

from mdlstm_tk.data.task import Batch
from mdlstm_tk.runtime.shapes import step_width


def line_steps(batch: Batch, steps: int, columns: int | None = None) -> Tensor:
    """How many of a recogniser's `steps` lie inside each line of a batch of tensors, (N,); the others see
    padding. A step covers `columns` of x; None: the number follows from the width of the batch."""
    x, _, sizes = cast("tuple[Tensor, Tensor, Tensor | None]", batch)
    width = x.shape[2]
    widths = x.new_full((len(x),), width) if sizes is None else sizes[:, 1]
    covered = (widths.double() / (columns or step_width(steps, width))).ceil().long()
    return covered.clamp(max=steps)


def ctc_loss(logits: Tensor, batch: Batch, columns: int | None) -> Tensor:
    """The mean over the samples of the CTC loss, divided by the length of the text. It is 0 for samples
    without room for their text, which count in the mean: so parts of a batch have a mean that is theirs.

    Args:
        logits: (N, T, 1 + characters).
        batch: of tensors; holds the texts, (N, L), which end with zeros.
        columns: of x, under one of the T steps; None if the network does not say it.
    """
    y = cast("Tensor", batch.y)
    lengths, characters = line_steps(batch, logits.shape[1], columns), (y > 0).sum(1)
    log_probabilities = logits.log_softmax(-1).transpose(0, 1)  # (T, N, 1 + characters)
    losses = F.ctc_loss(log_probabilities, y, lengths, characters, reduction="none", zero_infinity=True)
    return (losses / characters.clamp(min=1)).mean()


def has_room(batch: Batch, steps: int, columns: int | None) -> Tensor:
    """True for each sample (N,) whose text CTC can spell: with a step for each character, and a blank
    between two equal ones."""
    y = cast("Tensor", batch.y)
    repeats = ((y[:, 1:] == y[:, :-1]) & (y[:, 1:] > 0)).sum(1)
    return (y > 0).sum(1) + repeats <= line_steps(batch, steps, columns)
