"""Mutate the files of a run folder and of the data it names."""

from __future__ import annotations

import json
import os
import random
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from fuzz.model_graphs import mutate_model
from fuzz.mutate import INTEGERS, TEXTS, VALUES, mutate_bytes, mutate_json, mutate_json_text, mutate_text

CODE = (
    "evil.py:md",
    "evil:md",
    "runs/../evil.py:md",
    "./evil.py:cell",
    "evil.py",
    "evil.py:",
    ":md",
    "os:system",
)
PLACES = (
    "private",
    "../case/private",
    "private/secret.png",
    "/dev/stdin",
    "/dev/zero",
    "file:///etc",
    "~",
    "data/pipe",
)
SIZES = ("0", "1x1", "99999x99999", "4x4x4", "8", "1x1000000", "-1", "", "x", "8x", "٣x٣", "1e9")
SETTINGS: dict[str, tuple[Any, ...]] = {
    "model": CODE,
    "cell": CODE,
    "data": PLACES,
    "data_from_run": PLACES,
    "task": ("diagonal", "digits", "grid", "classify", "segment", "transcribe", "evil.py:task", "x"),
    "size": SIZES,
    "resize": SIZES,
    "crop": SIZES,
    "windows": (*SIZES, "1x1,1x1", "9999x9999", ",".join(["1"] * 5000)),
    "layers": (0, 10**6, 2**40, 3),
    "hidden": (30_000, 10**6, 2**40, 1),
    "cache": (2**62,),
    "device": ("cuda", "cuda:99", "meta", "mps", "cpu", "x\x1b[2J"),
}
PLANTED = (
    "import pathlib\npathlib.Path(__file__).with_name('EXECUTED').write_text('yes')\nmd = cell = print\n"
)


def plant(folder: Path) -> None:
    """Put files into the folder that must not be executed, and others that must not be shown.

    Those in private/ must not be opened either: they stand for files outside a data folder. A file of a run
    may be a link, so those in elsewhere/ may be opened.
    """
    from PIL import Image

    for place in (folder, *folder.glob("runs/*")):
        (place / "evil.py").write_text(PLANTED)
    for name in ("private", "elsewhere"):
        (folder / name).mkdir()
        Image.new("L", (4, 8), 123).save(folder / name / "secret.png")
        (folder / name / "secret.txt").write_text("CANARY\n")


def mutate_run(rng: random.Random, folder: Path, kind: str) -> str:
    """Change a few files of runs/KIND and data/KIND below the folder; return what was changed."""
    run, data = folder / "runs" / kind, folder / "data" / kind
    names = rng.choices(sorted(CHANGES), k=rng.choice((1, 1, 1, 2, 3)))
    done = []
    for name in sorted(names, key="replace".__eq__):  # the last, as a pipe must not be opened afterwards
        try:
            CHANGES[name](rng, run, data)
            done.append(name)
        except Exception:  # an earlier change has damaged the file
            continue
    return "+".join(done) or "nothing"


def change_config(rng: random.Random, run: Path, data: Path) -> None:
    """Change a setting of config.toml, or the text."""
    path = run / "config.toml"
    if rng.random() < 0.3:
        path.write_bytes(_changed_text(rng, path.read_bytes()))
        return
    import tomli_w

    path.write_text(
        tomli_w.dumps(_changed_settings(rng, tomllib.loads(path.read_text()))), errors="replace"
    )


def _changed_settings(rng: random.Random, settings: dict[str, Any]) -> dict[str, Any]:
    if rng.random() < 0.6:
        key = rng.choice(sorted(SETTINGS))
        return {**settings, key: rng.choice(SETTINGS[key])}
    changed = mutate_json(rng, settings)
    return changed if isinstance(changed, dict) else settings


def _changed_text(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    return mutate_text(rng, data.decode(errors="replace")).encode("utf-8", "surrogatepass")


def change_checkpoint(rng: random.Random, run: Path, data: Path) -> None:
    """Change the header or the bytes of one of the checkpoints, or of both in the same way."""
    paths = rng.choice(
        ([run / "best.safetensors"], [run / "last.safetensors"], sorted(run.glob("*.safetensors")))
    )
    changed = _changed_checkpoint(rng, paths[0].read_bytes())
    for path in paths:
        path.write_bytes(changed)


def _changed_checkpoint(rng: random.Random, content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    tensors = content[8 + size :]
    action = rng.randrange(10)
    if action == 0:
        return mutate_bytes(rng, content)
    if action == 1:
        return (rng.choice(INTEGERS) % 2**64).to_bytes(8, "little") + content[8:]
    if action == 2:
        header = mutate_json(rng, header)
    elif action == 3:
        name = rng.choice(sorted(set(header) - {"__metadata__"}))
        entry = dict(header[name])
        key = rng.choice(("dtype", "shape", "data_offsets"))
        texts = ("F64", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "X")
        entry[key] = rng.choice(texts) if key == "dtype" else mutate_json(rng, entry[key])
        header[rng.choice((name, rng.choice(TEXTS), "model.x", "optimizer.9.step", "optimizer.x"))] = entry
    else:
        inner = json.loads(header["__metadata__"]["mdlstm"])
        if action < 7:
            inner["config"] = _changed_settings(rng, inner["config"])
        elif action == 7:
            inner["spec"] = mutate_json(rng, inner["spec"])
        else:
            key = rng.choice(sorted(inner))
            inner[key] = rng.choice((*VALUES, mutate_json(rng, inner[key])))
        text = json.dumps(inner, ensure_ascii=False)
        header["__metadata__"]["mdlstm"] = mutate_json_text(rng, text) if rng.random() < 0.1 else text
    encoded = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + tensors


def change_metrics(rng: random.Random, run: Path, data: Path) -> None:
    """Change a line of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    k = rng.randrange(len(lines))
    strange = ("[]", "1", "null", '"text"', "{}", '{"step": 1}', "[" * 10_000, "1" * 5000, "NaN")
    lines[k] = rng.choice((*strange, *(mutate_json_text(rng, lines[k]) for _ in range(12))))
    if rng.random() < 0.2:
        lines = [line for line in lines for _ in range(2000)]
    path.write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogatepass"))


def change_records(rng: random.Random, run: Path, data: Path) -> None:
    """Change result.json or times.json."""
    path = run / rng.choice(("result.json", "times.json"))
    text = path.read_text()
    changed = rng.choice((mutate_json_text(rng, text), "[]", "1", '{"errors": 1}'))
    path.write_bytes(changed.encode("utf-8", "surrogatepass"))


def change_data(rng: random.Random, run: Path, data: Path) -> None:
    """Change, rename or link a file of the data; change a line of labels.tsv or classes.txt."""
    files = _files(data)
    path = rng.choice([*files, *(f for f in files if f.suffix in (".tsv", ".txt"))] * 2)
    if path.suffix in (".tsv", ".txt"):
        lines = path.read_text().splitlines()
        k = rng.randrange(len(lines))
        name, _, text = lines[k].partition("\t")
        places = (
            "../../private/secret.png",
            str(data.parents[1] / "private" / "secret.png"),
            "..",
            "0.png/../0.png",
        )
        names = (*places, mutate_text(rng, name), name)
        lines[k] = f"{rng.choice(names)}\t{rng.choice((text, mutate_text(rng, text), 'é' * 3000))}"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    elif rng.random() < 0.5:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    else:
        names = ("\x1b[2J", "a\tb", "a\nb", "[b]", "<i>", "\udc80", "-o", "$(id)", " ", "x" * 200)
        path.rename(path.with_name(rng.choice(names) + path.suffix))


def change_export(rng: random.Random, run: Path, data: Path) -> None:
    """Change an exported model in the run folder."""
    path = rng.choice(sorted(run.glob("*.onnx")))
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        return
    model = onnx.load(path)
    mutate_model(rng, model, model)
    path.write_bytes(model.SerializeToString())


def change_names(rng: random.Random, run: Path, data: Path) -> None:
    """Remove a file of the run, or copy one to an unusual name."""
    if rng.random() < 0.3:
        rng.choice(_files(run)).unlink()
        return
    names = (
        "model-[b].onnx",
        "model-\x1b[2J.onnx",
        "model-4x4.onnx",
        "model-a\nb.onnx",
        "conftest.py",
        ".hidden",
    )
    shutil.copy(rng.choice(sorted(run.glob("model*"))), run / rng.choice((*names, "events.out.tfevents.1")))


def replace(rng: random.Random, run: Path, data: Path) -> None:
    """Put a folder, a link or a pipe in the place of a file of the run or the data."""
    place = rng.choice((run, run, data))
    path = rng.choice(_files(place))
    path.unlink()
    action = rng.randrange(6)
    if action == 0:
        path.mkdir()
    elif action == 1:
        os.mkfifo(path)
    else:
        other = run.parents[1] / ("elsewhere" if place == run else "private")
        secrets = (other / f"secret{path.suffix}", other / "secret.txt")
        path.symlink_to(rng.choice((*secrets, other, "nowhere", path.name, "/dev/zero")))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


CHANGES: dict[str, Callable[[random.Random, Path, Path], None]] = {
    "config": change_config,
    "checkpoint": change_checkpoint,
    "checkpoint again": change_checkpoint,
    "metrics": change_metrics,
    "records": change_records,
    "data": change_data,
    "export": change_export,
    "names": change_names,
    "replace": replace,
}
