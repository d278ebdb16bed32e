"""The YAML at the top of a card: read, and changed line by line, so that what others wrote there stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # the package brings no types

from .evidence import not_publishable

_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:")


def read_front_matter(card: str) -> dict[str, Any]:
    """Return the YAML at the top of a card; empty where there is none, or it is no table."""
    if not card.startswith("---"):
        return {}
    try:
        found = yaml.safe_load(card.split("\n---", 1)[0].removeprefix("---"))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def parted(card: str) -> tuple[str, str]:
    """Return the lines of a card's YAML, and what comes after it.

    Raises:
        NotPublishableError: If the YAML has no end, or is no table.
    """
    card = card.replace("\r\n", "\n")
    if not card.startswith("---\n"):
        return "", f"\n{card}" if card else ""
    top, found, body = card.removeprefix("---\n").partition("\n---\n")
    if top.startswith("---\n"):  # there is nothing in it
        return "", top.removeprefix("---\n") + found + body
    if not found or (top.strip() and not read_front_matter(card)):
        raise not_publishable(
            Path("README.md"), "the YAML of the README that is there cannot be read", "repair it on the Hub first"
        )
    return f"{top}\n", body


def merged(top: str, ours: Mapping[str, Any]) -> str:
    """Return the YAML lines `top` with our keys in their places, or at the end where they are new."""
    theirs = read_front_matter(f"---\n{top}---\n")
    left = {name: _with_theirs(value, theirs.get(name)) for name, value in ours.items()}
    lines: list[str] = []
    skipping = False
    for line in top.splitlines(keepends=True):
        key = _KEY.match(line)
        if key:
            # What says the same already stays as it was written.
            own = key[1] in left and left[key[1]] != theirs.get(key[1])
            value = left.pop(key[1], None)
            skipping = own
            if own:
                lines.append(dumped({key[1]: value}))
        elif skipping and line.startswith("#"):
            skipping = False
        if not skipping:
            lines.append(line)
    return "".join(lines) + (dumped(left) if left else "")


def _with_theirs(ours: Any, theirs: Any) -> Any:
    if not isinstance(ours, list):
        return ours
    before = theirs if isinstance(theirs, list) else [theirs] if isinstance(theirs, str) else []
    return [*before, *(one for one in ours if one not in before)]


def dumped(values: Mapping[str, Any]) -> str:
    """Return `values` as YAML, in their order."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text
