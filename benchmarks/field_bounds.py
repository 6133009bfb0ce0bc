"""Print the lower bounds on the error in predicting a Gaussian field, as in docs/results.md.

    python benchmarks/field_bounds.py               # fields of 32×32; takes a minute

The right neighbour of a position and the values that a network has seen are jointly Gaussian. The smallest
possible error is therefore the conditional variance, the Schur complement of the covariance of the seen
values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from measuring import argument_parser
from scipy.linalg import cho_factor, cho_solve

from mdlstm_tk.data.builtin.gaussian_field import GaussianField

# Times the variance. The covariance is singular, since a field has fewer waves than positions.
JITTER = 1e-9


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--extent", type=int, default=32)
    side = parser.parse_args(words).extent
    row, column = np.divmod(np.arange(side * side), side)
    fields = {  # (i, j) → which positions a network has seen there, (side²,)
        "the row so far": lambda i, j: (i == row) & (j >= column),
        "all above and to the left": lambda i, j: (i >= row) & (j >= column),
        "all before in reading order": lambda i, j: side * i + j >= side * row + column,
    }
    for anisotropic in (False, True):
        correlation = np.fft.ifft2(GaussianField((side, side), anisotropic).amplitude ** 2).real
        correlation /= correlation[0, 0]
        covariance = correlation[row[:, None] - row, column[:, None] - column]
        for name, field in fields.items():
            error = 0.0
            for i, j in np.ndindex(side, side - 1):  # the target in the last column is 0, without an error
                seen, target = np.flatnonzero(field(i, j)), side * i + j + 1
                covariance_seen = covariance[np.ix_(seen, seen)] + JITTER * np.eye(len(seen))
                with_target = covariance[seen, target]
                error += 1 - with_target @ cho_solve(cho_factor(covariance_seen), with_target)
            kind = "anisotropic" if anisotropic else "isotropic"
            print(f"{kind}, {name}: {error / side**2:.5f}", flush=True)


if __name__ == "__main__":
    main()
