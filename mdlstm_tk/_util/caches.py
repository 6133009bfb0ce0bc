"""Caches between calls, bounded in bytes: index tables and plans of sweeps."""

from __future__ import annotations

from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_caches: list[BoundedCache[Any, Any]] = []


class BoundedCache(dict[K, V]):
    """A first-in-first-out cache: the oldest entries are dropped while the total exceeds `max_bytes`.

    The newest entry stays, however much it takes. Threads may share a cache. No lock is used, because a
    forked child could inherit it locked: every step is one operation on a dictionary.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self._sizes: dict[K, int] = {}  # in the order in which entries were added
        _caches.append(self)

    def add(self, key: K, value: V, nbytes: int) -> None:
        """Keep a value that takes `nbytes`, and drop the oldest ones that it leaves no room for."""
        self._sizes.pop(key, None)
        self[key] = value  # a size without a value is harmless; a value without a size would never go
        self._sizes[key] = nbytes
        sizes = self._sizes.copy()
        total = sum(sizes.values())
        for oldest, size in sizes.items():
            if total <= self.max_bytes or oldest == key:
                break
            self._sizes.pop(oldest, None)
            self.pop(oldest, None)
            total -= size

    def clear(self) -> None:
        """Drop all entries."""
        self._sizes.clear()
        super().clear()


def clear_caches() -> None:
    """Free the memory that sweeps keep between calls: index tables and CPU plans.

    It is bounded (docs/performance.md), so this is for programs that need the memory for something else.
    The next call of a layer makes again what it needs.
    """
    for cache in _caches:
        cache.clear()
