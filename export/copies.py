"""Copies of a network: one to export, and one to compare the file with."""

from __future__ import annotations

import copy

from torch import nn
from torch._dynamo import OptimizedModule


def eval_copy(module: nn.Module) -> nn.Module:
    """A copy of a network on the CPU in eval mode.

    What `torch.compile` has wrapped is unwrapped in it: compiling a network for each grid of a verification
    would take far longer than running it.
    """
    network = _unwrapped(copy.deepcopy(module)).cpu().eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, OptimizedModule):
                setattr(parent, name, _unwrapped(child))
    return network


def _unwrapped(module: nn.Module) -> nn.Module:
    wrapped: nn.Module = module._orig_mod if isinstance(module, OptimizedModule) else module
    return wrapped
