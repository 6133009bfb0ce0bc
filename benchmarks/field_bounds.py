"""Print how well a Gaussian field can be predicted at best: the table of docs/tasks/gaussian-field.md.

A cell's right neighbour and what was seen are jointly Gaussian, so that the variance left is the Schur
complement of what was seen in their covariance. Of 32×32 cells it takes a minute.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mdlstm_tk.data import GaussianField

SIDE = 32
JITTER = 1e-9  # of a cell's variance: fields have fewer waves than cells
ROW, COLUMN = np.divmod(np.arange(SIDE * SIDE), SIDE)
SEEN = {
    "the row so far": lambda i, j: (i == ROW) & (j >= COLUMN),
    "all above and to the left": lambda i, j: (i >= ROW) & (j >= COLUMN),
    "all before in reading order": lambda i, j: SIDE * i + j >= SIDE * ROW + COLUMN,
}

for anisotropic in (False, True):
    correlation = np.fft.ifft2(GaussianField((SIDE, SIDE), anisotropic).amplitude ** 2).real
    correlation /= correlation[0, 0]
    covariance = correlation[ROW[:, None] - ROW, COLUMN[:, None] - COLUMN]
    for name, mask in SEEN.items():
        left = 0.0  # the last column's target is 0, which anybody can predict
        for i, j in np.ndindex(SIDE, SIDE - 1):
            seen, target = np.flatnonzero(mask(i, j)), SIDE * i + j + 1
            known = covariance[np.ix_(seen, seen)] + JITTER * np.eye(len(seen))
            with_target = covariance[seen, target]
            left += 1 - with_target @ cho_solve(cho_factor(known), with_target)
        kind = "anisotropic" if anisotropic else "isotropic"
        print(f"{kind}, {name}: {left / SIDE**2:.5f}", flush=True)
