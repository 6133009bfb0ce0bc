"""Bounds in bytes of all that is kept between calls, and a way to free it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad, jvp

import mdlstm_tk
from mdlstm_tk import MDLSTM, wavefront
from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk.backends import tables
from mdlstm_tk.backends.cpu import plan

CACHES = (wavefront._cache, tables._cache, plan.plans)


def test_the_oldest_entries_go_first_and_the_newest_stays() -> None:
    cache: BoundedCache[str, int] = BoundedCache(100)
    cache.add("a", 1, 40)
    cache.add("b", 2, 40)
    cache.add("a", 3, 50)  # replaced, and now the newest
    assert dict(cache) == {"a": 3, "b": 2}
    cache.add("c", 4, 20)
    assert dict(cache) == {"a": 3, "c": 4}
    cache.add("d", 5, 1000)
    assert dict(cache) == {"d": 5}
    cache.clear()
    cache.add("e", 6, 100)
    assert dict(cache) == {"e": 6}


def test_several_threads_may_use_a_cache() -> None:
    cache: BoundedCache[int, int] = BoundedCache(50)

    def work(first: int) -> None:
        for k in range(300):
            cache.add(first + k % 17, k, 1 + k % 9)
            cache.get(first)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(0, 40, 10)))
    cache.add(-1, 0, 50)
    assert dict(cache) == {-1: 0}


def test_a_value_that_is_dropped_while_it_is_added_goes_with_the_next_one() -> None:
    class Interrupted(BoundedCache[str, int]):
        def __setitem__(self, key: str, value: int) -> None:
            if key == "a":  # as if another thread came between
                self.add("b", 2, 100)
            super().__setitem__(key, value)

    cache = Interrupted(100)
    cache.add("a", 1, 40)
    cache.add("c", 3, 100)
    assert dict(cache) == {"c": 3}


def test_clear_caches_frees_everything() -> None:
    layer, x = MDLSTM(2, 4), torch.randn(1, 6, 7, 2)
    with torch.no_grad():
        y = layer(x)
        MDLSTM(2, 4, backend="torch")(x)
        assert all(CACHES)
        mdlstm_tk.clear_caches()
        assert not any(CACHES)
        assert torch.equal(layer(x), y)


def test_tables_of_many_grids_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    mdlstm_tk.clear_caches()
    for cache in CACHES:
        monkeypatch.setattr(cache, "max_bytes", 20_000)
    layer = MDLSTM(1, 1)
    for extent in range(1, 20):
        layer(torch.zeros(1, extent, 20, 1)).sum().backward()
    entries = [value for cache in CACHES[:2] for value in cache.values()]
    assert entries and sum(value.nbytes for value in entries) <= 2 * 20_000
    mdlstm_tk.clear_caches()


def test_plans_count_the_tables_that_they_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    mdlstm_tk.clear_caches()
    monkeypatch.setattr(plan.plans, "max_bytes", 1_000_000)
    layer = MDLSTM(1, 1, directions="all")
    with torch.no_grad():
        for extent in range(20, 40):
            layer(torch.zeros(1, extent, 40, 1))
    memory = [part for made in plan.plans.values() for part in made.jobs.memory]
    tables_alive = {id(part): part.nbytes for part in memory if isinstance(part, tables.SweepTables)}
    assert len(plan.plans) > 1 and sum(tables_alive.values()) <= 1_000_000
    mdlstm_tk.clear_caches()


def test_tables_take_four_bytes_an_entry() -> None:
    front = wavefront.wavefronts((30, 40))
    sweep = tables.sweep_tables((30, 40), ((1, 1),), torch.device("cpu"))
    for table in (front.order, front.predecessors, front.successors):
        assert table.dtype == np.int32
    tensors = [sweep.order, sweep.inverse_order, sweep.predecessors, sweep.successors, *sweep.previous]
    assert {tensor.dtype for tensor in tensors} == {torch.int32}
    assert front.nbytes < 21 * 30 * 40
    assert sweep.nbytes == sum(tensor.nbytes for tensor in [sweep.starts, *tensors]) < 33 * 30 * 40


def test_tables_of_several_grids_are_kept() -> None:
    mdlstm_tk.clear_caches()
    cpu, grids = torch.device("cpu"), [(32, 32), (40, 30)]
    makers = (
        wavefront.wavefronts,
        lambda grid: tables.sweep_tables(grid, ((1, 1),), cpu),
        lambda grid: tables.ragged_tables((grid, (3, 4)), (50, 50), ((1, 1),), cpu),
    )
    for make in makers:
        first = [make(grid) for grid in grids]
        assert all(make(grid) is table for grid, table in zip(grids, first, strict=True))
    assert sum(cache.max_bytes for cache in (*CACHES, tables._ragged_cache)) <= 1 << 28


def test_a_ragged_batch_has_no_wavefront_without_rows() -> None:
    for extents, counts in {((1, 1), (1, 1)): [2], ((2, 1), (1, 1)): [2, 1], ((0, 3), (0, 0)): [0]}.items():
        table = tables.ragged_tables(extents, (3, 3), ((1, 1),), torch.device("cpu"))
        assert table.counts == counts


@pytest.mark.parametrize("first", [lambda f: grad(lambda x: f(x).sum()), torch.inference_mode()])
def test_tables_made_in_a_transform_or_in_inference_mode_serve_training(first: Any) -> None:
    mdlstm_tk.clear_caches()
    layer, x = MDLSTM(2, 3, backend="torch"), torch.randn(1, 3, 4, 2)
    first(layer)(x)
    torch.testing.assert_close(jvp(layer, (x,), (x,))[0], layer(x))
    gradient = torch.autograd.grad(layer(x).square().sum(), layer.weight_ih_l0, create_graph=True)[0]
    gradient.square().sum().backward()
