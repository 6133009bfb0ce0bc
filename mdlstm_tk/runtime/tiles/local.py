"""Run the steps of a plan on threads of this process, and go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import Argument, InputError, MDLSTMError
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.tiles.plan import Group
from mdlstm_tk.runtime.tiles.work import Work

Report = Callable[[int, int], None]  # how many tiles are done, of how many


STATE = "state.json"


class State:
    """The next step of a run that may be interrupted, in its scratch folder, with the JSON values of all
    that the result depends on. Nothing is written before `save`."""

    def __init__(self, folder: Path, dependencies: Mapping[str, Any]) -> None:
        self._path, self._dependencies = folder / STATE, json.loads(json.dumps(dependencies))
        self.step = 0
        if not self._path.exists():
            return
        try:
            stored = json.loads(self._path.read_text())
            self.step = int(stored["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            advice = "start over with ", Argument("force", True)
            raise MDLSTMError(f"cannot read {self._path} ({error}); ", *advice) from None
        for name, value in self._dependencies.items():
            old = stored.get(name)
            if old != value:
                raise InputError(
                    f"what was interrupted had another {name} ({old!s:.200}, now {value!s:.200}); give the "
                    "same one, or start over with ",
                    *(Argument("force", True), " in place of ", Argument("resume", True)),
                )

    def save(self, step: int) -> None:
        """Replace the state; a kill in between leaves the old one."""
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps({"step": step, **self._dependencies}))


RunGroups = Callable[[Sequence[Group]], None]
"""Runs the groups of a step."""


@contextmanager
def on_threads(work: Work, threads: int) -> Iterator[RunGroups]:
    """Run groups on threads of this process."""
    from concurrent.futures import ThreadPoolExecutor  # imported late: most models need none

    with ThreadPoolExecutor(threads) as executor:

        def run_groups(groups: Sequence[Group]) -> None:
            in_this_thread = threads == 1 or len(groups) == 1
            list((map if in_this_thread else executor.map)(work.run, groups))

        try:
            yield run_groups
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C; a failure may not stop the runs of other calls
                work.graphs.interrupt()
            executor.shutdown(cancel_futures=True)
            raise


def run_steps(
    work: Work, run_groups: RunGroups, *, state: State | None = None, report: Report | None = None
) -> None:
    """Run all steps of a plan.

    Args:
        work, run_groups: of the run.
        state: holds the first step, and is saved after each; None: step 0, and nothing is saved.
        report: is called after each step with the number of tiles that are done, and of all.
    """
    plan = work.plan
    first = 0 if state is None else state.step
    done = sum(len(group.tiles) for step in range(first) for group in plan.groups(step))
    for group in plan.groups(first - 1):
        work.store.forget(group)  # a kill may have come between the state and this
    for step in range(first, plan.step_count):
        groups = plan.groups(step)
        run_groups(groups)
        if state is not None:
            state.save(step + 1)
        for group in groups:
            work.store.forget(group)
            done += len(group.tiles)
        if report is not None:
            report(done, plan.tile_count)
    work.finish()
