"""Layers and inputs that are unusual in layout, extent or in what needs a gradient, against `reference`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import BUILT_IN_CELLS

LAYOUTS = ("contiguous", "transposed", "strided", "expanded")


@dataclass(frozen=True)
class OddCase:
    """A layer and its input, made of a seed. Kernels compile for each cell and number of axes, so only one
    cell has layer norm, peepholes or `recompute`."""

    seed: int

    def options(self) -> dict[str, Any]:
        choose = random.Random(self.seed)
        ndim = choose.choice((1, 2, 2, 3))
        cell = BUILT_IN_CELLS[self.seed % len(BUILT_IN_CELLS)]
        options: dict[str, Any] = {
            "input_size": choose.randint(1, 3),
            "hidden_size": choose.choice((1, 2, 5)),
            "ndim": ndim,
            "cell": cell,
            "directions": choose.choice((1, "all", [(-1,) * ndim])),
            "window": [choose.choice((1, 1, 2)) for _ in range(ndim)],
            "channels_last": choose.random() < 0.7,
            "bias": choose.random() < 0.8,
            "num_layers": choose.choice((1, 1, 2)),
            "merge": choose.choice(("concat", "sum")),
        }
        if cell == "graves" and choose.random() < 0.6:
            named = choose.choice(("layer_norm", "recompute", "peephole") if ndim == 2 else ("peephole",))
            options |= {named: True} | ({"bias": True} if named == "layer_norm" else {})
        return options

    def run(self, backend: str, device: str = "cpu") -> dict[str, Tensor]:
        """The output and the gradient of whatever needs one, in float64."""
        choose = random.Random(self.seed + 1)
        torch.manual_seed(self.seed)
        options = self.options()
        layer = MDLSTM(**options, backend=backend).double().to(device)
        batch = choose.choice((0, 1, 2, 3))
        extents = [choose.choice((1, 2, 3, 5)) for _ in range(layer.ndim)]
        if all(choose.random() < 0.5 for _ in extents):
            extents[0] = 1
        features = layer.input_size
        shape = (batch, *extents, features) if layer.channels_last else (batch, features, *extents)
        # The leaves are what the user has; the layer gets views of them.
        leaves, given = {}, {}
        x_needs, weights_need = choose.choice(((True, True), (True, False), (False, True)))
        for name, size in {"x": shape, **{k: v.shape for k, v in layer.named_parameters()}}.items():
            needs = x_needs if name == "x" else weights_need
            leaves[name], given[name] = laid_out(choose.choice(LAYOUTS), tuple(size), needs, device)
        x = given.pop("x")
        sizes = None
        if choose.random() < 0.4:
            columns = [torch.randint(1, extent + 1, (batch,)) for extent in extents]
            sizes = torch.stack(columns, dim=1).to(device)
        y = functional_call(layer, given, (x, sizes))
        _, grad = laid_out(choose.choice(LAYOUTS), tuple(y.shape), False, device)
        y.backward(grad)
        results = {"y": y.detach()}
        for name, leaf in leaves.items():
            if leaf.requires_grad:  # `reference` gives none for weights that a single position does not use
                results[f"d {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return results

    def check(self, backend: str, device: str = "cpu") -> None:
        """Compare with `reference`."""
        truth, results = _truth(self), self.run(backend, device)
        assert results.keys() == truth.keys()
        for name, result in results.items():
            message = f"{name} of seed {self.seed}, {self.options()}"
            torch.testing.assert_close(
                result.cpu(),
                truth[name],
                rtol=1e-10,
                atol=1e-10,
                msg=lambda text, message=message: f"{message}: {text}",
            )


@lru_cache(maxsize=1)
def _truth(case: OddCase) -> dict[str, Tensor]:
    return case.run("reference")


def laid_out(layout: str, shape: tuple[int, ...], needs_grad: bool, device: str) -> tuple[Tensor, Tensor]:
    """A leaf, and a view of it that has `shape` and whose memory is laid out as `layout` says."""
    whole = shape
    if layout == "transposed":
        whole = shape[::-1]
    elif layout == "strided":
        whole = tuple(2 * extent for extent in shape)
    elif layout == "expanded":
        whole = (1, *shape[1:])
    leaf = (0.5 * torch.randn(whole, dtype=torch.float64)).to(device).requires_grad_(needs_grad)
    if layout == "transposed":
        return leaf, leaf.permute(*reversed(range(len(shape))))
    if layout == "strided":
        return leaf, leaf[tuple(slice(k % 2, None, 2) for k in range(len(shape)))]
    return leaf, leaf.expand(shape)
