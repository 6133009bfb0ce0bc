"""Run the steps of a plan on threads of this process, and go on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.regular_files import read_json
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import read_npz
from mdlstm_tk.runtime.tiles.plan import Group, Plan
from mdlstm_tk.runtime.tiles.store import Store, scratch_error
from mdlstm_tk.runtime.tiles.work import Face, FaceKey, Work

MAX_STATE_BYTES = 2**34

Report = Callable[[int, int], None]  # how many tiles are done, of how many


class State:
    """The state from which a run can go on: the next step, and the faces by which its tiles are entered.

    Args:
        folder: scratch folder of the run.
        fingerprint: JSON values of all that the result depends on.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self._faces, self._fingerprint = folder / "state.npz", folder / "run.json"
        self._wanted = json.loads(json.dumps(fingerprint))

    def begin(self) -> None:
        """Note what is run, unless an interrupted run has.

        Raises:
            InputError: that was another run; the message names the first difference.
            MDLSTMError: the disk is full.
        """
        if self._fingerprint.exists():
            self._check()
            return
        temporary = self._fingerprint.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(self._wanted))
            os.replace(temporary, self._fingerprint)
        except OSError as error:
            raise scratch_error(temporary, error) from None

    def load(self) -> tuple[int, dict[FaceKey, Face]]:
        """The next step and the faces, if the run was interrupted; else step 0."""
        if not self._faces.exists():
            return 0, {}
        faces: dict[FaceKey, Face] = {}
        step = 0
        with self._faces.open("rb") as file:
            for name, array in read_npz(file, str(self._faces), MAX_STATE_BYTES):
                if name == "step":
                    step = int(array)
                    continue
                sweep, axis, *tile = map(int, name.split(" "))
                faces[sweep, tuple(tile), axis] = array
        return step, faces

    def _check(self) -> None:
        found = read_json(self._fingerprint, 2**20)
        if found != self._wanted:
            names = [*self._wanted, *(found if isinstance(found, dict) else {})]
            name = next((n for n in names if found.get(n) != self._wanted.get(n)), "run")
            raise InputError(
                f"what was interrupted had another {name} ({_short(found.get(name))}, now "
                f"{_short(self._wanted.get(name))}); give the same one, or start over with --force in "
                "place of --resume"
            )

    def save(self, step: int, faces: Mapping[FaceKey, Face]) -> None:
        """Replace what `load` returns; a kill in between leaves the old state.

        Raises:
            MDLSTMError: the disk is full.
        """
        arrays: dict[str, Any] = {"step": np.asarray(step)}
        for (sweep, tile, axis), face in faces.items():
            arrays[" ".join(map(str, (sweep, axis, *tile)))] = face
        temporary = self._faces.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, self._faces)
        except OSError as error:
            raise scratch_error(temporary, error) from None


def run_steps(
    work: Work,
    plan: Plan,
    store: Store,
    *,
    threads: int = 1,
    state: State | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> None:
    """Run all steps of a plan.

    Args:
        work: runs a group.
        plan: the steps.
        store: of the run.
        threads: number of groups that run at the same time.
        state: where to note what is done; None: nowhere.
        resume: go on from what `state` holds.
        report: is called after each step with the number of tiles that are done, and of all.

    Raises:
        MDLSTMError: a group fails.
    """
    from concurrent.futures import ThreadPoolExecutor  # imported late: most models need none

    first, faces = state.load() if state is not None and resume else (0, {})
    done = 0
    for step in range(first):
        groups = plan.groups(step)
        store.begin(groups)
        store.end(groups)
        done += sum(len(group.tiles) for group in groups)
    with ThreadPoolExecutor(threads) as executor:

        def run(group: Group) -> dict[FaceKey, Face]:
            return work.run(group, faces)

        for step in range(first, plan.step_count):
            groups = plan.groups(step)
            store.begin(groups)
            try:
                results = [run(groups[0])] if len(groups) == 1 else list(executor.map(run, groups))
            except BaseException:
                executor.shutdown(wait=True, cancel_futures=True)
                raise
            entered = {(group.sweep, tile) for group in groups for tile in group.tiles}
            faces = {key: face for key, face in faces.items() if key[:2] not in entered}
            for left in results:
                faces |= left
            if state is not None:
                state.save(step + 1, faces)
            store.end(groups)
            store.forget(step + 1)
            done += sum(len(group.tiles) for group in groups)
            if report is not None:
                report(done, plan.tile_count)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
