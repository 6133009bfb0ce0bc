"""Run the steps of a plan on threads of this process, and go on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import Argument, InputError, MDLSTMError
from mdlstm_tk.runtime.io.files import cannot_write
from mdlstm_tk.runtime.tiles.plan import Group
from mdlstm_tk.runtime.tiles.work import Face, FaceKey, Work

Report = Callable[[int, int], None]  # how many tiles are done, of how many


class State:
    """The state of an interrupted run: the next step, and the faces that enter its tiles.

    It lies in the scratch folder, with JSON values of all that the result depends on.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self._path, self._fingerprint = folder / "state.npz", json.loads(json.dumps(fingerprint))
        self.step, self.faces = 0, dict[FaceKey, Face]()
        if self._path.exists():
            self._load()
        else:
            self.save(0, {})

    def save(self, step: int, faces: Mapping[FaceKey, Face]) -> None:
        """Replace the state; a kill in between leaves the old one."""
        arrays: dict[str, Any] = {"step": step, "fingerprint": json.dumps(self._fingerprint)}
        for (sweep, tile, axis), face in faces.items():
            arrays[" ".join(map(str, (sweep, axis, *tile)))] = face
        temporary = self._path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, self._path)
        except OSError as error:
            raise cannot_write(temporary, error) from None

    def _load(self) -> None:
        try:
            with np.load(self._path) as file:
                arrays = dict(file)
            stored = json.loads(str(arrays.pop("fingerprint")))
            self.step = int(arrays.pop("step"))
        except Exception as error:  # zipfile raises all kinds of exceptions
            advice = "start over with ", Argument("force", True)
            raise MDLSTMError(f"cannot read {self._path} ({error}); ", *advice) from None
        for name, value in self._fingerprint.items():
            if stored.get(name) != value:
                raise InputError(
                    f"what was interrupted had another {name} ({stored.get(name)!s:.60}, now {value!s:.60})"
                    "; give the same one, or start over with ",
                    *(Argument("force", True), " in place of ", Argument("resume", True)),
                )
        for name, face in arrays.items():
            sweep, axis, *tile = map(int, name.split())
            self.faces[sweep, tuple(tile), axis] = face


RunGroups = Callable[[Sequence[Group], Mapping[FaceKey, Face]], list[dict[FaceKey, Face]]]
"""Runs the groups of a step, and returns the faces that each has left."""


@contextmanager
def on_threads(work: Work, threads: int) -> Iterator[RunGroups]:
    """Run groups on threads of this process."""
    from concurrent.futures import ThreadPoolExecutor  # imported late: most models need none

    with ThreadPoolExecutor(threads) as executor:

        def run_groups(groups: Sequence[Group], faces: Mapping[FaceKey, Face]) -> list[dict[FaceKey, Face]]:
            in_this_thread = threads == 1 or len(groups) == 1
            return list(
                (map if in_this_thread else executor.map)(lambda group: work.run(group, faces), groups)
            )

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
    first, faces = (0, dict[FaceKey, Face]()) if state is None else (state.step, state.faces)
    done = sum(len(group.tiles) for step in range(first) for group in plan.groups(step))
    for group in plan.groups(first - 1):
        work.store.forget(group)  # a kill may have come between the state and this
    for step in range(first, plan.step_count):
        groups = plan.groups(step)
        results = run_groups(groups, faces)
        entered = {(group.sweep, tile) for group in groups for tile in group.tiles}
        faces = {key: face for key, face in faces.items() if key[:2] not in entered}
        for leaving in results:
            faces |= leaving
        if state is not None:
            state.save(step + 1, faces)
        for group in groups:
            work.store.forget(group)
            done += len(group.tiles)
        if report is not None:
            report(done, plan.tile_count)
    work.finish()
