"""What the backends' tests share: a layer with its input, and `reference` in float64 as the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from mdlstm_tk import MDLSTM

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
HALVES = (torch.float16, torch.bfloat16)
# What rounding h, da and the results to the dtype costs; sums and gates are exact beside it.
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-11, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """A layer and its input. 21 units make vectors of every width; 2 features."""

    cell: str = "graves"
    grid: tuple[int, ...] = (5, 8)
    batch: int = 3
    units: int = 21
    directions: str | int | tuple[tuple[int, ...], ...] = 1
    sizes: bool = False
    layer_norm: bool = False
    peephole: bool = False
    bias: bool = True
    recompute: bool = False
    dtype: str = "float64"

    def __str__(self) -> str:
        named = {
            "all": self.directions == "all",
            "sizes": self.sizes,
            "norm": self.layer_norm,
            "peephole": self.peephole,
            "no-bias": not self.bias,
            "recompute": self.recompute,
        }
        grid = "x".join(map(str, self.grid))
        parts = [self.cell, grid, f"batch{self.batch}", f"units{self.units}", self.dtype]
        return "-".join([*parts, *(name for name, on in named.items() if on)])

    def layer(self, backend: str, dtype: torch.dtype) -> MDLSTM:
        torch.manual_seed(1)
        layer = MDLSTM(
            2,
            self.units,
            ndim=len(self.grid),
            directions=self.directions,
            cell=self.cell,
            layer_norm=self.layer_norm,
            peephole=self.peephole,
            bias=self.bias,
            backend=backend,
            recompute=self.recompute,
        )
        with torch.no_grad():
            for parameter in layer.parameters():  # none at 0 or 1, where a mistake might not show
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return layer.to(DTYPES[self.dtype]).to(dtype)

    def run(self, backend: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """The output and every gradient. Parameters and x are rounded to the case's own dtype first."""
        layer = self.layer(backend, dtype).to(device)

        def rounded(tensor: Tensor) -> Tensor:
            return tensor.to(DTYPES[self.dtype]).to(device, dtype)

        generator = torch.Generator().manual_seed(2)
        x = rounded(torch.randn(self.batch, *self.grid, 2, generator=generator)).requires_grad_()
        sizes = None
        if self.sizes:
            extents = [torch.randint(1, e + 1, (self.batch,), generator=generator) for e in self.grid]
            sizes = torch.stack(extents, dim=1)
        y = layer(x, sizes)
        y.backward(rounded(torch.randn(y.shape, generator=generator)))
        leaves = {"x": x, **dict(layer.named_parameters())}
        gradients = {
            f"d {name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for name, leaf in leaves.items()
        }
        return {name: result.cpu() for name, result in {"y": y.detach(), **gradients}.items()}

    def check(self, backend: str, device: str = "cpu") -> None:
        """Compare with `reference` in float64."""
        dtype = DTYPES[self.dtype]
        exact = self if dtype in HALVES else replace(self, dtype="float64")
        truth, results = _truth(exact), self.run(backend, dtype, device)
        assert results.keys() == truth.keys()
        for name, result in results.items():
            assert result.dtype == dtype
            assert_close_to(truth[name], result, TOLERANCES[dtype], name)


def assert_close_to(truth: Tensor, found: Tensor, tolerance: float, name: str) -> None:
    """Compare with a result in float64, relative to its largest entry, or to 1 if that is smaller."""
    scale = max([1.0, *truth.abs().flatten().tolist()])
    torch.testing.assert_close(
        found.double(), truth, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}"
    )


@lru_cache(maxsize=1)
def _truth(case: Case) -> dict[str, Tensor]:
    return case.run("reference", torch.float64)
