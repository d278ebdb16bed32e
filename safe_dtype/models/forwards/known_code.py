"""Functions of transformers that many architectures have under names of their own, known by a digest of what they say.

Two functions that say the same, in which globals are the same too, compute the same, whoever has written them. A subclass
with a forward of its own, and a class whose forward was replaced, say something else. Where no text is at hand, as where
only compiled files are installed, nothing is known, and every module computes as its class does.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import linecache
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

ANY: Any = object()  # in the place of a global: whatever it is

# Fields of a syntax tree that change nothing about what a call computes.
_UNSAID = frozenset({"annotation", "ctx", "decorator_list", "kind", "returns", "type_comment", "type_params"})
_CLOSING = (
    "",
    ")",
    "]",
    "}",
)  # what a line of a statement that goes on may begin with; the empty one is of an empty line
_SAME = (
    "co_code", "co_names", "co_varnames", "co_consts", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KnownCode:
    """What some functions compute: we know it, and compute the same."""

    digests: frozenset[str]  # of the functions, by `digest_of`
    names: frozenset[
        str
    ]  # that all of them mention: to look at the text of every forward of a model would take a second
    globals: Mapping[str, Any] = field(default_factory=dict)  # each by its name: what it is, a `KnownCode`, or `ANY`


@dataclass(frozen=True, slots=True)
class _Text:
    """What a function says."""

    digest: str
    defaults: tuple[Any, ...] | None


def is_known(function: Any, known: KnownCode) -> bool:
    """Whether a function says what a known one does, and means the same by every name."""
    if type(function) is not FunctionType or function.__closure__ or function.__kwdefaults__:
        return False
    code = function.__code__
    text = _text_of(function) if known.names.issubset(code.co_names) else None
    return (
        text is not None
        and text.digest in known.digests
        and text.defaults == function.__defaults__
        and all(_is_meant(function, name, meant) for name, meant in known.globals.items())
    )


def digest_of(function: FunctionType) -> str | None:
    """Return a digest of what a function says, the same in every Python; None where there is no text of it.

    Its own name, its docstring, comments, annotations and decorators do not count.
    """
    text = _text_of(function)
    return None if text is None else text.digest


def _is_meant(function: FunctionType, name: str, meant: Any) -> bool:
    value = function.__globals__.get(name, getattr(builtins, name, None))
    if isinstance(meant, KnownCode):
        return is_known(value, meant)
    return meant is ANY or value is meant


def _text_of(function: FunctionType) -> _Text | None:
    source, code = function.__globals__, function.__code__
    imported = (name for name in code.co_names if getattr(source.get(name), "__module__", None) != function.__module__)
    return _parsed(code, tuple(name for name in imported if name in source))


@lru_cache(maxsize=256)
def _parsed(code: CodeType, imported: tuple[str, ...]) -> _Text | None:
    lines = _lines_of(code)
    if not lines:
        return None
    # Of what a file has imported, attributes are called by other instructions than of what it defines.
    around = f"import {', '.join(imported)}\n" if imported else ""
    try:
        tree = ast.parse(around + textwrap.dedent("".join(lines)))
        function = tree.body[-1]
        if not isinstance(function, ast.FunctionDef) or len(tree.body) != 1 + bool(imported):
            return None
        function.decorator_list.clear()
        defaults = tuple(ast.literal_eval(one) for one in function.args.defaults)
        if not _is_compiled_to(code, tree):
            return None
    except (SyntaxError, ValueError):  # a lambda amid a line, a file that has changed, a default that is no constant
        return None
    text = _said([function.args, *function.body[ast.get_docstring(function) is not None :]])
    return _Text(hashlib.sha256(text.encode()).hexdigest()[:16], defaults or None)


def _lines_of(code: CodeType) -> list[str]:
    """Return the lines of a function, none where there is no file. `inspect` takes ten times as long to find their end."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    count = max(line for *_, line in code.co_lines() if line is not None) - code.co_firstlineno + 1
    while count < len(lines) and (_indent(lines[count]) > _indent(lines[0]) or lines[count].lstrip()[:1] in _CLOSING):
        count += 1
    return lines[:count]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_compiled_to(code: CodeType, tree: ast.Module) -> bool:
    """Whether code is that of the function in a text: a file may have changed since it was imported."""
    consts = compile(tree, code.co_filename, "exec", dont_inherit=True).co_consts
    return any(
        isinstance(const, CodeType)
        and const.co_name == code.co_name
        and all(getattr(const, name) == getattr(code, name) for name in _SAME)
        for const in consts
    )


def _said(node: Any) -> str:
    """Return a syntax tree as text. Fields that are empty are left out: a newer Python may have more of them."""
    if isinstance(node, list):
        return f"[{', '.join(map(_said, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (
        f"{name}={_said(value)}"
        for name, value in ast.iter_fields(node)
        if name not in _UNSAID and value is not None and value != []
    )
    return f"{type(node).__name__}({', '.join(fields)})"
