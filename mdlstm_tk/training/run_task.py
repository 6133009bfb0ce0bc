"""What a run was trained on: whether a task is that of a run, and how samples have changed. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from mdlstm_tk._util.text import counted, quoted
from mdlstm_tk.errors import InputError
from mdlstm_tk.training.config import TrainConfig

if TYPE_CHECKING:  # modules of data import NumPy, which the help of the command line does without
    from mdlstm_tk.data import Split, Task, TaskSpec
    from mdlstm_tk.data.spec import SampleId

    Samples = Mapping[Split, Sequence[SampleId]]

# Fields of a `TaskSpec`: those that all tasks of a run share, and those that the network of a run has.
SAME_DATA = ("kind", "channels", "classes", "outputs", "mask_values", "preprocessing")
OF_NETWORK = ("mean", "std", "target_mean", "target_std", "threshold")
USES: Mapping[Split, str] = {"train": "trained on", "validation": "validated with", "test": "tested on"}


def match_run(task: Task, config: TrainConfig, spec: TaskSpec) -> None:
    """Check that a task is what a run was trained on, and give it the numbers of the run's network.

    Args:
        task: the task.
        config: configuration of the run; the user's data, if it names any, may have moved.
        spec: the description of the task that the run was trained on.

    Raises:
        InputError: it is another one.
    """
    source = config.data or f"the task {task.name}"
    for name in (*SAME_DATA, *(("size",) if task.takes_data else ()), *(() if config.data else ("name",))):
        actual, expected = getattr(task.spec, name), getattr(spec, name)
        if actual != expected:
            difference = f"{name} is {actual!s:.80}, expected {expected!s:.80}"
            if name == "classes":
                difference = _class_difference(actual, expected)
            raise InputError(f"{source} is not what the run was trained on: {difference}")
    numbers = {name: getattr(spec, name) for name in OF_NETWORK}
    if any(getattr(task.spec, name) != value for name, value in numbers.items()):
        task.spec = replace(task.spec, **numbers)


def _class_difference(actual: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """Name the classes or characters that came or went."""
    added, gone = sorted(set(actual) - set(expected)), sorted(set(expected) - set(actual))
    parts = [f"new classes {quoted(added)}"] if added else []
    parts += [f"no samples of {quoted(gone)}"] if gone else []
    return " and ".join(parts) or "the classes have another order"


def describe_changes(before: Samples, now: Samples) -> list[str]:
    """Say how the samples of a run have changed, one line for each kind of change.

    Args:
        before: all samples that the run has had, by split.
        now: its samples now.

    Raises:
        InputError: samples that were trained on are now to be validated with or tested on.
    """
    digests = {split: {each.digest for each in samples} for split, samples in before.items()}
    names: dict[str, set[str]] = {}
    targets: dict[str, set[str]] = {}
    for each in chain(*before.values()):
        names.setdefault(each.digest, set()).add(each.name)
        targets.setdefault(each.digest, set()).add(each.target)
    present = {each.digest for each in chain(*now.values())}
    missing = {each.name for each in chain(*before.values()) if each.digest not in present}
    renamed = {e.name for e in chain(*now.values()) if e.digest in names and e.name not in names[e.digest]}
    known = (each for each in chain(*now.values()) if each.digest in targets)
    changed = {each.name for each in known if targets[each.digest].isdisjoint((each.target, ""))}
    lines = [
        ("sample has another target", "samples have another target", changed),
        ("sample of the run is missing", "samples of the run are missing", missing),
        ("sample is copied or renamed", "samples are copied or renamed", renamed),
    ]
    trained = "that the run was trained on"
    for split, samples in now.items():
        added = [each for each in samples if each.digest not in digests.get(split, ())]
        if leaks := [each.name for each in added if split != "train" and each.digest in digests["train"]]:
            raise InputError(
                f"{counted(len(leaks), f'sample {trained} is', f'samples {trained} are')} now among those "
                f"that it is {USES[split]}: {quoted(leaks)}; "
                "put them back, take them out, or train a new run"
            )
        unknown = {each.name for each in added if each.digest not in names}
        lines.append((f"new sample is {USES[split]}", f"new samples are {USES[split]}", unknown))
        moved = {each.name for each in added if each.digest in names}
        one, many = "sample of another split is", "samples of another split are"
        lines.append((f"{one} now {USES[split]}", f"{many} now {USES[split]}", moved))
    return [f"{counted(len(each), one, many)}: {quoted(sorted(each))}" for one, many, each in lines if each]


def describe_overlap(now: Samples, trained: Sequence[SampleId] = ()) -> list[str]:
    """Say which samples are validated with or tested on although they, or their copies, are trained on; and
    which are tested on although the best weights are chosen with them.

    Args:
        now: the samples by split.
        trained: further samples that the network was trained on.
    """
    learned = {each.digest for each in (*now.get("train", ()), *trained)}
    chosen_with = {each.digest for each in now.get("validation", ())} - learned
    too_low = "trained on as well, so its errors are too low"
    may_be = "validated with as well, which chooses the weights, so its errors may be too low"
    uses: tuple[tuple[Split, set[str], str], ...] = (
        ("validation", learned, too_low),
        ("test", learned, too_low),
        ("test", chosen_with, may_be),
    )
    lines = []
    for split, digests, use in uses:
        samples = now.get(split, ())
        if names := [each.name for each in samples if each.digest in digests]:
            lines.append(
                f"{len(names)} of the {counted(len(samples), 'sample')} that the network is "
                f"{USES[split]} {'is' if len(names) == 1 else 'are'} {use}: {quoted(names)}"
            )
    return sorted(lines)
