"""`mdlstm_tk.errors`: messages that keep arguments as data, and a package that is missing or broken."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.checkout import ROOT
from hypothesis import given
from hypothesis import strategies as st

from mdlstm_tk.cli import console
from mdlstm_tk.cli.app import VERBS, typer_app
from mdlstm_tk.cli.console import Verbosity, with_flags
from mdlstm_tk.errors import (
    TILED_EXPORT,
    Argument,
    Export,
    InputError,
    MDLSTMError,
    Message,
    MissingExtraError,
    StoppedError,
    require,
)
from mdlstm_tk.runtime.isolation import _message
from mdlstm_tk.runtime.isolation_child import _error_reply
from mdlstm_tk.training import list_settings

OTHER_PROGRAMS = ("build.py", "density/verb.py")  # call npm and `mdlstm`, or are of the command line
PACKAGE_ERRORS = {"MDLSTMError", "InputError", "StoppedError", "ParityError", "DeviceError", "ExistsError"}


@cache
def arguments_of_the_command() -> set[str]:
    """The arguments of all verbs, and the settings of a run."""
    commands = [typer.main.get_command(typer_app(verb)) for verb in VERBS]
    return {str(param.name) for command in commands for param in command.params} | {
        row.key for row in list_settings()
    }


def library(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """The modules of the library, without the command line unless it is named."""
    for folder in folders or ("mdlstm_tk", "models", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents) and path.name not in OTHER_PROGRAMS:
                yield path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """The texts in a module, without docstrings."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node


def test_messages_of_the_library_name_no_flag_and_no_argument_in_their_text() -> None:
    named = re.compile(rf"(?<![\w./-])({'|'.join(arguments_of_the_command())})=(?:\.\.\.|[\w\"'(-]|$)")
    for path, tree in library():
        if str(path).endswith(OTHER_PROGRAMS):
            continue
        for text in texts(tree):
            assert not re.search(r"(?<![\w(-])--[a-z]{2}", text.value), f"{path}:{text.lineno}"
            assert not named.search(text.value), f"{path}:{text.lineno} names an argument in its text"


def test_the_command_knows_each_argument_that_a_message_names() -> None:
    count = 0
    for path, tree in library():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Argument":
                name = call.args[0]
                if isinstance(name, ast.Constant):
                    assert name.value in arguments_of_the_command(), f"{path}:{call.lineno}"
                    count += 1
    assert count > 80


def test_no_error_loses_its_arguments_inside_of_another_text() -> None:
    for path, tree in library():
        for handler in ast.walk(tree):
            if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
                for node in ast.walk(handler) if caught & PACKAGE_ERRORS else ():
                    if isinstance(node, ast.FormattedValue):
                        assert ast.unparse(node.value) != handler.name, f"{path}:{node.lineno}"


COUNTED = re.compile(
    r" (?:different |grid |more |new |positive |training |wrong )?(?:axes|channels|classes|characters|"
    r"columns|extents|features|files|gates|images|layers|lines|models|nodes|numbers|outputs|pages|samples|"
    r"seeds|signs|states|steps|texts|threads|tiles|validations|windows)\b(?!/s)"
)
# of these, some are no numbers, some never 1 where the text is read, and some part of a formula
EXCEPTIONS = (
    "sizes.py ndim;inputs.py ndim;spec.py axes;memory.py count;transcribe_training.py need;pages.py count;"
    "export_verifier.py spec.ndim + 2;page_folders.py len(lines);tiles.py len(spec.output_names);info.py "
    "stage['stored'];comparison.py split;progress.py state.step + rate * eta;"
    "model_discovery.py suffix"
)


def test_one_thing_is_not_called_several() -> None:
    """Counts go through `counted`, unless they cannot be 1."""
    for path, tree in library("mdlstm_tk", "models", "export", "cli"):
        for text in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
            for value, after in pairwise(text.values):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                name = ast.unparse(value.value)
                if COUNTED.match(str(after.value)) and not name.isupper() and "counted(" not in name:
                    place = f"{path.name} {name}"
                    assert place in EXCEPTIONS.split(";"), f"{path}:{text.lineno} {name}{after.value}"


def by_isolation(error: MDLSTMError) -> Any:
    return _message(json.loads(json.dumps(_error_reply(error)["message"])))


def by_warning(error: MDLSTMError) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(str(error), stacklevel=1)
    return str(caught[0].message)


WAYS: dict[str, Callable[[MDLSTMError], Any]] = {
    "str": str,
    "pickle": lambda error: str(pickle.loads(pickle.dumps(error))),
    "pickled value": lambda error: pickle.loads(pickle.dumps(str(error))),
    "copy": lambda error: str(copy.deepcopy(error)),
    "another error": lambda error: str(InputError("", error, "")),
    "an error that stops": lambda error: str(pickle.loads(pickle.dumps(StoppedError(error, "time")))),
    "isolation": by_isolation,
    "warning": by_warning,
}


@pytest.mark.parametrize("way", WAYS)
@given(name=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=40))
def test_arguments_become_flags_and_names_stay_as_they_are(way: str, name: str) -> None:
    names = f"top=3 level=3.npy force=True {name}"
    error = InputError(names, Argument("force", True), " ", Argument("engine", "ray"), names)
    line = WAYS[way](error)
    assert line == f'{names}force=True engine="ray"{names}'
    flags = {"force": "--force", "engine": "--engine", "top": "--top", "level": "--level"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "verbosity", Verbosity(flags=flags))
        assert with_flags(line) == f"{names}--force --engine ray{names}"


@pytest.mark.parametrize(
    ("argument", "in_python", "on_the_command_line"),
    [
        (Argument("output"), "output=...", "-o"),
        (Argument("tile", 512), "tile=512", "--tile 512"),
        (Argument("tile", 1), "tile=1", "--tile 1"),
        (Argument("unknown", 1), "unknown=1", "unknown=1"),
        (Argument("patience", 0), "patience=0", "--set patience=0"),
        (Argument("cache"), "cache=...", "--set cache=..."),
        (
            TILED_EXPORT,
            "mdlstm_tk.export.export_run('RUN', form=\"tiles\")",
            "mdlstm export RUN --form tiles",
        ),
        (
            Export({"grid": (4, 5)}, "a b"),
            "mdlstm_tk.export.export_run('a b', grid=(4, 5))",
            "mdlstm export 'a b' --size 4x5",
        ),
    ],
    ids=str,
)
def test_the_spelling_of_an_argument(
    argument: Argument, in_python: str, on_the_command_line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"output": "-o", "tile": "--tile", "settings": "--set"}
    monkeypatch.setattr(console, "verbosity", Verbosity(flags=flags))
    assert str(Message(argument)) == in_python
    assert with_flags(Message(argument)) == on_the_command_line


def test_a_package_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("raise ImportError('no libgomp.so.1\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingExtraError, match=r"'broken_package' .*\(no libgomp\.so\.1 more\); .*\[cpu\]'$"
    ):
        require("broken_package", "cpu")
