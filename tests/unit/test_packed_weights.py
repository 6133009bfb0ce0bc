"""Packed weights that are kept between calls are never stale, however the weights are written."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from mdlstm_tk import MDLSTM, clear_caches
from mdlstm_tk.backends.cpu import launch, packed_weights

X = torch.linspace(-1, 1, 2 * 4 * 5 * 3).view(2, 4, 5, 3)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    clear_caches()
    yield
    clear_caches()


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever weights are packed."""
    calls: list[int] = []
    pack = launch._pack
    monkeypatch.setattr(launch, "_pack", lambda *args: calls.append(1) or pack(*args))
    return calls


def fresh(layer: MDLSTM) -> torch.Tensor:
    """What a layer that has never run gives with the same weights."""
    clear_caches()
    with torch.no_grad():
        return copy.deepcopy(layer)(X)


def test_equal_weights_are_packed_once(packs: list[int]) -> None:
    layer = MDLSTM(3, 4, directions="all").eval()
    with torch.no_grad():
        first, second = layer(X), layer(X)
        layer(X[:1, :2])  # another shape
    assert torch.equal(first, second)
    assert len(packs) == 1


def _sgd(layer: MDLSTM) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(X).sum().backward()
    optimizer.step()


def _share(layer: MDLSTM) -> None:
    """Write through memory that NumPy shares."""
    layer.weight_ih_l0.detach().numpy()[:] *= 2


def _replace(layer: MDLSTM) -> None:
    layer.weight_ih_l0 = torch.nn.Parameter(layer.weight_ih_l0.detach() + 1)


WRITES: dict[str, Callable[[MDLSTM], object]] = {
    "in place": lambda layer: layer.weight_hh_l0.mul_(2),
    "one number": lambda layer: layer.weight_hh_l0[0, 1, 2, 3].add_(1),
    "data in place": lambda layer: layer.bias_l0.data.add_(1),
    "new data": lambda layer: setattr(layer.weight_ih_l0, "data", layer.weight_ih_l0 * 3),
    "load_state_dict": lambda layer: layer.load_state_dict(MDLSTM(3, 4).state_dict()),
    "shared memory": _share,
    "a new parameter": _replace,
}


@pytest.mark.parametrize("write", WRITES)
def test_written_weights_are_seen(write: str) -> None:
    layer = MDLSTM(3, 4).eval()
    with torch.no_grad():
        before = layer(X)
        WRITES[write](layer)
        after = layer(X)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(layer))


def test_an_optimiser_step_is_seen() -> None:
    layer = MDLSTM(3, 4)
    with torch.no_grad():
        before = layer(X)
    _sgd(layer)
    with torch.no_grad():
        after = layer(X)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(layer))


def test_a_deep_copy_is_independent() -> None:
    layer = MDLSTM(3, 4)
    with torch.no_grad():
        before = layer(X)
        other = copy.deepcopy(layer)
        other.weight_hh_l0.mul_(2)
        assert not torch.equal(other(X), before)
        assert torch.equal(layer(X), before)


def test_freed_memory_that_is_used_again() -> None:
    with torch.no_grad():
        for seed in range(20):  # the allocator hands out the same addresses again
            torch.manual_seed(seed)
            layer = MDLSTM(3, 4)
            y = layer(X)
            assert torch.equal(y, fresh(layer))


def test_several_threads_with_layers_of_their_own() -> None:
    layers = [MDLSTM(3, 4) for _ in range(4)]
    expected = [fresh(layer) for layer in layers]
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(layers[k](X), expected[k]):
                    wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [MDLSTM(3, 4) for _ in range(6)]
    with torch.no_grad():
        layers[0](X)
        monkeypatch.setattr(packed_weights._entries, "max_bytes", 3 * _packed_bytes())
        for layer in layers:
            layer(X)
    assert len(packed_weights._entries) == 3
    monkeypatch.setattr(packed_weights._entries, "max_bytes", 1)
    with torch.no_grad():
        MDLSTM(3, 5)(X)
    assert len(packed_weights._entries) == 3  # too large to be kept


def _packed_bytes() -> int:
    (entry,) = packed_weights._entries.values()
    return entry.packed.nbytes + sum(tensor.nbytes for tensor in entry.weights)
