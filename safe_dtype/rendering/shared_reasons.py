"""Reasons of the rows of one table: what all of them say is said once, below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_BETWEEN = "; "


def shared_parts(reasons: Iterable[str]) -> tuple[str, ...]:
    """Return the parts, with semicolons between, that all reasons share; none where there is only one reason."""
    first, *others = [reason.split(_BETWEEN) for reason in reasons] or [[]]
    return tuple(part for part in first if part and all(part in parts for parts in others)) if others else ()


def without_parts(reason: str, parts: Sequence[str]) -> str:
    """Return `reason` without those of its parts that are in `parts`."""
    return _BETWEEN.join(part for part in reason.split(_BETWEEN) if part not in parts)
