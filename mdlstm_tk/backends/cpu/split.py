"""How the threads of a team share a sweep.

Groups of threads take directions in turn and need nothing of each other. The members of a group share
each wavefront's rows and wait for each other behind it.
"""

from __future__ import annotations

from typing import NamedTuple

# What a thread should have to do for its products to take some 50 µs and some 3 µs. Waking one takes
# 2 µs and a barrier 0.03 µs (AMD EPYC) where each has a core, and far more where they must share one.
SWEEP_OPERATIONS = 5_000_000
WAVEFRONT_OPERATIONS = 300_000


class Place(NamedTuple):
    """A thread's: which group it is of, which member of that, and how many there are of each."""

    group: int
    member: int
    groups: int
    members: int

    @property
    def thread(self) -> int:
        return self.group * self.members + self.member


class Partition(NamedTuple):
    """So many groups, of so many members each."""

    groups: int
    members: int

    @property
    def threads(self) -> int:
        return self.groups * self.members

    def places(self, size: int) -> list[Place]:
        """That of a thread which is alone; and behind it, in a team of more, that of each."""
        shared = range(size) if size > 1 else ()
        return [Place(0, 0, 1, 1), *(Place(*divmod(k, self.members), *self) for k in shared)]


def split(
    operations: int, fronts: int, dirs: int, threads: int, most_groups: int | None = None
) -> Partition:
    """The split that keeps most threads busy, and of those the one with most groups.

    Each thread must have more to do than waking it costs, and each member of a group more in a wavefront
    than waiting for the others does.

    Args:
        operations: floating-point operations of one direction's products, in `fronts` wavefronts.
        dirs: directions.
        threads: how many there may be.
        most_groups: how many groups there may be.
    """
    threads = min(threads, operations * dirs // SWEEP_OPERATIONS)
    members = operations // fronts // WAVEFRONT_OPERATIONS
    splits = [Partition(1, 1)]
    for groups in range(1, min(dirs, threads, dirs if most_groups is None else most_groups) + 1):
        if dirs % groups == 0:
            splits.append(Partition(groups, max(1, min(members, threads // groups))))
    return max(splits, key=lambda candidate: (candidate.threads, candidate.groups))
