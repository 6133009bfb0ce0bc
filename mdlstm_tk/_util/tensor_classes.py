"""Tensors of unusual classes: those without memory of their own, and proxies of torch.fx."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves

from mdlstm_tk._util.text import one_line
from mdlstm_tk.errors import InputError, MDLSTMError

Run = TypeVar("Run", bound=Callable[..., Any])
HOOKS = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"  # of a module


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's class says itself what operators do with it, and may have no memory."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def has_hooks(module: torch.nn.Module) -> bool:
    """Tell whether a call of a module runs hooks."""
    return any(getattr(module, kind) for kind in HOOKS)


def for_unusual_tensors(run: Run) -> Run:
    """Decorate the method of a layer that gets the arguments of `forward` and one more.

    If torch raises an error and a tensor is of a class with operators of its own, such as DTensor, an
    `InputError` of one line says so instead. While `torch.fx.symbolic_trace` records a network, the layer
    is one node of the graph, as `torch.nn.LSTM` is.
    """

    @wraps(run)
    def run_or_refuse(layer: Any, x: Any, *others: Any) -> Any:
        if torch.compiler.is_compiling():
            return run(layer, x, *others)
        if isinstance(x, torch.fx.Proxy):
            tracer: Any = x.tracer
            if others[-1] != layer._sweep:
                raise InputError("torch.fx cannot record tiling.checkpointed; trace with layer(x) instead")
            if tracer.root is layer:
                raise InputError("torch.fx makes one node of an MDLSTM; trace the network around it")
            if layer._has_own_forward() or has_hooks(layer):
                raise InputError(
                    f"torch.fx would run the hooks or the forward of this {type(layer).__name__} twice; "
                    "trace with a torch.fx.Tracer whose is_leaf_module is true of it"
                )
            return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x, *others[:-1]), {})
        try:
            return run(layer, x, *others)
        except MDLSTMError:
            raise
        except Exception as error:
            values = tree_leaves([x, *others, *layer.parameters()])
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            kinds = {type(t).__name__ for t in tensors if is_wrapper(t)}
            kinds |= {"inference tensors" for t in tensors if not is_wrapper(t) and t.is_inference()}
            if not kinds:
                raise
            raise InputError(
                f"{type(layer).__name__} cannot run on {', '.join(sorted(kinds))} here "
                f"({one_line(str(error))}); give plain tensors, such as those of .to_local() or .clone()"
            ) from error

    return run_or_refuse  # type: ignore[return-value]
