"""The YAML at the top of a card: read, and changed so that what others wrote there stays, comments and style included."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.util import load_yaml_guess_indent

from .evidence import not_publishable

# What the Hub and its client take for YAML, and what only looks different: a byte order mark, blank lines before it,
# spaces or a comment after the dashes.
_OPENS = re.compile(r"\ufeff?(?:[ \t]*\r?\n)*[ \t]*---[ \t]*(#[^\r\n]*)?(\r?\n)")
_CLOSES = re.compile(r"^---[ \t]*(\r?\n|\Z)", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/+-]*")  # the same text in every version of YAML, without quotes
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_WIDE = 2**20  # characters in a line: nothing is wrapped anew
_OF_A_LICENSE = ("license_name", "license_link")  # what they say belongs to the license beside them


def read_front_matter(card: str) -> dict[str, Any]:
    """Return the YAML at the top of a card; empty where there is none, or it is no table."""
    top, _ = _cut(card)
    try:
        values = None if top is None else YAML(typ="safe", pure=True).load(top)
    except (YAMLError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def body_of(card: str) -> str:
    """Return what comes after the YAML of a card, whether that can be read or not."""
    return _cut(card)[1]


def parted(card: str) -> tuple[str, str]:
    """Return the lines of a card's YAML, with the line ends of Linux, and what comes after it, as it is.

    Raises:
        NotPublishableError: If the YAML has no end, or is no table.
    """
    top, body = _cut(card)
    if top is None:
        unfinished = _OPENS.match(card)
        if unfinished and isinstance(_loaded(card[unfinished.end() :].partition("\n\n")[0]), dict):
            raise _unreadable("it has no end")
        body = card.removeprefix("\ufeff")
        return "", f"\n{body}" if body else ""
    values = _loaded(top)
    if isinstance(values, str):  # prose between two rules
        return "", f"\n{card.removeprefix(chr(0xFEFF))}"
    if values is not None and not isinstance(values, dict):
        raise _unreadable("it is no table")
    return top, body


def merged(top: str, ours: Mapping[str, Any]) -> str:
    """Return the YAML lines `top` with our keys in their places, or at the end where they are new.

    Nothing is taken out of a list. Name and link of a license go with a license that is replaced. Where all of it is there
    already, `top` comes back to the byte.

    Raises:
        NotPublishableError: If it cannot be changed so that everything else stays as it is.
    """
    values = _loaded(top)
    if values is None:  # nothing, or comments alone
        return top + _dumped(_table(ours), None) if ours else top
    wanted = {name: _with_theirs(name, value, values.get(name)) for name, value in ours.items()}
    changes = {name: value for name, value in wanted.items() if name not in values or values[name] != value}
    if not changes:
        return top
    stale = [name for name in _OF_A_LICENSE if "license" in changes and name in values and name not in ours]
    expected = {**{name: value for name, value in _loaded(top).items() if name not in stale}, **changes}
    for name, value in changes.items():
        _put(values, name, value)
    for name in stale:
        del values[name]
    text = _dumped(values, top)
    lost = [comment for comment in _comments(top) if comment not in set(_comments(text))]
    text = "".join(f"{comment}\n" for comment in lost) + text
    if not _same(_loaded(text), expected, set()):
        raise _unreadable("it cannot be changed without changing what others wrote")
    return text


def dumped(values: Mapping[str, Any]) -> str:
    """Return `values`, texts and lists of texts, as YAML in their order. Every version of YAML reads the same."""
    return _dumped(_table(values), None)


def _cut(card: str) -> tuple[str | None, str]:
    """Return the YAML with the line ends of Linux, and the body; None and the whole card where there is no YAML."""
    opened = _OPENS.match(card)
    closed = _CLOSES.search(card, opened.end()) if opened else None
    if opened is None or closed is None:
        return None, card
    comment = f"{opened[1]}\n" if opened[1] else ""
    return comment + card[opened.end() : closed.start()].replace("\r\n", "\n"), card[closed.end() :]


def _yaml() -> YAML:
    yaml = YAML()  # keeps comments, quotes, anchors and flow style
    yaml.preserve_quotes = True
    yaml.width = _WIDE
    return yaml


def _loaded(top: str) -> Any:
    try:
        return _yaml().load(top)
    except DuplicateKeyError as exc:
        raise _unreadable(" ".join(str(exc.problem).split())) from exc
    except (YAMLError, ValueError) as exc:
        raise _unreadable(type(exc).__name__) from exc


def _dumped(values: Any, like: str | None) -> str:
    """Write `values`, with the sequences indented as they are in the text `like`."""
    yaml, out = _yaml(), io.StringIO()
    if like is not None:
        _, indent, offset = load_yaml_guess_indent(like)
        if indent is not None and offset is not None:
            yaml.indent(sequence=indent, offset=offset)
    yaml.dump(values, out)
    return out.getvalue()


def _table(values: Mapping[str, Any]) -> CommentedMap:
    table = CommentedMap()
    for name, value in values.items():
        _put(table, name, value)
    return table


def _put(values: CommentedMap, name: str, value: Any) -> None:
    before = values.get(name)
    if isinstance(value, list) and _is_own_list(before):
        _extend(before, value[len(before) :])
    elif isinstance(value, list):
        values[name] = CommentedSeq(map(_scalar, value))
    else:
        values[name] = _scalar(value)


def _is_own_list(values: Any) -> TypeGuard[CommentedSeq]:
    """Whether it is a list that stands in this one place: what an anchor names would change elsewhere as well."""
    return isinstance(values, CommentedSeq) and values.anchor.value is None


def _extend(values: CommentedSeq, items: list[Any]) -> None:
    # A comment before the next key hangs at the last item of this list.
    trailing = values.ca.items.pop(len(values) - 1, None)
    values.extend(map(_scalar, items))
    if trailing is not None:
        values.ca.items[len(values) - 1] = trailing


def _scalar(value: Any) -> Any:
    if not isinstance(value, str) or (_PLAIN.fullmatch(value) and value.lower() not in _WORDS):
        return value
    return DoubleQuotedScalarString(value)


def _with_theirs(name: str, ours: Any, existing: Any) -> Any:
    if not isinstance(ours, list):
        return ours
    if existing is not None and not isinstance(existing, list | str):
        raise _unreadable(f"{name} is no list")
    before = [existing] if isinstance(existing, str) else list(existing or ())
    return [*before, *(item for item in ours if item not in before)]


def _comments(text: str) -> Iterator[str]:
    """Yield every comment of a text, in order."""
    for token in _yaml().scan(text):
        for comment in _flat(token.comment):
            yield from (line.strip() for line in comment.value.splitlines() if line.strip())


def _flat(comments: Any) -> Iterator[Any]:
    if isinstance(comments, list):
        for comment in comments:
            yield from _flat(comment)
    elif comments is not None:
        yield comments


def _same(values: Any, others: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two structures hold the same; each pair is compared once, since anchors may nest without end."""
    if not isinstance(values, dict | list):
        both_nan = values != values and others != others  # NaN equals nothing, itself included
        return type(others) not in (dict, list) and bool(both_nan or values == others)
    if (id(values), id(others)) in seen:
        return True
    seen.add((id(values), id(others)))
    if isinstance(values, dict):
        if not isinstance(others, dict) or values.keys() != others.keys():
            return False
        return all(_same(value, others[name], seen) for name, value in values.items())
    if not isinstance(others, list) or len(values) != len(others):
        return False
    return all(_same(value, other, seen) for value, other in zip(values, others, strict=True))


def _unreadable(why: str) -> Exception:
    happened = f"the YAML of the README that is there cannot be read ({why})"
    return not_publishable(Path("README.md"), happened, "repair it on the Hub first")
