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
        values = yaml.safe_load(card.split("\n---", 1)[0].removeprefix("---"))
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def parted(card: str) -> tuple[str, str]:
    """Return the lines of a card's YAML, and what comes after it.

    Raises:
        NotPublishableError: If the YAML has no end, or is no table.
    """
    card = card.replace("\r\n", "\n")
    if not card.startswith("---\n"):
        return "", f"\n{card}" if card else ""
    top, separator, body = card.removeprefix("---\n").partition("\n---\n")
    if top.startswith("---\n"):  # there is nothing in it
        return "", top.removeprefix("---\n") + separator + body
    if not separator or (top.strip() and not read_front_matter(card)):
        raise not_publishable(
            Path("README.md"), "the YAML of the README that is there cannot be read", "repair it on the Hub first"
        )
    return f"{top}\n", body


def merged(top: str, ours: Mapping[str, Any]) -> str:
    """Return the YAML lines `top` with our keys in their places, or at the end where they are new."""
    existing = read_front_matter(f"---\n{top}---\n")
    left = {name: _with_theirs(value, existing.get(name)) for name, value in ours.items()}
    lines: list[str] = []
    skipping = False
    for line in top.splitlines(keepends=True):
        key = _KEY.match(line)
        if key:
            # What says the same already stays as it was written.
            own = key[1] in left and left[key[1]] != existing.get(key[1])
            value = left.pop(key[1], None)
            skipping = own
            if own:
                lines.append(dumped({key[1]: value}))
        elif skipping and line.startswith("#"):
            skipping = False
        if not skipping:
            lines.append(line)
    return "".join(lines) + (dumped(left) if left else "")


def _with_theirs(ours: Any, existing: Any) -> Any:
    if not isinstance(ours, list):
        return ours
    before = existing if isinstance(existing, list) else [existing] if isinstance(existing, str) else []
    return [*before, *(item for item in ours if item not in before)]


def dumped(values: Mapping[str, Any]) -> str:
    """Return `values` as YAML, in their order."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text
