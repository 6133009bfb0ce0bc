"""Print the lower bounds on the error in predicting a Gaussian field, as in docs/tasks/gaussian-field.md.

The right neighbour of a position and the values that a network has seen are jointly Gaussian. The smallest
possible error is therefore the conditional variance, the Schur complement of the covariance of the seen
values. For a field of 32×32 this takes a minute.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mdlstm_tk.data import GaussianField

SIDE = 32
JITTER = (
    1e-9  # times the variance; the covariance is singular, since a field has fewer waves than positions
)
ROW, COLUMN = np.divmod(np.arange(SIDE * SIDE), SIDE)
RECEPTIVE_FIELDS = {  # (row, column) → which positions a network has seen there, (SIDE²,)
    "the row so far": lambda i, j: (i == ROW) & (j >= COLUMN),
    "all above and to the left": lambda i, j: (i >= ROW) & (j >= COLUMN),
    "all before in reading order": lambda i, j: SIDE * i + j >= SIDE * ROW + COLUMN,
}


def main() -> None:
    for anisotropic in (False, True):
        correlation = np.fft.ifft2(GaussianField((SIDE, SIDE), anisotropic).amplitude ** 2).real
        correlation /= correlation[0, 0]
        covariance = correlation[ROW[:, None] - ROW, COLUMN[:, None] - COLUMN]
        for name, receptive_field in RECEPTIVE_FIELDS.items():
            error = 0.0
            for i, j in np.ndindex(SIDE, SIDE - 1):  # the target in the last column is 0, without an error
                seen, target = np.flatnonzero(receptive_field(i, j)), SIDE * i + j + 1
                covariance_seen = covariance[np.ix_(seen, seen)] + JITTER * np.eye(len(seen))
                with_target = covariance[seen, target]
                error += 1 - with_target @ cho_solve(cho_factor(covariance_seen), with_target)
            kind = "anisotropic" if anisotropic else "isotropic"
            print(f"{kind}, {name}: {error / SIDE**2:.5f}", flush=True)


if __name__ == "__main__":
    main()
