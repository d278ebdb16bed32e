"""CONTRIBUTING answers with places that are there."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

import pytest
from doc_blocks import ROOT
from test_imports import LAYERS

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Answer:
    """Where a question of the table is answered."""

    question: str
    path: str
    name: str

    def __str__(self) -> str:
        return self.question


ANSWERS = [Answer(*row) for row in re.findall(r"^\| (.+\?) \| \[.+?\]\((.+?)\).* \| `(.+)` \|$", TEXT, re.MULTILINE)]


def defined_in(path: str) -> set[str]:
    """Return the names that a file defines: functions, classes, their methods, constants; the keys of a JSON file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".json"):
        return set(json.loads(text))
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_ten_questions() -> None:
    """The table has ten questions, each once."""
    assert len({answer.question for answer in ANSWERS}) == len(ANSWERS) == 10


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_answers_are_there(answer: Answer) -> None:
    """Each answer is a file that defines the name."""
    assert answer.name in defined_in(answer.path)


def test_layers() -> None:
    """The table of layers has every folder, in the order that imports keep to."""
    table = TEXT.partition("## Layers")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == LAYERS


@pytest.mark.parametrize(
    "name", ["safe_dtype.__all__", "safe_dtype.errors", "safe_dtype.testing", "safe_dtype.integrations"]
)
def test_public_surface(name: str) -> None:
    """It is said what is public, and that everything else is private."""
    section = TEXT.partition("## Public surface")[2].partition("\n## ")[0]
    assert f"`{name}`" in section
    assert "Everything else is private" in section
