"""Which samples of a user are trained on, validated with and tested on."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from mdlstm_tk._util.text import counted, listing
from mdlstm_tk.data.folders import entries, find_images, left_out, read_text, subfolders
from mdlstm_tk.data.samples import Survey
from mdlstm_tk.data.sampling import stratified_mask
from mdlstm_tk.data.spec import SPLITS, SampleId, Split
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES
from mdlstm_tk.kinds import kind_named, training_of

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}
SPLITS_FILE = "splits.json"


def find_sources(path: Path, kind: str) -> tuple[dict[Split, Path], list[str]]:
    """Return the file or folder of each split, and notes for the user.

    `path` is the training split if it has no train/. Names may have capital letters.

    Raises:
        InputError: there is nothing, two sources are of one split, there is no train/ beside others, splits
            lie one folder too deep, or a source is not what the kind of task expects.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}, which data (--data) names")
    training = training_of(kind)
    if files := training.find_files(path):
        names = " and ".join(str(file.relative_to(path)) for file in files.values())
        return files, left_out(f"images in {path}, as it has {names}", len(find_images(path)))
    sources: dict[Split, Path] = {}
    for split, found in _find_splits(path).items():
        sources[split] = found[0]
        if len(found) > 1:
            listing = " and ".join(source.name for source in found)
            raise InputError(f"{path} has {listing}, which all are for {split}; keep one of them")
    notes = []
    if "train" in sources:
        others = [
            entry.name
            for entry in sorted(path.iterdir())
            if (entry.is_dir() or is_npz(entry)) and not entry.name.startswith(".")
        ]
        if others := [name for name in others if path / name not in sources.values()]:
            known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
            notes = [f"beside {sources['train'].name}, left out: {', '.join(others)}; splits are {known}"]
        beside = sum(file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() for file in path.iterdir())
        notes += left_out(f"images beside {sources['train'].name}", beside)
    elif sources and not training.has_class_folders and not (path / SPLITS_FILE).exists():
        name = next(iter(sources.values())).name  # which may be a class, or named in splits.json
        raise InputError(f"{path} has {name} but no train; put what to train on into {path / 'train'}")
    else:
        _refuse_deeper_splits(path, kind)
        sources = {"train": path}
    for source in sources.values():
        if is_npz(source) != is_npz(sources["train"]) or not (is_npz(source) or source.is_dir()):
            raise InputError(
                f"{source} is not what a task of kind {kind} expects: {describe_formats(kind)}"
            )
    return sources, notes


def is_npz(path: Path) -> bool:
    """True if the path is an `.npz` file, or would be one."""
    return path.suffix.lower() == ".npz" and not os.path.isdir(path)


def holds_arrays(path: Path) -> bool:
    """True if the user's training samples at a path are arrays, not images."""
    return is_npz(_find_splits(path).get("train", [path])[0])


def _find_splits(path: Path) -> dict[Split, list[Path]]:
    """The files and folders of each split in a folder, if there are any."""
    folders, files = entries(path) if os.path.isdir(path) else ([], [])  # Path.is_dir may raise
    sources = [(folder.name, folder) for folder in folders]
    sources += [(file.stem, file) for file in files if is_npz(file)]
    found = {
        split: [source for name, source in sources if name.lower() in names]
        for split, names in SPLIT_NAMES.items()
    }
    return {split: each for split, each in found.items() if each}


def _refuse_deeper_splits(path: Path, kind: str) -> None:
    """Refuse the layout images/train, images/test, where all samples would be trained on.

    Nothing is refused where a file of the folder names the samples.
    """
    lists = filter(None, (SPLITS_FILE, kind_named(kind).table))
    if not path.is_dir() or any((path / name).exists() for name in lists):
        return
    for folder in subfolders(path):
        names = [found[0].name for found in _find_splits(folder).values() if found[0].is_dir()]
        if len(names) > 1:
            places = " and ".join(str(path / name / folder.name) for name in names)
            raise InputError(
                f"{folder} has {' and '.join(names)}, but folders of splits lie directly in {path}; "
                f"move them to {places}"
            )


def describe_formats(kind: str) -> str:
    """Describe the data that a kind of task can be read from."""
    training = training_of(kind)
    return " or ".join(dict.fromkeys((training.folder_format, training.array_format)))  # which may be one


def read_splits(path: Path, sources: Mapping[Split, Path]) -> tuple[dict[str, Split] | None, list[str]]:
    """Return the split of each prefix in splits.json, {"train": [...], "valid": [...], "test": [...]}, each
    a list of prefixes of the names of files, such as the writers; None if there is no such file, or if each
    split has a file or folder of its own. Also returns notes for the user.

    Args:
        path: the folder.
        sources: the file or folder of each split.

    Raises:
        InputError: the file is not JSON of that form, has a split twice or without a prefix, or a prefix in
            two splits.
    """
    file = path / SPLITS_FILE
    if not file.is_file():
        return None, []
    if len(sources) > 1:
        names = " and ".join(source.name for source in sources.values())
        return None, [f"{SPLITS_FILE}, left out: {names} are the splits"]
    try:
        content = json.loads(read_text(file), object_pairs_hook=partial(_as_dict, file))
    except InputError:
        raise
    except (ValueError, RecursionError):
        content = None
    split_of = {name: split for split, each in SPLIT_NAMES.items() for name in each}
    if not (
        isinstance(content, dict)
        and content.keys() <= split_of.keys()
        and all(isinstance(prefixes, list) for prefixes in content.values())
        and all(isinstance(prefix, str) for prefixes in content.values() for prefix in prefixes)
    ):
        raise InputError(
            f'{file} is not {{"train": [...], "valid": [...], "test": [...]}} with prefixes of file names'
        )
    splits: dict[str, Split] = {}
    for name, prefixes in content.items():
        if not prefixes:
            raise InputError(f"{file} names no prefix for {name}; name one, or leave {name} out")
        for prefix in prefixes:
            if splits.setdefault(prefix, split_of[name]) != split_of[name]:
                raise InputError(f"{file} has {prefix!r:.80} in two splits; name it in one")
    return splits, []


def _as_dict(file: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object, which says each name once."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise InputError(f"{file} has {twice[0]!r:.80} more than once; join the lists")
    return dict(pairs)


def divide(
    surveys: Sequence[Survey], prefixes: Mapping[str, Split]
) -> tuple[dict[Split, list[Survey]], list[str]]:
    """Divide samples by the prefixes of splits.json; also returns notes on files and prefixes that match
    none."""
    splits: dict[Split, list[Survey]] = {split: [] for split in prefixes.values()}
    files: dict[str, None] = {}
    unused = dict(prefixes)
    for survey in surveys:
        prefix = prefix_of(survey.sample.group, prefixes)
        if prefix is None:
            files[survey.sample.group] = None
        else:
            splits[prefixes[prefix]].append(survey)
            unused.pop(prefix, None)
    splits.setdefault("train", [])
    notes = [
        f"{text}: {listing([*names], most=10)}"
        for text, names in (
            ("files that splits.json does not name, left out", files),
            ("prefixes in splits.json that no sample has", unused),
        )
        if names
    ]
    return splits, notes


def divide_by_use(
    splits: Mapping[Split, Sequence[Survey]],
    known: Mapping[Split, Sequence[SampleId]],
    learned: Sequence[SampleId],
) -> dict[Split, list[Survey]]:
    """Divide samples by what a run did with their content; those that are new to it are tested.

    Args:
        splits: how files and folders divide them.
        known: the samples that the run has had, by split.
        learned: further samples that its weights have learned.
    """
    had = {split: {(e.digest, e.name) for e in known.get(split, ())} for split in SPLITS}
    had["train"] |= {(each.digest, each.name) for each in learned}
    digests = {split: {digest for digest, _ in pairs} for split, pairs in had.items()}
    divided: dict[Split, list[Survey]] = {split: [] for split in SPLITS}
    for split, surveys in splits.items():
        for survey in surveys:
            digest, name, _ = survey.identity
            uses = [use for use in SPLITS if (digest, name) in had[use]]
            uses += [use for use in (split, *SPLITS) if digest in digests[use]]
            divided[(*uses, "test")[0]].append(survey)
    return {split: each for split, each in divided.items() if each or split == "train"}


def hold_out(
    surveys: list[Survey],
    kind: str,
    share: float,
    seed: int,
    known: Mapping[Split, Sequence[SampleId]] | None,
) -> tuple[list[Survey], list[Survey]]:
    """Divide samples into those to train on and those to validate with: as `known`, or stratified by class.

    Samples of a group stay together. A changed file of `known` stays where it was by its name.
    """
    if known is None:
        stratum = training_of(kind).stratum
        classes = {survey.sample.group: stratum(survey.target) for survey in surveys}
        mask = stratified_mask(list(classes.values()), share, seed).tolist()
        held_out = {group for group, is_out in zip(classes, mask, strict=True) if is_out}
    else:
        held_out = _known_groups(surveys, known)
    train = [survey for survey in surveys if survey.sample.group not in held_out]
    return train, [survey for survey in surveys if survey.sample.group in held_out]


def _known_groups(surveys: Sequence[Survey], known: Mapping[Split, Sequence[SampleId]]) -> set[str]:
    """The groups that were held out: those with a sample that is known to have been.

    A sample is known by its digest and name, else by its digest, and if no sample has the digest any
    more, by its name. Copies in both parts are told apart by their names alone. Of those with other
    names as many are held out as before, but no more than were not trained on.
    """
    present = {survey.identity.digest for survey in surveys}
    was_out: dict[object, bool] = {}
    unclaimed: dict[Split, Counter[str]] = {"train": Counter(), "validation": Counter()}
    for split in ("validation", "train"):  # what was in both has been trained on
        for digest, name, _ in known[split]:
            keys = (digest, name), digest, *(() if digest in present else (name,))
            was_out |= dict.fromkeys(keys, split == "validation")
            unclaimed[split][digest] += 1
    in_both = unclaimed["train"].keys() & unclaimed["validation"].keys()
    groups: dict[str, bool] = {}  # if they were held out
    copies: defaultdict[str, dict[str, None]] = defaultdict(dict)  # by digest, their groups
    for survey in surveys:
        (digest, name, _), group = survey.identity, survey.sample.group
        key = next((key for key in ((digest, name), digest, name) if key in was_out), None)
        if key == digest and digest in in_both:
            copies[digest][group] = None
        elif key is not None:
            groups[group] = groups.get(group, False) or was_out[key]
            unclaimed["validation" if was_out[key] else "train"][digest] -= 1
    for digest, its_groups in copies.items():
        others = [group for group in its_groups if group not in groups]
        trained, held_out = (max(unclaimed[split][digest], 0) for split in ("train", "validation"))
        groups |= dict.fromkeys(others[trained : trained + held_out], True)
    return {group for group, is_out in groups.items() if is_out}


def in_order_of(surveys: Sequence[Survey], known: Sequence[SampleId]) -> list[Survey]:
    """Sort samples as those of equal content in `known`, with equal targets if there are such; others
    follow in their order."""
    places: dict[int, int] = {}  # of surveys
    free = dict(enumerate(known))
    for key_of in (itemgetter(0, 2), itemgetter(0)):  # digest and target, then digest alone
        by_key: defaultdict[object, deque[int]] = defaultdict(deque)
        for place, identity in free.items():
            by_key[key_of(identity)].append(place)
        for k, survey in enumerate(surveys):
            if k not in places and by_key[key := key_of(survey.identity)]:
                del free[places.setdefault(k, by_key[key].popleft())]
    order = sorted(range(len(surveys)), key=lambda k: places.get(k, len(known)))
    return [surveys[k] for k in order]


def describe_copies(splits: Mapping[Split, Sequence[Survey]]) -> list[str]:
    """Say how many samples equal an earlier one: of the same split, or of any split with another target.

    Equal ones in training and in another split are those of `describe_overlap`.
    """
    earlier: dict[str, tuple[Split, Survey]] = {}
    copies: list[str] = []
    contradictions: list[str] = []
    for split, surveys in splits.items():
        for survey in surveys:
            its_split, first = earlier.setdefault(survey.identity.digest, (split, survey))
            named = f"'{survey.sample.name}' of '{first.sample.name}'"
            if survey.identity.target != first.identity.target:
                contradictions.append(named)
            elif survey is not first and its_split == split:
                copies.append(named)
    lines = (("", copies), (" with another target", contradictions))
    return [
        f"{counted(len(each), 'sample is a copy', 'samples are copies')} of one{text}; first {each[0]}"
        for text, each in lines
        if each
    ]


def prefix_of(name: str, prefixes: Iterable[str]) -> str | None:
    """Return the longest prefix of a file's relative path, or of its name alone; None if none fits."""
    name = Path(name).as_posix()
    starts = (name, name.rpartition("/")[2])
    fitting = (prefix for prefix in prefixes if any(start.startswith(prefix) for start in starts))
    return max(fitting, key=len, default=None)
