"""`MDLSTM`: the multi-dimensional LSTM layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mdlstm_tk._util.masking import Sizes, is_captured, to_int64, valid_mask
from mdlstm_tk.backends import BACKENDS, Backend, Choice, choose
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.step import CELL_PARAMETERS
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import SweepInputs, autocast_dtype, parameter_shapes, state_dtype
from mdlstm_tk.states import BoundaryState, State, join_faces, split_states
from mdlstm_tk.sweep import name_in_graphs, sweep
from mdlstm_tk.wavefront import Direction, resolve_directions

PARAMETERS = ("weight_ih", "weight_hh", "bias", *CELL_PARAMETERS)
Directions = Literal[1, "all"] | Sequence[Direction]
Merge = Literal["concat", "sum", "mean"]
SweepLayer = Callable[[SweepInputs], tuple[Tensor, Tensor | None]]
SHORT_RUN = 8  # numbers


class MDLSTM(nn.Module):
    """An LSTM over a grid with any number of axes.

        >>> layer = MDLSTM(3, 16, directions="all")
        >>> layer(torch.zeros(2, 8, 12, 3)).shape
        torch.Size([2, 8, 12, 64])

    At every position the cell sees the input there and the states one step back along each axis d:

        a = W x + Σ_d U_d h_d + b            (…, G·n), G = 3 + D gates
        c = i⊙g + Σ_d f_d⊙c_d                i, f_d, o = sigmoid, g = tanh of their part of a
        h = o⊙tanh(c)

    These are the equations of `cell="graves"` (Graves, Fernández, Schmidhuber 2007, arXiv:0705.2011). In
    one dimension they are those of `torch.nn.LSTM`. A direction is the corner that a sweep starts from.
    Several directions have their own weights, run in one sweep, and are merged at each position.

    On large grids prefer `cell="stable"` or `"leaky"` (Leifert et al., JMLR 17(97), 2016): in `graves`
    Σ_d f_d may exceed 1, and c then grows with the number of paths through the grid.

    Args:
        input_size: C, the number of features at each position.
        hidden_size: n, the number of hidden units of each direction.
        ndim: D, the number of grid axes.
        num_layers: the number of stacked layers.
        directions: 1 for the sweep from corner (0, …, 0), "all" for all 2^D corners, or a list of D-tuples
            of signs. `layer.directions` is the resolved list.
        merge: how the directions are joined: "concat" along features, "sum" or "mean".
        cell: "graves", "mean" (of the c_d, so that c grows as along one path), "stable", "leaky", "slstm"
            (exponential gates with a normaliser), or the name of one's own, see `mdlstm_tk.register_cell`.
        layer_norm: normalise the pre-activation of each gate, after its peephole, and before the output
            tanh c, over the n units: (a − mean) / √(variance + 1e-5) with the biased variance, each with
            its own scale and shift. It needs `bias`, see `reset_parameters`.
        peephole: let i and f_d see c_d, and o see the new c. Only for `graves`.
        window: an extent, or one for each axis: non-overlapping windows of positions are fed to the first
            layer as features, position after position in row-major order, the C features of each together;
            the far edges are padded with zeros.
        dropout: probability of zeroing an output of each layer but the last, in training.
        bias: whether there is b.
        channels_last: x is (N, *grid, C); if false (N, C, *grid), and y has the same layout.
        backend: "auto", "fused" or "torch"; `layer.backend_for(x)` says which one runs. The first call
            compiles kernels; to do so ahead, call it once on zeros. On a CPU results are equal to the
            last bit from run to run with the same number of threads, unless sweeps run concurrently.
        recompute: for large grids: training keeps only h and c of each position, 2·n numbers instead of
            (G + 2)·n, and backward computes the gates again, which costs one more product. With the backend
            "torch" it keeps x and y alone.
        device: where the parameters are; torch's default if not given.
        dtype: type of the parameters, float16, bfloat16, float32 or float64; torch's default if not given.

    Parameters of layer k, directions in front, gates in the order of the cell:
        weight_ih_l{k}: (dirs, G·n, C)
        weight_hh_l{k}: (dirs, D, G·n, n), unless the cell is not recurrent
        bias_l{k}: (dirs, G·n), if `bias`
        peephole_l{k}: (dirs, 2D + 1, n), if `peephole`: c_d to i, c_d to f_d, c to o
        norm_weight_l{k}, norm_bias_l{k}: (dirs, G + 1, n), if `layer_norm`: the gates, then c; (dirs, G, n)
            for a cell without output tanh, such as "slstm"

    A layer keeps its cell: a cell that is registered again under the same name changes no existing layer.
    The state dict names cell, directions and window, and weights for others are refused.

    Raises:
        InputError: an argument is not one of the above.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        ndim: int = 2,
        num_layers: int = 1,
        directions: Directions = 1,
        merge: Merge = "concat",
        cell: str = "graves",
        layer_norm: bool = False,
        peephole: bool = False,
        window: int | Sequence[int] = 1,
        dropout: float = 0.0,
        bias: bool = True,
        channels_last: bool = True,
        backend: Backend = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.ndim = input_size, hidden_size, ndim
        self.num_layers, self.dropout, self.bias = num_layers, dropout, bias
        self.directions = resolve_directions(directions, ndim)
        self.cell, self.definition = cell, get_cell(cell)
        self.layer_norm, self.peephole, self.merge = layer_norm, peephole, merge
        self.window = (window,) * ndim if isinstance(window, int) else tuple(map(int, window))
        self.channels_last, self.backend, self.recompute = channels_last, backend, recompute
        if min(input_size, hidden_size, ndim, num_layers, *self.window) < 1 or len(self.window) != ndim:
            raise InputError(
                f"input_size, hidden_size, ndim, num_layers and {ndim} extents of window must be at least "
                f"1, got {input_size}, {hidden_size}, {ndim}, {num_layers} and {window}"
            )
        if merge not in get_args(Merge) or backend not in BACKENDS:
            got = f"got {merge!r} and {backend!r}"
            raise InputError(f"merge must be one of {get_args(Merge)} and backend one of {BACKENDS}, {got}")
        if dropout and num_layers == 1:
            text = "dropout between layers does nothing in one layer; raise num_layers, or add nn.Dropout"
            warnings.warn(text, stacklevel=2)
        if peephole and not self.definition.peephole:
            raise InputError(f"peephole needs the cell 'graves', got {cell!r}")
        if layer_norm and not bias:
            raise InputError("layer_norm needs bias=True: without it an all-zero grid has no scale")

        given = {"bias": bias, "peephole": peephole, "norm_weight": layer_norm, "norm_bias": layer_norm}
        present = tuple(name for name in CELL_PARAMETERS if given[name])
        self._cell_in_graphs = name_in_graphs(self.definition, ndim, present)
        features = input_size * prod(self.window)
        for k in range(num_layers):
            shapes = parameter_shapes(self.definition, ndim, len(self.directions), features, hidden_size)
            for name in [name for name in shapes if given.get(name, True)]:
                empty = torch.empty(shapes[name], device=device, dtype=dtype)
                self.register_parameter(f"{name}_l{k}", nn.Parameter(empty))
            features = self.output_size
        self.reset_parameters()

    @property
    def output_size(self) -> int:
        """Features of y at each position."""
        return self.hidden_size * (len(self.directions) if self.merge == "concat" else 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the parameters.

        Input weights are U(±√(3/C)), which gives W x the variance of x (LeCun et al. 1998). The recurrent
        weights of each gate are orthogonal over all axes together, [U_1 … U_D] [U_1 … U_D]ᵀ = I (Saxe et
        al. 2014). Peepholes are 0. Biases start where the cell's gates say (`mdlstm_tk.Gate`), but those
        of gates with tanh at U(±1/√n): with 0, an all-zero grid is an unstable fixed point of the sweep
        (gradients are 1e9 at 64×64, with U(±1/√n) they are 1).

        With layer norm, the start values of the gates are the shifts of the norm, and the bias before the
        norm starts at N(0, 1). Otherwise an all-zero grid would have variance 0 in every norm, and each
        norm would multiply gradients by 1/√ε = 316.
        """
        n, gates = self.hidden_size, self.definition.gates(self.ndim)
        for k in range(self.num_layers):
            parameters = self._layer_parameters(k)
            weight_ih, weight_hh, bias = (parameters[name] for name in ("weight_ih", "weight_hh", "bias"))
            bound = (3 / weight_ih.shape[-1]) ** 0.5
            nn.init.uniform_(weight_ih, -bound, bound)
            if weight_hh is not None:
                for direction in weight_hh.unflatten(2, (-1, n)).unbind():  # (D, G, n, n)
                    for gate in direction.unbind(1):
                        # float32 for 16-bit parameters, which the decomposition does not support
                        joint = gate.new_empty(n, self.ndim * n, dtype=state_dtype(gate))
                        nn.init.orthogonal_(joint)
                        gate.copy_(joint.unflatten(1, (self.ndim, n)).transpose(0, 1))
            if parameters["peephole"] is not None:
                nn.init.zeros_(parameters["peephole"])
            if self.layer_norm:  # which needs the bias
                start = bias.new_tensor([gate.start for gate in gates])[:, None]
                nn.init.ones_(parameters["norm_weight"])
                nn.init.zeros_(parameters["norm_bias"])[:, : len(gates)] += start
                nn.init.normal_(bias)
            elif bias is not None:
                for row, gate in zip(bias.unflatten(1, (-1, n)).unbind(1), gates, strict=True):
                    nn.init.constant_(row, gate.start)
                    if gate.activation == "tanh":
                        nn.init.uniform_(row, -(n**-0.5), n**-0.5)

    def backend_for(self, x: Tensor) -> Choice:
        """The name of the backend that would run on x, and the reason.

        Raises:
            InputError: `backend="fused"` cannot run on it.
        """
        return choose(self.backend, x.device)

    def forward(
        self,
        x: Tensor,
        sizes: Sizes | None = None,
        initial_state: Sequence[BoundaryState] | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        """Run the layer.

        Args:
            x: (N, *grid, C), or (*grid, C) for one sample without a batch axis; (N, C, *grid) or (C, *grid)
                if not `channels_last`.
            sizes: (N, D) integers, the valid extents of each sample, from 1 to those of the grid: a tensor
                on any device, a NumPy array or a list; (D,) for one sample without a batch axis. Outside
                them y is 0, and what x holds there is ignored; inside, y equals that of the unpadded
                sample.
            initial_state: one `BoundaryState` for each layer, the states that the sweeps start from; zeros
                if not given.
            return_state: return the final states, too: with them as its `initial_state`, the layer goes on
                where this call ends.

        Returns:
            y (N, *⌈grid / window⌉, output_size); features in axis 1 if not `channels_last`; without a batch
            axis if x has none. With `return_state` a pair of y and a tuple with one `BoundaryState` for
            each layer.

        Raises:
            InputError: x, sizes or a state have the wrong shape, dtype, device or value.
            ValueError: there are more or fewer states than layers.
        """
        return self._run(x, sizes, initial_state, return_state, self._sweep)

    def _run(
        self,
        x: Tensor,
        sizes: Sizes | None,
        initial_state: Sequence[Mapping[str, Any]] | None,
        return_state: bool,
        sweep_layer: SweepLayer,
    ) -> Tensor | tuple[Tensor, State]:
        """`forward` with another function that sweeps one of the stacked layers."""
        axes = ", ".join(f"E{d + 1}" for d in range(self.ndim))
        layout, axis = (f"{axes}, C", -1) if self.channels_last else (f"C, {axes}", -1 - self.ndim)
        if x.dim() not in (self.ndim + 1, self.ndim + 2) or x.shape[axis] != self.input_size:
            raise InputError(
                f"x must be (N, {layout}), or ({layout}) without a batch axis, with C = {self.input_size}, "
                f"got shape {tuple(x.shape)}; channels_last={not self.channels_last} takes the other layout"
            )
        has_batch_axis = x.dim() == self.ndim + 2
        x = x if has_batch_axis else x.unsqueeze(0)
        x = x if self.channels_last else x.movedim(1, -1)
        parameters = self._layer_parameters(0)
        autocast = None if parameters["weight_ih"].dtype == torch.float64 else autocast_dtype(x)
        if sizes is not None:
            # On the CPU, where sweeps read them: this waits for a GPU that they are on; nothing later does.
            sizes = to_int64(sizes, (x.shape[0], self.ndim)[not has_batch_axis :]).reshape(-1, self.ndim)
            sizes = sizes.to(x.device if is_captured() else "cpu")
            valid = valid_mask(x.shape[1:-1], sizes.to(x.device, non_blocking=True))
            x = torch.where(valid[..., None], x, 0)
        if prod(self.window) > 1:
            x = space_to_depth(x, self.window)
            if sizes is not None:
                window = sizes.new_tensor(self.window)
                sizes = (sizes + window - 1) // window
        initial: list[Tensor | None] = [None] * self.num_layers
        names, grid = ("h", *self.definition.states), x.shape[1:-1]
        if return_state or initial_state is not None:
            states = [{}] * self.num_layers if initial_state is None else initial_state
            others = x, (len(self.directions), self.hidden_size), sizes, has_batch_axis
            of_layers = zip(range(self.num_layers), states, strict=True)
            initial = [join_faces(state, names, *others) for _, state in of_layers]
        final, dtype = [], autocast or x.dtype
        signs: Any = tuple(chain.from_iterable(self.directions))
        for k in range(self.num_layers):
            if k > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
                parameters = self._layer_parameters(k)
            if autocast is not None:
                x = x.to(autocast)
                parameters = {name: t if t is None else t.to(autocast) for name, t in parameters.items()}
            more: Any = {"initial": initial[k], "sizes": sizes, "signs": signs, "cell": self.definition}
            x, leaving = sweep_layer(SweepInputs(x=x, **parameters, **more))
            if return_state and leaving is not None:
                final.append(split_states(leaving, names, grid, dtype, has_batch_axis))
        if not self.channels_last:
            x = x.movedim(-1, 1)
            if torch.compiler.is_exporting():  # torch fixes extents to learn the order of axes in memory
                x = x.contiguous()
        x = x if has_batch_axis else x.squeeze(0)
        return (x, tuple(final)) if return_state else x

    def _sweep(self, inputs: SweepInputs) -> tuple[Tensor, Tensor | None]:
        """Sweep a stacked layer: y (N, *grid, output_size), and the final states if there are any."""
        y, final = sweep(inputs, self.backend, self.recompute, self._cell_in_graphs)
        return y.flatten(-2) if self.merge == "concat" else getattr(y, self.merge)(dim=-2), final

    def _layer_parameters(self, k: int) -> dict[str, Any]:
        """The parameters of layer k by the names in `PARAMETERS`, None for those that it has not.

        Call it once for each layer and pass: where a parameter is parametrized, reading it computes it, and
        some parametrizations change with every computation.
        """
        return {name: getattr(self, f"{name}_l{k}", None) for name in PARAMETERS}

    def _identity(self) -> dict[str, Any]:
        """What weights are for, beside their shapes."""
        return {"cell": self.cell, "directions": [*self.directions], "window": self.window}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # a dict that a caller fills may have none
            destination._metadata[prefix[:-1]].update(self._identity())

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the weights, or say in `error_msgs`, which `load_state_dict` raises, what else they are for;
        then none changes. Weights of version 1, and files of tensors alone, do not say it."""
        own, lists = self._identity(), (strict, missing_keys, unexpected_keys, error_msgs)
        others = {key: value for key, value in local_metadata.items() if own.get(key, value) != value}
        if not others:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *lists)
            return
        name, expected = prefix[:-1] or type(self).__name__, {key: own[key] for key in others}
        error_msgs.append(f"{name} has {expected}, got weights of a layer with {others}")

    def extra_repr(self) -> str:
        """What weights are for, and their shapes."""
        sizes = {"ndim": self.ndim, "num_layers": self.num_layers}
        texts = [f"{name}={value!r}" for name, value in (sizes | self._identity()).items()]
        return ", ".join([str(self.input_size), str(self.hidden_size), *texts])


def space_to_depth(x: Tensor, window: Sequence[int]) -> Tensor:
    """(N, *grid, C) → (N, *⌈grid / window⌉, ∏window · C): the positions of each window, in row-major order,
    become features."""
    ndim = len(window)
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    # The number of windows, not an inferred -1 or `-extent % size`: torch.export would guard extents by the
    # one, and take them for 0 by the other where a maximum over windows follows.
    counts = [(extent + size - 1) // size for extent, size in zip(x.shape[1:-1], window, strict=True)]
    missing = [n * size - e for n, size, e in zip(counts, window, x.shape[1:-1], strict=True)]
    if captured or any(missing):  # torch copies x even if nothing is missing
        x = nn.functional.pad(x, [0, 0, *(amount for m in reversed(missing) for amount in (0, m))])
    for d, size in reversed(list(enumerate(window))):
        x = x.unflatten(1 + d, (counts[d], size))
    if not captured and prod(window[:-1]) > 1 and window[-1] * x.shape[-1] < SHORT_RUN:
        # torch would copy runs of this many numbers, one after another. It takes a quarter of the time to
        # bring the windows of a row to the back first, and then all features of a window.
        x = x.movedim(2 * ndim - 1, -1).contiguous().movedim(-1, 2 * ndim - 1)
    outer = range(1, 2 * ndim, 2)
    inner = range(2, 2 * ndim + 1, 2)
    return x.permute(0, *outer, *inner, 2 * ndim + 1).flatten(1 + ndim)
