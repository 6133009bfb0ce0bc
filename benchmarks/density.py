"""The time that a density model takes to draw pictures, with kept states and without.

python benchmarks/density.py    # 64 pictures of 28×28; a minute
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from measuring import argument_parser, interleave, markdown, milliseconds

from mdlstm_tk.density import DensityNet, PixelNet
from mdlstm_tk.density.sampling import uniform_numbers


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--extent", type=int, default=28, help="of a picture")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, size = PixelNet(1, 1, hidden=32, layers=2).eval(), (options.extent, options.extent)
    numbers = torch.from_numpy(uniform_numbers(0, options.pictures, size, 1))

    def draw() -> torch.Tensor:
        return network.sample(options.pictures, size, uniform=numbers)

    kept = milliseconds(interleave({"": draw}, 0, clock=time.process_time)[""]) / 1000
    drawn = draw()
    network.contexts = lambda x: DensityNet.contexts(network, x)  # type: ignore[method-assign]
    start = time.process_time()
    different = int((drawn != draw()).sum())
    whole = time.process_time() - start
    rows = [["whole grid for each position", f"{whole:.2f}", "1"]]
    rows += [["kept states", f"{kept:.2f}", f"{whole / kept:.0f}"]]
    print(markdown(("", "seconds", "times faster"), rows, 1))
    print(f"\n{different} of {drawn.numel()} values differ")


if __name__ == "__main__":
    main()
