"""`MDLSTM`: the multi-dimensional LSTM layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import chain, product
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mdlstm_tk._util import arguments
from mdlstm_tk._util.checks import fit_argument
from mdlstm_tk._util.masking import Sizes, sizes_of_sweep, valid_mask
from mdlstm_tk._util.saved_cell import NamesItsCell
from mdlstm_tk._util.tensor_classes import for_unusual_tensors
from mdlstm_tk._util.windows import space_to_depth
from mdlstm_tk.backends.dispatch import BACKENDS, Backend, Choice, choose
from mdlstm_tk.backends.inputs import SweepInputs, check_gates, parameter_shapes, state_dtype
from mdlstm_tk.backends.run import autocast_dtype
from mdlstm_tk.cells import check_cell, get_cell
from mdlstm_tk.cells.step import CELL_PARAMETERS
from mdlstm_tk.errors import InputError
from mdlstm_tk.states import BoundaryState, FaceShape, State, initial_states, to_boundary_state
from mdlstm_tk.sweep import sweep
from mdlstm_tk.wavefront import Direction, check_positions, resolve_directions

PARAMETERS = ("weight_ih", "weight_hh", "bias", *CELL_PARAMETERS)
Directions = Literal[1, "all"] | Sequence[Direction]
Merge = Literal["concat", "sum", "mean"]
SweepLayer = Callable[[SweepInputs], tuple[Tensor, Tensor | None]]


class MDLSTM(NamesItsCell):
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
        peephole: let i and f_d see c_d, and o see the new c. Only for `graves` and cells whose equations
            take `output_gate`.
        window: an extent, or one for each axis: non-overlapping windows of positions are fed to the first
            layer as features, position after position in row-major order, the C features of each together;
            the far edges are padded with zeros.
        dropout: probability of zeroing an output of each layer but the last, in training.
        bias: whether there is b.
        channels_last: x is (N, *grid, C); if false (N, C, *grid), and y has the same layout.
        backend: "auto", "fused", "torch" or "reference"; `layer.backend_for(x)` says which one runs. On a
            CPU results are equal to the last bit from run to run with the same number of threads, unless
            sweeps run concurrently.
        recompute: for large grids: training keeps only h and c of each position, 2·n numbers instead of
            (G + 2)·n, and backward computes the gates again, which costs one more product.
        device: where the parameters are; torch's default if not given.
        dtype: type of the parameters, float16, bfloat16, float32 or float64; torch's default if not given.

    Parameters of layer k, directions in front, gates in the order of the cell:
        weight_ih_l{k}: (dirs, G·n, C)
        weight_hh_l{k}: (dirs, D, G·n, n), unless the cell is not recurrent
        bias_l{k}: (dirs, G·n), if `bias`
        peephole_l{k}: (dirs, 2D + 1, n), if `peephole`: c_d to i, c_d to f_d, c to o
        norm_weight_l{k}, norm_bias_l{k}: (dirs, G + 1, n), if `layer_norm`: the gates, then c; (dirs, G, n)
            for a cell without output tanh, such as "slstm"

    Raises:
        InputError: an argument is not one of the above; the message shows its value.
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
        self.input_size = arguments.positive("input_size", input_size)
        self.hidden_size = hidden_size = arguments.positive("hidden_size", hidden_size)
        self.ndim = ndim = arguments.positive("ndim", ndim)
        self.num_layers = arguments.positive("num_layers", num_layers)
        self.directions = resolve_directions(directions, ndim)
        self.merge = arguments.choice("merge", merge, get_args(Merge))
        definition = get_cell(fit_argument("cell", cell, str))
        check_cell(definition, ndim)
        self.cell = definition.name
        self.layer_norm = layer_norm = arguments.flag("layer_norm", layer_norm)
        self.peephole = peephole = arguments.flag("peephole", peephole)
        self.window = extents = arguments.extents("window", window, ndim)
        self.dropout = arguments.probability("dropout", dropout)
        if dropout and num_layers == 1:
            text = "dropout between layers does nothing in one layer; raise num_layers, or add nn.Dropout"
            warnings.warn(text, stacklevel=2)
        self.bias = bias = arguments.flag("bias", bias)
        self.channels_last = arguments.flag("channels_last", channels_last)
        self.backend = arguments.choice("backend", backend, BACKENDS)
        self.recompute = arguments.flag("recompute", recompute)
        arguments.check_factory(device, dtype)
        if peephole and not definition.peephole:
            raise InputError(f"peephole needs a cell that has it, such as 'graves', got the cell {cell!r}")
        if layer_norm and not bias:
            raise InputError("layer_norm needs bias=True: without it an all-zero grid has no scale")

        given = {"bias": bias, "peephole": peephole, "norm_weight": layer_norm, "norm_bias": layer_norm}
        features = self.input_size * prod(extents)
        for k in range(self.num_layers):
            shapes = parameter_shapes(definition, ndim, len(self.directions), features, hidden_size)
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

        Raises:
            InputError: a parameter is parametrized or pruned, so that it is computed from others.
        """
        for name in (f"{name}_l{k}" for name in PARAMETERS for k in range(self.num_layers)):
            if name not in self._parameters and hasattr(self, name):
                raise InputError(f"{name} is parametrized or pruned; reset the parameters before that")
        n, gates = self.hidden_size, get_cell(self.cell).gates(self.ndim)
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
        """The name of the backend that would run on x, and the reason. Autocast is taken into account.

        Raises:
            InputError: x is no tensor, or `backend="fused"` cannot run on it.
        """
        return choose(self.backend, arguments.tensor("x", x).device, autocast_dtype(x) or x.dtype)

    @torch.inference_mode(False)  # in which nothing could be differentiated
    def precompile(self, training: bool = True, states: bool = False) -> None:
        """Compile all that calls of the layer need, so that none of them waits, for example while an image
        is built or before processes of distributed training start.

        It runs the layer on two positions along each axis. Parameters, their gradients and the state of
        random generators do not change.

        Args:
            training: also compile the backward pass.
            states: also compile what calls with initial or final states need.
        """
        training, states = arguments.flag("training", training), arguments.flag("states", states)
        factory: Any = {"dtype": self.weight_ih_l0.dtype, "device": self.weight_ih_l0.device}
        grid = [2 * extent for extent in self.window]
        shape = (*grid, self.input_size) if self.channels_last else (self.input_size, *grid)
        devices = [factory["device"]] if factory["device"].type == "cuda" else []
        # With the gradient of x, since a layer with frozen parameters passes it on.
        x = torch.zeros(1, *shape, requires_grad=training, **factory)
        # Triton compiles anew if there are states, and if forward saves something for backward.
        for return_state, with_grad in product({False, states}, {False, training}):
            with torch.random.fork_rng(devices), torch.set_grad_enabled(with_grad):
                y, *_ = tree_leaves(self.forward(x, return_state=return_state))
                if with_grad:
                    torch.autograd.grad(y.sum(), x)

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
            InputError: x, sizes or initial_state have the wrong type, shape, dtype, device or value.
        """
        return self._run(x, sizes, initial_state, return_state, self._sweep)

    def _has_own_forward(self) -> bool:
        """Tell whether a call runs another `forward`, which may do more than `_run`."""
        return type(self).forward is not MDLSTM.forward or "forward" in vars(self)

    @for_unusual_tensors
    def _run(
        self,
        x: Tensor,
        sizes: Sizes | None,
        initial_state: Sequence[BoundaryState] | None,
        return_state: bool,
        sweep_layer: SweepLayer,
    ) -> Tensor | tuple[Tensor, State]:
        """`forward` with another function that sweeps one of the stacked layers."""
        return_state = arguments.flag("return_state", return_state)
        arguments.choice("merge", self.merge, get_args(Merge))  # it may be set later
        parameters = self._layer_parameters(0)
        autocast = self._check(x, parameters["weight_ih"])
        has_batch_axis = x.dim() == self.ndim + 2
        if not has_batch_axis:
            x = x.unsqueeze(0)
        if not self.channels_last:
            x = x.movedim(1, -1)
        if not torch.compiler.is_compiling():  # before a mask or windows of that size are made
            check_positions(tuple(x.shape[1:-1]))
        if sizes is not None:
            sizes = sizes_of_sweep(sizes, x, has_batch_axis)
        if sizes is not None:
            valid = valid_mask(x.shape[1:-1], sizes.to(x.device, non_blocking=True))
            x = torch.where(valid[..., None], x, 0)
        if prod(self.window) > 1:
            x = space_to_depth(x, self.window)
            if sizes is not None:
                window = sizes.new_tensor(self.window)
                sizes = (sizes + window - 1) // window
        cell, signs = get_cell(self.cell), tuple(chain.from_iterable(self.directions))
        initial: Sequence[Tensor | None] = [None] * self.num_layers
        final = []
        if return_state or initial_state is not None:
            dirs, units, states = len(self.directions), self.hidden_size, ("h", *cell.states)
            shape = FaceShape(x, sizes, dirs, units, states, autocast or x.dtype, has_batch_axis)
            initial = initial_states(initial_state, self.num_layers, shape)
        for k in range(self.num_layers):
            if k > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
                parameters = self._layer_parameters(k)
            if autocast is not None:
                x = x.to(autocast)
                parameters = {name: t if t is None else t.to(autocast) for name, t in parameters.items()}
            others: Any = {"initial": initial[k], "sizes": sizes, "signs": signs, "cell": cell}
            x, leaving = sweep_layer(SweepInputs(x=x, **parameters, **others))
            if return_state and leaving is not None:
                final.append(to_boundary_state(leaving, shape))
        if not self.channels_last:
            x = x.movedim(-1, 1)
            if torch.compiler.is_exporting():  # torch fixes extents to learn the order of axes in memory
                x = x.contiguous()
        x = x if has_batch_axis else x.squeeze(0)
        return (x, tuple(final)) if return_state else x

    if TYPE_CHECKING:  # nn.Module alone would return Any

        @overload
        def __call__(
            self, x: Tensor, sizes: Sizes | None = ..., initial_state: Sequence[BoundaryState] | None = ...
        ) -> Tensor: ...
        @overload
        def __call__(
            self,
            x: Tensor,
            sizes: Sizes | None = ...,
            initial_state: Sequence[BoundaryState] | None = ...,
            *,
            return_state: Literal[True],
        ) -> tuple[Tensor, State]: ...
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            """As `forward`."""

    def _sweep(self, inputs: SweepInputs) -> tuple[Tensor, Tensor | None]:
        """Sweep a stacked layer: y (N, *grid, output_size), and the final states if there are any."""
        y, final = sweep(inputs, self.backend, self.recompute)
        if self.merge == "concat":
            return y.flatten(-2), final
        return (y.sum(dim=-2) if self.merge == "sum" else y.mean(dim=-2)), final

    def _layer_parameters(self, k: int) -> dict[str, Any]:
        """The parameters of layer k by the names in `PARAMETERS`, None for those that it has not.

        Call it once for each layer and pass: where a parameter is parametrized, reading it computes it, and
        some parametrizations change with every computation.
        """

        # `getattr` with a default would take an AttributeError of a parametrization for a no.
        def read(key: str) -> Any:
            if key in self._parameters:
                return self._parameters[key]
            is_there = key in self._buffers or key in self.__dict__ or hasattr(type(self), key)
            return getattr(self, key) if is_there else None

        return {name: read(f"{name}_l{k}") for name in PARAMETERS}

    def _check(self, x: Tensor, weight: Tensor) -> torch.dtype | None:
        """Check that x fits the layer, whose first parameter is `weight`.

        Returns:
            The dtype to run in under autocast, or None where that is off.
        """
        arguments.check_input(x, self.ndim, self.input_size, self.channels_last)
        if x.device != weight.device:
            empty = "layer.to_empty(device=…) and load or reset its parameters"
            fix = empty if weight.is_meta else "x.to(device) or layer.to(device)"
            raise InputError(f"x must be on the layer's device {weight.device}, got {x.device}; use {fix}")
        arguments.check_dtype(weight.dtype)  # it may be another after .to(dtype)
        check_gates(self.cell, weight, self.ndim, self.hidden_size)
        autocast = autocast_dtype(x)
        if x.dtype != weight.dtype and (autocast is None or weight.dtype == torch.float64):
            got = f"{weight.dtype}, got {x.dtype}; convert one of them with .to(dtype)"
            raise InputError(f"x must have the layer's dtype {got}")
        return autocast

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as the constructor takes them."""
        texts = [str(self.input_size), str(self.hidden_size)]
        defaults = {"window": (1,) * self.ndim, "directions": resolve_directions(1, self.ndim)}
        for name, parameter in signature(MDLSTM).parameters.items():
            value = getattr(self, name, None)
            is_default = value in (None, defaults.get(name, parameter.default))
            if parameter.kind == parameter.KEYWORD_ONLY and not is_default:
                if name == "directions" and value == resolve_directions("all", self.ndim):
                    value = "all"
                texts.append(f"{name}={value!r}")
        return ", ".join(texts)
