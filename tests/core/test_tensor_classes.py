"""Tensors of every class and layout, for every argument: the result of a plain one, or a refusal.

Kernels get addresses, so a tensor whose memory is not what it seems would be read as garbage or crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from mdlstm_tk import MDLSTM, BoundaryState, MDLSTMError, tiling


class Named(Tensor):
    """A subclass with memory of its own, as libraries of images have them."""


class Wrapper(Tensor):
    """A subclass without memory that holds another tensor."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> Wrapper:
        options: Any = {"dtype": elem.dtype, "device": elem.device, "strides": elem.stride()}
        wrapper = Tensor._make_wrapper_subclass(cls, elem.shape, **options)  # type: ignore[attr-defined]
        wrapper.elem = elem
        return wrapper  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapper, lambda t: t.elem, (args, kwargs or {}))
        return tree_map_only(Tensor, cls, func(*args, **kwargs))


def distributed(t: Tensor) -> Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(t, init_device_mesh("cpu", (1,)), [Replicate()])


def fake(t: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(t)


def inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def strided(t: Tensor, strides: Callable[[int], int]) -> Tensor:
    memory = torch.cat([t.flatten(), t.flatten()])
    return memory.as_strided(t.shape, [strides(k) for k in range(t.dim())])


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "negative bit": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "conjugate": lambda t: torch.complex(t, t).conj().real,
    "sliced": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand_as(t),
    "overlapping": lambda t: strided(t, lambda k: 1),
    "zero stride": lambda t: strided(t, lambda k: 0),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
}
CLASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "subclass": lambda t: t.as_subclass(Named),
    "wrapper": Wrapper,
    "distributed": distributed,
    "fake": fake,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "inference": inference,
}
NO_SIZES = ("negative bit", "conjugate", "mkldnn", "zeros without memory")
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_l0", "peephole_l0", "norm_weight_l0", "norm_bias_l0")
ARGUMENTS = ("x", *PARAMETERS, "h", "c", "sizes", "dy", "dc")


def tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    layer = MDLSTM(2, 3, directions=[(1, 1), (-1, 1)], peephole=True, layer_norm=True)
    named: dict[str, Tensor] = {
        "x": torch.rand(2, 2, 3, 2, generator=random),
        **{k: torch.rand(p.shape, generator=random) for k, p in layer.named_parameters()},
        "h": torch.rand(2, 3, 2, 3, generator=random),
        "c": torch.rand(2, 2, 2, 3, generator=random),
        "sizes": torch.tensor([[2, 2], [1, 3]]),
        "dy": torch.rand(2, 2, 3, 6, generator=random),
        "dc": torch.rand(2, 3, 2, 3, generator=random),
    }
    return named


def unwrapped(t: Any) -> Any:
    while isinstance(t, Wrapper):
        t = t.elem
    return t.as_subclass(Tensor) if isinstance(t, Named) else t


def run(how: str, given: dict[str, Tensor]) -> list[Tensor]:
    """y, c of the final state, and the gradients of x and the parameters."""
    backend = "fused" if how == "tiles" else how
    layer = MDLSTM(2, 3, directions=[(1, 1), (-1, 1)], peephole=True, layer_norm=True, backend=backend)
    parameters = {name: given[name] for name in PARAMETERS}
    others = torch.zeros(2, 2, 2, 3), torch.zeros(2, 3, 2, 3)
    state = (BoundaryState(h=(given["h"], others[0]), c=(others[1], given["c"])),)
    arguments: Any = {"sizes": given["sizes"], "initial_state": state, "return_state": True}
    if how == "tiles":
        layer._parameters.update(parameters)  # type: ignore[arg-type]
        y, (final,) = tiling.checkpointed(layer, given["x"], 2, **arguments)
    else:
        y, (final,) = functional_call(layer, parameters, (given["x"],), arguments)
    leaves = [given["x"], *parameters.values()]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad((y, final.c[0]), leaves, (given["dy"], given["dc"]))
    return [unwrapped(t) for t in (y.detach(), final.c[0].detach(), *gradients)]


def leaves(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of which x and the parameters want gradients."""
    return {k: t.clone().requires_grad_(k == "x" or k in PARAMETERS) for k, t in given.items()}


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, for distributed tensors."""
    torch.distributed.init_process_group(store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("reference", "tiles")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["fused", "torch", *SLOW])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_any_tensor_is_computed_with_or_refused(argument: str, how: str, group: None) -> None:
    """Gradients are first looked at by torch, in whose words some are refused."""
    given, refused = tensors(), {}
    errors = (MDLSTMError, RuntimeError, AssertionError) if argument in ("dy", "dc") else MDLSTMError
    for kind, make in (VIEWS | CLASSES).items():
        if argument == "sizes" and kind in NO_SIZES:
            continue
        odd = make(given[argument].clone())
        try:
            actual = run(how, {**leaves(given), argument: odd})
        except errors as error:
            refused[kind] = str(error)
            continue
        plain = odd.contiguous().clone().resolve_neg() if kind in VIEWS else given[argument].clone()
        expected = run(how, {**leaves(given), argument: plain})
        message = f"{argument}, {kind}: "
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6, msg=message.__add__)
    assert not set(refused) & set(VIEWS), refused
    assert argument in ("dy", "dc") or not any("\n" in line for line in refused.values()), refused
