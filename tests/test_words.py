"""How the code speaks: names that carry their noun, and sentences that are understood at the first reading."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "safe_dtype").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")])
TEXTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *SOURCES])

# Words that tell nothing of a value. `one` is for a comprehension or a lambda of one line, where its noun is beside it.
EMPTY_NAMES = {"one", "found", "given", "kept", "held", "said", "told", "theirs"}

# An error's arguments are what callers pass and read: they keep their names.
KEPT = {("devices.py", "found")}

# "Do" in the sense of "suffice" or "work".
RIDDLES = re.compile(
    r"\b(do|does|will|would) not do\b"
    r"|\b(does|do) (not )?(do )?here\b"
    r"|\bwill(?: not)? do\b"
    r"|\b(no dtype|float16|none) does[.,;]"
    r"|\bthat (still )?do\b[.,]"
    r"|\bas [a-z]+ does not\b"
)


def empty_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that is bound to an empty name."""
    beside_their_noun = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            targets = [generator.target for generator in node.generators]
        elif isinstance(node, ast.Lambda):
            targets = list(node.args.args)
        else:
            continue
        if node.lineno == node.end_lineno:
            beside_their_noun |= {id(inner) for target in targets for inner in ast.walk(target)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if name in EMPTY_NAMES and not (name == "one" and id(node) in beside_their_noun):
            yield node.lineno, name


def test_names_carry_their_noun() -> None:
    """No variable and no parameter is called by what happened to it."""
    assert not [
        f"{source.relative_to(ROOT)}:{line}: {name}"
        for source in SOURCES
        for line, name in empty_names(ast.parse(source.read_text(encoding="utf-8")))
        if (source.name, name) not in KEPT
    ]


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("found = 1", ["found"]),
        ("def f(given): pass", ["given"]),
        ("for one in (): pass", ["one"]),
        ("[one for one in ()]", []),
        ("[\n one for one in ()]", ["one"]),
        ("max((), key=lambda one: one)", []),
        ("[found for found in ()]", ["found"]),
        ("f(given=1)", []),
    ],
)
def test_the_check_itself(code: str, names: list[str]) -> None:
    """The check sees assignments, parameters, loops and long comprehensions, and nothing else."""
    assert [name for _, name in empty_names(ast.parse(code))] == names


def test_no_riddles() -> None:
    """Nobody has to guess what "do" means: it works, it is accepted, it is rejected because."""
    assert not [
        f"{text.relative_to(ROOT)}:{number}: {line.strip()}"
        for text in TEXTS
        for number, line in enumerate(text.read_text(encoding="utf-8").splitlines(), 1)
        if RIDDLES.search(line)
    ]
