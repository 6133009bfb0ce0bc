"""The loss of texts: connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mdlstm_tk.data.spec import Batch
from mdlstm_tk.kinds.sums import targets_like
from mdlstm_tk.runtime.shapes import step_width


def line_steps(batch: Batch, steps: int, columns: int | None = None) -> npt.NDArray[np.int64]:
    """Return how many of a recogniser's `steps` lie inside each line of a batch, (N,); the others see
    padding. A step covers `columns` of x; None: the number follows from the width of the batch."""
    width = batch.x.shape[2]
    widths = np.full(len(batch.x), width) if batch.sizes is None else batch.sizes[:, 1]
    covered = np.ceil(widths / (columns or step_width(steps, width))).astype(np.int64)
    return np.minimum(covered, steps)


def ctc_loss(logits: Tensor, batch: Batch, columns: int | None) -> Tensor:
    """The mean over the samples of the CTC loss, divided by the length of the text. It is 0 for samples
    without room for their text, which count in the mean: so parts of a batch have a mean that is theirs.

    Args:
        logits: (N, T, 1 + characters).
        batch: holds the texts, (N, L), which end with zeros.
        columns: of x, under one of the T steps; None if the network does not say it.
    """
    y = targets_like(logits, batch)
    lengths = torch.from_numpy(line_steps(batch, logits.shape[1], columns)).to(y.device)
    log_probabilities = logits.log_softmax(-1).transpose(0, 1)  # (T, N, 1 + characters)
    characters = (y > 0).sum(1)
    losses = F.ctc_loss(log_probabilities, y, lengths, characters, reduction="none", zero_infinity=True)
    return (losses / characters.clamp(min=1)).mean()
