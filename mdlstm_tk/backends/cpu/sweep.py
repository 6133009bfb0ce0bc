"""The sweep on a CPU, compiled by Numba (`mdlstm_tk.backends.cpu.kernels`).

It computes in float32 or float64. float16 and bfloat16 are converted to float32 on the way in, and results
are rounded on the way out.

Compiled code is cached on disk (Numba's `NUMBA_CACHE_DIR` chooses the folder), so only the first call with
a new cell waits for the compiler. Everything that depends only on shapes is looked up.

Arrays are cleared, copied and added by NumPy and `memset`, on this thread. torch would wake its own threads
for that, which would then keep the cores busy that the sweep is to share.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.backends.boundary import valid_lines
from mdlstm_tk.backends.cpu.plan import Plan, get_plan
from mdlstm_tk.backends.cpu.records import Arrays, address, words
from mdlstm_tk.backends.cpu.threads import run_chains
from mdlstm_tk.backends.inputs import Gradients, SweepInputs, SweepResults, boundary_shape

HALF = (torch.float16, torch.bfloat16)
HUGE_PAGE = 2 << 20


def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `Engine`."""
    dtype, inputs = inputs.x.dtype, _converted(inputs)
    plan, x = get_plan("forward", inputs, saves_states=save), inputs.x
    rows, dirs, units = plan.sizes.places, plan.sizes.dirs, plan.sizes.units
    shape = (*x.shape[:-1], dirs, units)
    output = _new(x, shape) if plan.jobs.is_full else _zeros(x, shape)
    front = _front(inputs, plan, inputs.initial)
    # Padded positions of a ragged batch are never touched, so in small pages they take no memory.
    new = _new if plan.jobs.is_full else Tensor.new_empty
    gates = new(x, (dirs, rows, plan.sizes.gate_dim)) if save and not recompute else None
    states = new(x, (dirs, rows, plan.sizes.states * units)) if save else None
    _run(plan, inputs, weights=_pack(plan, inputs), front=front, output=output, gates=gates, states=states)
    final = None if inputs.initial is None else front
    return SweepResults(output.to(dtype), final, gates, states)


def backward(
    inputs: SweepInputs, results: SweepResults, grad: Tensor, dfinal: Tensor | None, wants_dx: bool
) -> Gradients:
    """See `Engine`."""
    dtype, inputs = inputs.x.dtype, _converted(inputs)
    output, _, gates, states = map(_plain, results)
    plan = get_plan("recompute" if gates is None else "backward", inputs, wants_dx=wants_dx)
    x, sizes = inputs.x, plan.sizes
    dfront = _front(inputs, plan, dfinal)
    dx = _zeros(x, (plan.jobs.buffers, *x.shape)) if wants_dx else None
    sums = _zeros(x, (plan.jobs.slots, sizes.dirs, sizes.sums_size))
    _run(
        plan,
        inputs,
        weights=_pack(plan, inputs) if gates is None else None,
        weights_t=_pack(plan, inputs, transposed=True),
        front=dfront,
        grad=_plain(grad),
        output=output,
        gates=gates,
        states=states,
        initial=inputs.initial,
        dx=dx,
        sums=sums,
    )
    gradients = _split_sums(plan, inputs, _total(sums))
    if dx is not None:
        gradients["x"] = _total(dx)
    gradients = {name: None if g is None else g.to(dtype) for name, g in gradients.items()}
    if inputs.initial is not None:
        gradients["initial"] = dfront
    return gradients


def _run(plan: Plan, inputs: SweepInputs, **arrays: Tensor | None) -> None:
    """Run all jobs of a sweep; `arrays` are those of `Arrays` that a pass has."""
    arrays["x"], arrays["parameters"] = inputs.x, inputs.cell_parameters()
    arrays["scratch"] = inputs.x.new_empty(len(plan.jobs.chains) * plan.sizes.scratch)
    pointers = [_pointer(arrays.get(name)) for name in Arrays._fields[2:]]
    record = words((plan.cell, plan.matmul, *pointers))
    kernel, arrays_address, sizes_address = plan.kernel, address(record), plan.sizes_address
    if len(plan.jobs.order) == 1:
        kernel(arrays_address, sizes_address, plan.jobs.order[0])
        return

    def run(job: int) -> None:
        kernel(arrays_address, sizes_address, job)

    run_chains(run, plan.jobs.chains, plan.jobs.order, (plan, record, arrays))


def _front(inputs: SweepInputs, plan: Plan, start: Tensor | None) -> Tensor | None:
    """The front of a sweep, which starts as initial states or as gradients of the final ones."""
    if start is None:
        has_front = inputs.initial is not None or plan.jobs.is_tiled
        return _zeros(inputs.x, boundary_shape(inputs)) if has_front else None
    if inputs.sizes is None:
        return _copy(start)
    return start.masked_fill(~valid_lines(inputs.grid, inputs.sizes)[..., None, None, None], 0)


def _split_sums(plan: Plan, inputs: SweepInputs, sums: Tensor) -> Gradients:
    """The gradients of weights and of the cell's parameters from `sums`, (dirs, sums_size), each in memory
    of its own."""
    sizes, dirs, gate_dim, units = plan.sizes, plan.sizes.dirs, plan.sizes.gate_dim, plan.sizes.units
    # The gradient of w_cat is (K, padded), and its rows are those of h_1, …, h_D, x and 1.
    row, start, shape = sizes.padded, sizes.sums_size, inputs.weight_ih.shape
    parts = {"weight_ih": sums.as_strided(shape, (start, 1, row), sizes.hidden_dim * row)}
    if inputs.weight_hh is not None:
        parts["weight_hh"] = sums.as_strided(inputs.weight_hh.shape, (start, units * row, 1, row))
    if inputs.bias is not None:
        parts["bias"] = sums.as_strided((dirs, gate_dim), (start, 1), (sizes.depth - 1) * row)
    if sizes.parameter_count:
        shape = torch.Size((dirs, sizes.parameter_count // units, units))
        rows = sums.as_strided(shape, (start, units, 1), sizes.depth * row)
        parts |= inputs.split_cell_parameters(rows)
    return {name: _copy(part) for name, part in parts.items()}


def _new(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a result. If it is large, the system is asked for pages of 2 MiB: touching fresh memory in
    pages of 4 KiB takes a quarter of the time of training at 1, 512×512, n 32."""
    tensor = like.new_empty(shape)
    if tensor.nbytes >= HUGE_PAGE and sys.platform == "linux":
        start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        length = tensor.data_ptr() + tensor.nbytes - start
        if length >= HUGE_PAGE:
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    tensor = _new(like, shape)
    ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes)
    return tensor


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous copy."""
    copied = tensor.new_empty(tensor.shape)
    np.copyto(copied.numpy(), tensor.detach().numpy())
    return copied


def _total(parts: Tensor) -> Tensor:
    """The sum of parts[0], parts[1], …, in the memory of the first."""
    total, *others = parts.numpy()
    for other in others:
        np.add(total, other, out=total)
    return parts[0]


def _pack(plan: Plan, inputs: SweepInputs, transposed: bool = False) -> Tensor:
    """The weights as `matmul.pack` or `matmul.pack_transposed` writes them."""
    packed = inputs.x.new_empty(plan.packed_transposed if transposed else plan.packed)
    kernel = plan.pack_transposed if transposed else plan.pack
    kernel(*map(_pointer, (packed, inputs.weight_hh, inputs.weight_ih, inputs.bias)), plan.sizes_address)
    return packed


def _converted(inputs: SweepInputs) -> SweepInputs:
    """The inputs as the kernels read them: contiguous, in float32 or float64."""
    if all(tensor is None or _plain(tensor) is tensor for tensor in inputs.tensors):
        return inputs
    return inputs.with_tensors([_plain(tensor) for tensor in inputs.tensors])


def _plain(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    if tensor.dtype in HALF:
        tensor = tensor.float()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int:
    """The address of a tensor, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
