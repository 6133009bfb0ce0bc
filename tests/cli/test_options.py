"""The options of the command line: help, choices, completion, verbosity, and what is imported for them."""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers.command import mdlstm, succeed
from helpers.without_packages import python_without

from mdlstm_tk.cli import main
from mdlstm_tk.cli.app import VERBS, typer_app
from mdlstm_tk.cli.help import COMMON_OPTIONS
from mdlstm_tk.kinds import all_kinds, kind_names
from mdlstm_tk.training import list_settings
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.tasks import BUILT_IN, task_defaults

HEAVY = ("torch", "onnx", "onnxruntime", "numba", "matplotlib", "sklearn")
WIDE = {"COLUMNS": "250"}


def imported_by(*arguments: str, cwd: Path) -> set[str]:
    """The top-level modules that a call imports."""
    code = (
        "import atexit\n"
        "atexit.register(lambda: print('modules:', *sys.modules, file=sys.stderr))\n"
        "from mdlstm_tk.cli import main\n"
        "main(sys.argv[1:])"
    )
    done = python_without((), code, *arguments, cwd=cwd)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("modules: ")]
    return {name.split(".")[0] for name in line.split()[1:]}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_same_options_for_messages(verb: str) -> None:
    out = mdlstm(verb, "--help", env=WIDE).out
    for option in ("--quiet", "-q", "--verbose", "-v", "--debug", "-h", "--import"):
        assert re.search(rf"\s{option}[\s,]", out), option
    assert ("--json" in out) == (verb != "demo")


def test_help_lists_all_verbs_and_completion() -> None:
    out = mdlstm("--help", env=WIDE).out
    places = [out.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places) and places[-1] < out.index("\nOptions\n")  # commands come first
    assert "--install-completion" in out


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_the_terminal_and_says_nothing_twice(verb: str, width: int) -> None:
    wide, out = (succeed(*verb.split(), "--help", env={"COLUMNS": str(w)}).out for w in (1000, width))
    assert max(map(len, out.splitlines())) <= width
    assert wide.split() == out.split()  # no word is broken, and no line break of the source is left
    assert not re.search(r"<(bool|int|float|str|list|path)|default: *\(|default: *\]|\[x>", out)
    lines, column = out.splitlines(), min(width, 100)
    paragraphs = out.split("Usage:")[0].split("\n\n")
    for above, below in pairwise(line for part in paragraphs for line in (*part.splitlines(), "")):
        if above and below:  # the next word had no room in the line above
            assert len(f"{above} {below.split()[0]}") > column
    if verb in COMMON_OPTIONS:  # these stand first
        params = {param.name: param for param in typer.main.get_command(typer_app(verb)).params}
        flags = [max(params[name].opts, key=len) for name in COMMON_OPTIONS[verb]]
        options = lines[lines.index("Options") : next(k for k, x in enumerate(lines) if "Further" in x)]
        found = [m[1] for line in options if (m := re.match(r"  (?:-\w, |    )?(--[\w-]+)( |$)", line))]
        assert found == flags


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_text_is_no_path(verb: str, tmp_path: Path) -> None:
    """`Path` takes it for the current folder, where `train -o "$UNSET"` would write its run."""
    for param in typer.main.get_command(typer_app(verb)).params:
        takes_path = {Path, list[Path]} & {param.type_descriptor.annotation}
        if takes_path and param.name != "import_":
            words = [""] if param.param_type_name == "argument" else [param.opts[0], ""]
            done = mdlstm(verb, *words, cwd=tmp_path)
            assert done.code == 2 and "expected a path, got an empty text" in done.err, param.name
    assert not any(tmp_path.iterdir())


def test_help_of_train_shows_defaults_and_panels() -> None:
    out = mdlstm("train", "--help", env=WIDE).out
    for panel in ("data", "network", "optimization", "run", "output", "messages"):
        assert f"\nFurther options: {panel}\n" in out
    for flag in ("task", "data", "precision", "init", "seed", "device", "config", "output"):
        assert re.search(rf" --{flag} (?:(?! --).)*\[default: [^]]+\]", " ".join(out.split())), flag


def test_help_of_formats_names_each_kind_with_answers_once() -> None:
    out = " ".join(mdlstm("infer", "--help").out.split())
    text = out[out.index("File format of the results:") : out.index("png holds values")]
    counts = {kind.name: len(re.findall(rf"\b{kind.name}\b", text)) for kind in all_kinds()}
    assert counts == {kind.name: bool(kind.answers) for kind in all_kinds()}
    assert "labels" not in text
    assert "kinds of tasks" in out[out.index("--import FILE") :]


@pytest.mark.parametrize("task", [None, *BUILT_IN, *kind_names()])
def test_settings_are_listed_with_the_defaults_of_a_task(task: str | None) -> None:
    arguments = ("settings", *([task] if task else []))
    out = succeed(*arguments).out
    for key, default, *_ in list_settings(task):
        assert re.search(rf"^{key} +{re.escape(default or '-')} ", out, re.MULTILINE), key
    settings = json.loads(succeed(*arguments, "--json").out)["settings"]
    values = {key: row["default"] for key, row in settings.items()}
    if task:
        own = {"task": task, **task_defaults(task)[1]}
        assert TrainConfig(**values) == TrainConfig(**own)
    else:
        assert values["lr"] is None and (values["cache"], values["task"]) == (256, "diagonal")


STARTS = {
    "help": ("--help",),
    "help of train": ("train", "--help"),
    "unknown verb": ("trian",),
    "unknown task": ("train", "--task", "digts"),
    "settings": ("settings",),
    "settings of an unknown task": ("settings", "digts"),
    "unknown setting": ("train", "--set", "hiden=3"),
    "unknown device": ("verify", "m.onnx", "--device", "gpu"),
}


@pytest.mark.parametrize("case", STARTS)
def test_help_and_usage_errors_do_not_import_torch(case: str, tmp_path: Path) -> None:
    modules = imported_by(*STARTS[case], cwd=tmp_path)
    assert "typer" in modules
    assert not modules & {*HEAVY, "numpy"}


def test_infer_imports_no_rich(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((8, 8)))
    modules = imported_by("infer", "x.npy", "-m", str(model), cwd=tmp_path)
    assert "onnxruntime" in modules
    assert not modules & ({*HEAVY, "rich"} - {"onnxruntime"})


COMPLETIONS = {
    "mdlstm tr": {"train"},
    "mdlstm train --sch": {"--schedule"},
    "mdlstm train --task digits": {"digits", "digits-binary", "digits-grey"},
    "mdlstm train --task seg": {"segment"},
    "mdlstm train --schedule ": {"constant", "cosine"},
    "mdlstm train --device cu": {"cuda"},
    "mdlstm train --import ": {"mine.py", "runs/"},
    "mdlstm train --config ": {"mine.toml", "runs/"},
    "mdlstm train --cell st": {"stable"},
    "mdlstm train --model sn": {"snake"},
    "mdlstm settings dig": {"digits", "digit-strings", "digits-binary", "digits-grey"},
    "mdlstm train --set wa": {"warmup="},
    "mdlstm train --set schedule=co": {"schedule=constant", "schedule=cosine"},
    "mdlstm train --resume ": {"runs/one", "runs/two"},
    "mdlstm export --form s": {"scan"},
    "mdlstm verify ": {"here.onnx", "runs/one", "runs/two", "runs/one/model-8x8.onnx", "runs/"},
    "mdlstm info runs/one": {"runs/one", "runs/one/model-8x8.onnx", "runs/one/"},
    "mdlstm infer ": {"x.npy", "runs/"},
    "mdlstm infer x.npy -m runs/one/": {"runs/one/model-8x8.onnx"},
    "mdlstm infer x.npy --format np": {"npy", "npz"},
    "mdlstm infer x.npy --engine r": {"ray"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs, models and files whose names can be completed."""
    for name in ("runs/one/best.safetensors", "runs/two/last.safetensors", "runs/one/model-8x8.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("here.onnx", "x.npy", "mine.py", "mine.toml", "notes.txt", ".hidden.npy"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", COMPLETIONS)
def test_the_shell_completes(line: str, folder: Path) -> None:
    env = {"COMP_WORDS": line.strip(), "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = mdlstm(env={"_MDLSTM_COMPLETE": "complete_bash", **env})
    assert done.code == 0
    assert set(done.out.split()) == COMPLETIONS[line]


def test_completion_imports_nothing_heavy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MDLSTM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mdlstm train --set wa")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert not imported_by(cwd=folder) & {*HEAVY, "numpy", "rich"}


def test_quiet_prints_only_data_and_errors(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.zeros((8, 8)))
    (tmp_path / "bad.npy").touch()
    done = mdlstm("infer", "good.npy", "-m", model, "-q", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")
    done = mdlstm("infer", "good.npy", "bad.npy", "-m", model, "-q", "--force", cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["failed", "error"]
    done = mdlstm("info", model, "-q")
    assert (done.code, done.err) == (0, "") and "8x8" in done.out
    assert "next:" in mdlstm("info", model).err  # the next call prints again


def test_verbose_prints_more(model: Path) -> None:
    usual, verbose = mdlstm("info", model), mdlstm("info", model, "-v")
    assert (verbose.code, verbose.out) == (0, usual.out)
    assert verbose.err.startswith(usual.err) and "MiB" in verbose.err


def test_debug_prints_the_traceback_and_keeps_the_exit_code(tmp_path: Path) -> None:
    usual = mdlstm("info", tmp_path / "gone.onnx")
    assert usual.code == 2 and "Traceback" not in usual.err
    debug = mdlstm("info", tmp_path / "gone.onnx", "--debug")
    assert debug.code == 2 and "Traceback" in debug.err
    assert debug.err.endswith(usual.err)


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_of_openmp_sleep_unless_the_user_says_otherwise(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == (own or "PASSIVE")
    assert ("GOMP_SPINCOUNT" in os.environ) == (own is None)
