"""Which samples are trained on, validated with and tested on. A sample is known by its content."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mdlstm_tk.data.files import is_npz
from mdlstm_tk.data.scan import Scanned
from mdlstm_tk.data.task import SPLITS, Split
from mdlstm_tk.errors import InputError

log = logging.getLogger("mdlstm_tk.data")
NAMES: dict[str, Split] = {
    "train": "train",
    **dict.fromkeys(("val", "validation", "valid", "dev"), "validation"),
    "test": "test",
}
PREFIXES = "splits.json"


def sources(path: Path, kind: Any) -> dict[Split, Path]:
    """The file or folder of each split: train/, val/ and test/, or .npz files of these names; else the path
    itself is trained on.

    Raises:
        InputError: there is nothing, a split has two sources, there is none to train on, or splits lie one
            folder too deep.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}, which data (--data) names")
    found = _split_entries(path)
    if "train" in found:
        return found
    if found and kind.targets and not (path / PREFIXES).exists():  # else they may be classes
        raise InputError(f"{path} has {min(found.values()).name} but no train")
    for folder in path.iterdir() if path.is_dir() and not (path / PREFIXES).exists() else ():
        if len(names := sorted(each.name for each in _split_entries(folder).values())) > 1:
            places = " and ".join(f"{name}/{folder.name}" for name in names)
            raise InputError(f"{folder} has {' and '.join(names)}; folders of splits are {path}/{places}")
    return {"train": path}


def _split_entries(path: Path) -> dict[Split, Path]:
    found: dict[Split, Path] = {}
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        split = NAMES.get(entry.stem.lower()) if entry.is_dir() or is_npz(entry) else None
        if split and found.setdefault(split, entry) != entry:
            raise InputError(f"{found[split]} and {entry} are both for {split}; keep one of them")
    return found


def divide(
    scanned: Mapping[Split, Sequence[Scanned]],
    path: Path,
    share: float,
    seed: int,
    stratum: Callable[[Any], str],
    learned: Collection[str] = (),
) -> dict[Split, list[Scanned]]:
    """The samples of each split: as folders or `splits.json` say, and of what is trained on, if nothing
    else is for validation, a share of each class and at least one sample.

    Which ones are held out follows from their contents, so copies and the parts of one page stay together,
    and what the weights have `learned` before is held out last.

    Raises:
        InputError: `splits.json` is wrong, or a split is empty.
    """
    splits = {split: list(each) for split, each in scanned.items()}
    if len(splits) == 1 and (path / PREFIXES).is_file():
        splits = _by_prefixes(splits["train"], path / PREFIXES)
    if empty := [split for split, each in splits.items() if not each]:
        raise InputError(f"{path} has no usable sample for {empty[0]}; add some, or leave it out")
    if "validation" not in splits:
        out = _held_out(splits["train"], share, seed, stratum, learned)
        splits["validation"] = [each for each in splits["train"] if each.sample.group in out]
        splits["train"] = [each for each in splits["train"] if each.sample.group not in out]
    return {split: splits[split] for split in SPLITS if splits.get(split)}


def _held_out(
    samples: Sequence[Scanned],
    share: float,
    seed: int,
    stratum: Callable[[Any], str],
    learned: Collection[str],
) -> set[str]:
    """The groups to validate with. Groups that share a content are one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for each in samples:
        parent[root(each.sample.group)] = root(each.digest)
    parts: dict[str, list[Scanned]] = defaultdict(list)
    for each in samples:
        parts[root(each.digest)].append(each)
    classes: dict[str, list[tuple[bool, str, set[str]]]] = defaultdict(list)
    for part in parts.values():  # in the order of contents
        rank = blake2b(f"{seed} {part[0].digest}".encode(), digest_size=8).hexdigest()
        was_learned = any(each.digest in learned for each in part)
        groups = {each.sample.group for each in part}
        classes[stratum(part[0].summary)].append((was_learned, rank, groups))
    out: set[str] = set()
    for each_class in classes.values():
        count = min(max(round(share * len(each_class)), share > 0), len(each_class) - 1)
        ranked = sorted(each_class, key=lambda part: part[:2])
        out.update(*(groups for _, _, groups in ranked[:count]))
    return out


def _by_prefixes(samples: Sequence[Scanned], file: Path) -> dict[Split, list[Scanned]]:
    """{"train": ["anna"], "valid": ["bert"], "test": [...]}: the prefixes of the names of files."""
    try:
        lists = json.loads(file.read_text("utf-8-sig")).items()
        pairs = [(p, NAMES[split]) for split, each in lists for p in each]
        if not all(isinstance(each, list) for _, each in lists) or len(dict(pairs)) < len(pairs):
            raise ValueError
        prefixes = {str.__str__(p): split for p, split in pairs}
    except (ValueError, KeyError, AttributeError, TypeError):
        text = '{"train": [...], "valid": [...], "test": [...]} with prefixes of file names, each once'
        raise InputError(f"{file} is not {text}") from None
    splits: dict[Split, list[Scanned]] = {split: [] for split in ("train", *prefixes.values())}
    others = []
    for each in samples:
        name = Path(each.sample.group).as_posix()
        fitting = [p for p in prefixes if any(start.startswith(p) for start in (name, Path(name).name))]
        if fitting:
            prefix = max(fitting, key=len)  # such as a writer
            splits[prefixes[prefix]].append(replace(each, sample=each.sample._replace(group=prefix)))
        else:
            others.append(name)
    if others:
        log.info("files that %s does not name, left out: %d, such as %s", file, len(others), others[0])
    return splits
