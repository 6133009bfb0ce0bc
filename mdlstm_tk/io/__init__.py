"""Files: found, read and written whole or not at all; images as networks take them; what models say of
themselves.

Training, reports and inference all read a file here, so that they see the same numbers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]
STDIO = "-"  # standard input, or standard output
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
READABLE = (".npy", ".npz", ".csv", *IMAGE_SUFFIXES)
TILED_SUFFIX = ".tiles"  # of tiled exports
