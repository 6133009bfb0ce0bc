"""`MDLSTM`: the multi-dimensional LSTM layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mdlstm_tk.backends.dispatch import Choice, check_backend, choose
from mdlstm_tk.backends.tables import valid_mask
from mdlstm_tk.backends.validation import check_sizes
from mdlstm_tk.cells.equations import get_cell
from mdlstm_tk.errors import InputError
from mdlstm_tk.operator import sweep
from mdlstm_tk.wavefront import Direction, resolve_directions

MERGES = ("concat", "sum", "mean")


class MDLSTM(nn.Module):
    """An LSTM over a grid with any number of axes.

        >>> layer = MDLSTM(3, 16, directions="all")
        >>> layer(torch.zeros(2, 8, 12, 3)).shape
        torch.Size([2, 8, 12, 64])

    At every position the cell sees the input there and the states one step back along each axis d:

        a = W x + Σ_d U_d h_d + b            (…, G·n), G = 3 + D gates
        c = i⊙g + Σ_d f_d⊙c_d                i, f_d, o = sigmoid, g = tanh of their part of a
        h = o⊙tanh(c)

    which is `cell="graves"` (Graves, Fernández, Schmidhuber 2007, arXiv:0705.2011). In one dimension
    it is `torch.nn.LSTM`. A direction is the corner a sweep starts from; several directions run with
    their own weights, in one sweep, and are merged at each position.

    On large grids prefer `cell="stable"` or `"leaky"` (Leifert et al., JMLR 17(97), 2016): in
    `graves` Σ_d f_d may exceed 1, and c then grows with the number of paths through the grid.

    Args:
        input_size: C, features at each position.
        hidden_size: n, units of each direction.
        ndim: D, number of grid axes.
        num_layers: layers stacked on each other.
        directions: 1 for the sweep from corner (0, …, 0), "all" for all 2^D corners, or a list of
            D-tuples of signs. `layer.directions` is the resolved list.
        merge: how the directions are joined: "concat" along features, "sum" or "mean".
        cell: "graves", "mean" (c_d averaged: c stays bounded by gates), "stable" or "leaky".
        layer_norm: normalise each gate's pre-activation and, before the output tanh, c; each with its
            own scale and shift. Needs `bias`, see `reset_parameters`.
        peephole: let i and f_d see c_d, and o see the new c. `graves` only.
        window: an extent, or one for each axis: non-overlapping blocks are fed to the first layer as
            features, zero-padded at the far edges.
        dropout: probability of zeroing an output of each layer but the last, while training.
        bias: use b.
        channels_last: x is (N, *grid, C); if false (N, C, *grid), and so is y.
        backend: "auto", "fused", "unrolled" or "reference"; `layer.backend_for(x)` says what runs. On a CPU
            results are the same to the bit from run to run with as many threads, as long as sweeps do not
            run at once.
        recompute: for big grids: training keeps h and c of each cell alone, 2·n numbers rather than
            (G + 2)·n, and backward computes the gates again, which costs one more product.

    Parameters of layer k, directions in front, gates in the order of `mdlstm_tk.cells.equations`:
        weight_ih_l{k}: (dirs, G·n, C)
        weight_hh_l{k}: (dirs, D, G·n, n)
        bias_l{k}: (dirs, G·n), if `bias`
        peephole_l{k}: (dirs, 2D + 1, n), if `peephole`: c_d to i, c_d to f_d, c to o
        norm_weight_l{k}, norm_bias_l{k}: (dirs, G + 1, n), if `layer_norm`: the gates, then c

    Raises:
        InputError: an argument is not one of the above; the message shows the value.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        ndim: int = 2,
        num_layers: int = 1,
        directions: int | Literal["all"] | Sequence[Direction] = 1,
        merge: Literal["concat", "sum", "mean"] = "concat",
        cell: str = "graves",
        layer_norm: bool = False,
        peephole: bool = False,
        window: int | Sequence[int] = 1,
        dropout: float = 0.0,
        bias: bool = True,
        channels_last: bool = True,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        counts = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "ndim": ndim,
            "num_layers": num_layers,
        }
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {count!r}")
        block = (window,) * ndim if isinstance(window, int) else tuple(window)
        if len(block) != ndim or any(not isinstance(extent, int) or extent < 1 for extent in block):
            raise InputError(f"window must be one extent, or {ndim} extents, of at least 1, got {window!r}")
        if merge not in MERGES:
            raise InputError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
        if not 0 <= dropout <= 1:
            raise InputError(f"dropout must be a probability from 0 to 1, got {dropout!r}")
        if peephole and cell != "graves":
            raise InputError(f"peephole needs cell='graves', got cell={cell!r}")
        if layer_norm and not bias:
            raise InputError("layer_norm=True needs bias=True: without it an all-zero grid has no scale")

        self.input_size = input_size
        self.hidden_size = hidden_size
        self.ndim = ndim
        self.num_layers = num_layers
        self.directions = resolve_directions(directions, ndim)
        self.merge = merge
        self.cell = get_cell(cell).name
        self.layer_norm = layer_norm
        self.peephole = peephole
        self.window = block
        self.dropout = dropout
        self.bias = bias
        self.channels_last = channels_last
        self.backend = check_backend(backend)
        self.recompute = recompute

        dirs, rows = len(self.directions), (3 + ndim) * hidden_size
        features = input_size * prod(block)
        for k in range(num_layers):
            self._add(f"weight_ih_l{k}", dirs, rows, features)
            self._add(f"weight_hh_l{k}", dirs, ndim, rows, hidden_size)
            if bias:
                self._add(f"bias_l{k}", dirs, rows)
            if peephole:
                self._add(f"peephole_l{k}", dirs, 2 * ndim + 1, hidden_size)
            if layer_norm:
                self._add(f"norm_weight_l{k}", dirs, 4 + ndim, hidden_size)
                self._add(f"norm_bias_l{k}", dirs, 4 + ndim, hidden_size)
            features = self.output_size
        self.reset_parameters()

    def _add(self, name: str, *shape: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    @property
    def output_size(self) -> int:
        """Features of y at each position."""
        return self.hidden_size * (len(self.directions) if self.merge == "concat" else 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start the parameters afresh.

        Input weights U(±√(3/C)), which gives W x the variance of x (LeCun et al. 1998). Recurrent
        weights of each gate orthogonal over all axes together, [U_1 … U_D] [U_1 … U_D]ᵀ = I (Saxe et
        al. 2014). Peepholes 0. Biases 0 but for forget and mixing gates, which start as their cell
        says (`mdlstm_tk.cells.equations`), and for g, which starts at U(±1/√n): with it at 0, an all-zero
        grid is a fixed point of the sweep, and an unstable one (gradients of 1e9 at 64×64, of 1 with it).

        With layer norm the gates' starts are the norm's shifts, and the bias before the norm starts at
        N(0, 1). An all-zero grid would otherwise have variance 0 in every norm, and each of them
        would multiply gradients by 1/√ε = 316.
        """
        n, cell = self.hidden_size, get_cell(self.cell)
        gates = cell.gates(self.ndim)
        for k in range(self.num_layers):
            weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias = self._layer(k)
            assert weight_ih is not None and weight_hh is not None
            bound = (3 / weight_ih.shape[-1]) ** 0.5
            nn.init.uniform_(weight_ih, -bound, bound)
            for direction in weight_hh.unflatten(2, (-1, n)).unbind():  # (D, G, n, n)
                for gate in direction.unbind(1):
                    joint = nn.init.orthogonal_(gate.new_empty(n, self.ndim * n))
                    gate.copy_(joint.unflatten(1, (self.ndim, n)).transpose(0, 1))
            if peephole is not None:
                nn.init.zeros_(peephole)
            if bias is None:
                continue
            start = bias.new_tensor([cell.bias(gate, self.ndim) for gate in gates])[:, None]
            rows = bias.unflatten(1, (-1, n))  # (dirs, G, n)
            if norm_weight is not None and norm_bias is not None:
                nn.init.ones_(norm_weight)
                nn.init.zeros_(norm_bias)[:, :-1] += start
                nn.init.normal_(bias)
            else:
                rows.copy_(start.expand_as(rows))
                nn.init.uniform_(rows[:, gates.index("g")], -(n**-0.5), n**-0.5)

    def backend_for(self, x: Tensor) -> Choice:
        """The name of the backend that would run on x, and the reason; autocast counts.

        Raises:
            InputError: `backend="fused"` cannot run on x.
        """
        return choose(self.backend, x.device, _autocast_dtype(x) or x.dtype)

    def _layer(self, k: int) -> Iterator[Tensor | None]:
        """The parameters of layer k in the order in which the op takes them."""
        names = ("weight_ih", "weight_hh", "bias", "peephole", "norm_weight", "norm_bias")
        return (getattr(self, f"{name}_l{k}", None) for name in names)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Run the layer.

        Args:
            x: (N, *grid, C); (N, C, *grid) if not `channels_last`.
            sizes: (N, D) int64, the valid extent of each sample. Outside it y is 0, and what x holds
                there is ignored; inside, y equals that of the unpadded sample.

        Returns:
            y (N, *⌈grid / window⌉, output_size); features in axis 1 if not `channels_last`.

        Raises:
            InputError: x or sizes have another shape or type.
        """
        self._check(x, sizes)
        if not self.channels_last:
            x = x.movedim(1, -1)
        if sizes is not None:
            sizes = sizes.to(x.device)
            x = x.masked_fill(~valid_mask(x.shape[1:-1], sizes)[..., None], 0)
        if prod(self.window) > 1:
            x = blocks(x, self.window)
            if sizes is not None:
                block = sizes.new_tensor(self.window)
                sizes = (sizes + block - 1) // block
        for k in range(self.num_layers):
            if k > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
            x = self._sweep(x, k, sizes)
        return x if self.channels_last else x.movedim(-1, 1)

    def _sweep(self, x: Tensor, k: int, sizes: Tensor | None) -> Tensor:
        tensors = [x, *self._layer(k)]
        dtype = _autocast_dtype(x)
        if dtype is not None:
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        arguments: list[Any] = [*tensors, sizes, self.directions, self.cell, self.backend, self.recompute]
        y = sweep(*arguments)
        if self.merge == "concat":
            return y.flatten(-2)
        return y.sum(dim=-2) if self.merge == "sum" else y.mean(dim=-2)

    def _check(self, x: Tensor, sizes: Tensor | None) -> None:
        axes = ", ".join(f"E{d + 1}" for d in range(self.ndim))
        layout = f"(N, {axes}, C)" if self.channels_last else f"(N, C, {axes})"
        channels = x.shape[-1 if self.channels_last else 1] if x.dim() == self.ndim + 2 else -1
        if channels != self.input_size:
            raise InputError(f"x must be {layout} with C = {self.input_size}, got shape {tuple(x.shape)}")
        if _autocast_dtype(x) is None and x.dtype != self.weight_ih_l0.dtype:
            raise InputError(
                f"x must have the layer's dtype {self.weight_ih_l0.dtype}, got {x.dtype}; "
                "convert one of them with .to(dtype)"
            )
        check_sizes(sizes, x.shape[0], self.ndim)

    def extra_repr(self) -> str:
        shown = {
            "ndim": self.ndim,
            "num_layers": self.num_layers,
            "directions": len(self.directions),
            "merge": self.merge,
            "cell": self.cell,
            "layer_norm": self.layer_norm,
            "peephole": self.peephole,
            "window": self.window,
        }
        options = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{self.input_size}, {self.hidden_size}, {options}"


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast turns x into, or None where it is off or there is none for the device; it leaves
    float64 alone."""
    kind = x.device.type
    if (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(kind)
        and torch.is_autocast_enabled(kind)
    ):
        return torch.get_autocast_dtype(kind)
    return None


def blocks(x: Tensor, window: Sequence[int]) -> Tensor:
    """(N, *grid, C) → (N, *⌈grid / window⌉, ∏window · C): each block's cells as features, row-major."""
    ndim = len(window)
    missing = [-extent % block for extent, block in zip(x.shape[1:-1], window, strict=True)]
    padding = [0, 0, *(amount for m in reversed(missing) for amount in (0, m))]
    x = nn.functional.pad(x, padding)
    for d, block in reversed(list(enumerate(window))):
        x = x.unflatten(1 + d, (-1, block))
    outer = range(1, 2 * ndim, 2)
    inner = range(2, 2 * ndim + 1, 2)
    return x.permute(0, *outer, *inner, 2 * ndim + 1).flatten(1 + ndim)
