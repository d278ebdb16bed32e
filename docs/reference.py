"""What cog writes into the pages: every public name with its docstring, every error with its cure, commands as run."""

from __future__ import annotations

import enum
import inspect
import re
import shlex
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from click.testing import CliRunner
from cures import CURES

from safe_dtype import errors
from safe_dtype.cli import cli

_SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):$")
_WIDTH = 100


class _Bare(str):
    """What stands in a signature without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _text(annotation: Any) -> Any:
    """Return an annotation that is printed without quotes."""
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _bare(default: Any) -> Any:
    """Return a default as it is, and for a function, whose place in memory would be printed, three points."""
    return _Bare("...") if callable(default) and not inspect.isclass(default) else default


def module_reference(module: ModuleType, *, below: str = "##") -> str:
    """Return a module in Markdown: its public names in the order of the alphabet, capitals and small letters mixed."""
    names = sorted(set(module.__all__) - {"__version__"}, key=lambda name: (name.lower(), name))
    values = {name: getattr(module, name) for name in names}
    of_errors = {name for name, value in values.items() if getattr(errors, name, None) is value}
    parts = [f"{below} `{module.__name__}`\n", as_markdown(inspect.getdoc(module) or "")]
    for name in values:
        parts += [f"{below}# `{name}`\n", *([_ERROR] if name in of_errors else described(name, values[name]))]
    return "\n".join(parts)


_ERROR = "One of the [errors and warnings](errors.md).\n"


def described(name: str, value: Any) -> Iterator[str]:
    """Yield one public name in Markdown: how it is called, what it is, and of a class its members."""
    if not callable(value) or isinstance(value, dict):
        yield f"{_constant(value)}\n"
        return
    yield _fenced(signature(name, value))
    yield as_markdown(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        rows = [f"| `{member}` | {text} |" for member, text in members(value)]
        yield "\n".join(["| with | what you get |", "|---|---|", *rows, ""]) if rows else ""


def _constant(value: Any) -> str:
    if isinstance(value, dict):
        return f"A `dict` with the keys {', '.join(f'`{key}`' for key in value)}."
    return f"A constant: `{value!r}`."


def signature(name: str, value: Any) -> str:
    """Return how a function or class is called, one parameter a line where one line is too long."""
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return f"class {name}: " + ", ".join(member.name.lower() for member in value)
    if inspect.isclass(value) and (issubclass(value, BaseException) or getattr(value, "_is_protocol", False)):
        return f"class {name}"
    found = inspect.signature(value)
    parameters = [
        parameter.replace(annotation=_text(parameter.annotation), default=_bare(parameter.default))
        for parameter in found.parameters.values()
    ]
    returns = inspect.Signature.empty if inspect.isclass(value) else _text(found.return_annotation)
    line = str(found.replace(parameters=parameters, return_annotation=returns))
    whole = f"{'class ' * inspect.isclass(value)}{name}{line}"
    if len(whole) <= _WIDTH:
        return whole
    stars = "".join(f"\n    {part}," for part in _parts(line))
    return f"{'class ' * inspect.isclass(value)}{name}({stars}\n){line[line.rindex(')') + 1 :]}"


def _parts(line: str) -> list[str]:
    """Return the parameters of a signature, split at its outermost commas."""
    parts, depth = [""], 0
    for sign in line[1 : line.rindex(")")]:
        depth += (sign in "([{") - (sign in ")]}")
        parts = [*parts, ""] if sign == "," and not depth else [*parts[:-1], parts[-1] + sign]
    return [part.strip() for part in parts]


def members(value: type) -> Iterator[tuple[str, str]]:
    """Yield the public properties and methods of a class, each with the first paragraph of its docstring."""
    ours = [base for base in reversed(value.__mro__) if base.__module__.startswith("safe_dtype")]
    for name, member in {name: member for base in ours for name, member in vars(base).items()}.items():
        is_method = isinstance(member, classmethod | staticmethod) or inspect.isfunction(member)
        doc = inspect.getdoc(member) if is_method or isinstance(member, property) else ""
        if doc and not name.startswith("_"):
            yield f"{name}{'()' * is_method}", _escaped(doc.split("\n\n")[0].replace("\n", " "))


def as_markdown(doc: str) -> str:
    """Return a docstring in Markdown: code in fences, sections of names as lists."""
    lines, out, in_section = doc.splitlines(), [], False
    index = 0
    while index < len(lines):
        line = lines[index]
        if title := _SECTION.match(line):
            out += ["", f"**{title[1]}**", ""]
            in_section = True
        elif in_section and line.startswith("    "):
            text = line[4:]
            named = re.match(r"(\*{0,2}[\w.`, ]+?)(?: \([^)]*\))?: (.*)", text)
            out.append(
                f"- `{named[1].strip('`')}`: {named[2]}" if named and not text.startswith(" ") else f"  {text.strip()}"
            )
        elif line.startswith("    ") and (not out or not out[-1].strip()):
            block = []
            while index < len(lines) and (lines[index].startswith("    ") or not lines[index].strip()):
                block.append(lines[index][4:])
                index += 1
            out += [_fenced("\n".join(block).strip("\n")), ""]
            continue
        else:
            in_section = in_section and not line.strip()
            out.append(line)
        index += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out).strip()) + "\n"


def _fenced(code: str) -> str:
    return f"```py\n{code}\n```\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def error_tables() -> str:
    """Return every error and warning in tables, one for each family: its name, what has happened, what to do."""
    single = ["SafeDtypeError", "SafeDtypeWarning"]
    families = {"All, and those without kinds": single}
    for name in re.findall(r"^    [├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        of_family = [below for below in re.findall(r"── (\w+)", errors.__doc__ or "") if _is_below(below, name)]
        if len(of_family) == 1:
            single.append(name)
        else:
            families[name] = of_family
    return "\n".join(f"### {family}\n\n{_error_table(names)}" for family, names in families.items())


def _is_below(name: str, family: str) -> bool:
    return issubclass(getattr(errors, name), getattr(errors, family))


def _error_table(names: list[str]) -> str:
    rows = ["| error | what has happened | do this |", "|---|---|---|"]
    for name in names:
        what = (inspect.getdoc(getattr(errors, name)) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{name}` | {_escaped(what)} | {_escaped(CURES[name])} |")
    return "\n".join([*rows, ""])


def shown(*commands: str) -> str:
    """Return commands with what they print where nothing was ever measured, as a block of text."""
    nothing = {"SAFE_DTYPE_CACHE": tempfile.mkdtemp(), "COLUMNS": "94"}
    parts = []
    for command in commands:
        done = CliRunner(env=nothing).invoke(cli, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
        parts.append("\n".join([f"$ {command}", *(line.rstrip() for line in done.output.rstrip().splitlines()), ""]))
    return "```text\n" + "\n".join(parts) + "```\n"
