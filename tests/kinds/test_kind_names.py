"""Nothing outside of the kinds and their rooms compares the name of a kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from helpers.checkout import ROOT

from mdlstm_tk.kinds import kind_names

PRODUCT = ("mdlstm_tk", "models", "cli", "export")
ROOMS = ("mdlstm_tk/kinds", "mdlstm_tk/text", "mdlstm_tk/density")
# "grid" is also the name of an argument, and of a field of metadata
OTHER_THINGS = {
    ("cli/info.py", "name in ('grid', 'resize')"),
    ("export/api.py", "name == 'grid'"),
    ("mdlstm_tk/io/metadata.py", "name == 'grid'"),
}


def compared_names(tree: ast.AST) -> Iterator[ast.expr]:
    """The comparisons with a constant, or a collection of constants, that is the name of a kind."""
    for node in ast.walk(tree):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides, node = [node.value], node.value
        flat = [each for side in sides for each in getattr(side, "elts", [side])]
        if any(isinstance(each, ast.Constant) and each.value in kind_names() for each in flat):
            assert isinstance(node, ast.expr)
            yield node


def product_files() -> Iterator[Path]:
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.relative_to(ROOT).as_posix().startswith(ROOMS):
                yield path


def test_no_code_compares_the_name_of_a_kind() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), ast.unparse(node))
        for path in product_files()
        for node in compared_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - OTHER_THINGS == set()


def test_templates_do_not_either() -> None:
    for path in (ROOT / "mdlstm_tk/report").glob("report.*"):
        assert "spec.kind ==" not in path.read_text(encoding="utf-8")


def test_the_search_finds_comparisons() -> None:
    code = "kind == 'segment'; kind in ('grid', 'x'); f(kind='density')\nmatch kind:\n case 'classify': 0"
    assert len(list(compared_names(ast.parse(code)))) == 3
