"""What is remembered on this machine, as a page for people and as plain values. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rendering.tables import Column, page, table
from ..rendering.units import age_text, bytes_text
from ..store import Entry, cache_folder, entries, forget

_COLUMNS = (
    Column("what", wraps=True), Column("device", wraps=True), Column("model", wraps=True),
    Column("age", number=True), Column("size", number=True),
)  # fmt: skip
_DAMAGED = "damaged"

# What the keys of entries have that no other kind has, and what such an entry tells.
_KINDS = {
    "ops": "speed and errors",
    "half_of": "float16's range",
    "drift_of": "drift",
    "learned": "failures met",
    "observed": "crashes met",
    "gauges": "exact rescales",
    "made here": "trust in optimized code",
    "kernel": "code for this CPU",
}


@dataclass(frozen=True, slots=True)
class CacheFilter:
    """Which entries are meant; what is None is not asked for."""

    device: str | None = None  # a part of the product's name
    model: str | None = None  # a part of the model's name, or a folder
    older_than: float | None = None  # seconds
    damaged: bool = False

    def takes(self, entry: Entry) -> bool:
        """Whether `entry` is meant."""
        return (
            (self.device is None or self.device.lower() in device_of(entry).lower())
            and (self.model is None or any(_is_called(model, self.model) for model in models_of(entry)))
            and (self.older_than is None or time.time() - entry.measured_at > self.older_than)
            and (not self.damaged or bool(entry.problem))
        )


def listed(wanted: CacheFilter) -> list[Entry]:
    """Return the entries that are meant, the newest first."""
    return [entry for entry in entries() if wanted.takes(entry)]


def clear(chosen: Iterable[Entry]) -> list[Entry]:
    """Delete entries, and return those that are gone.

    Raises:
        OSError: If one cannot be deleted.
    """
    return forget(chosen)


def cache_text(chosen: Sequence[Entry], *, width: int) -> str:
    """Return one row an entry: what was measured, for which device and model, how old, how big."""
    total = f"{count_text(chosen)} in {cache_folder()}"
    if not chosen:
        return total
    rows = (
        (what_of(entry), device_of(entry) or "-", ", ".join(models_of(entry)) or "-",
         age_text(time.time() - entry.measured_at), bytes_text(entry.bytes))
        for entry in chosen
    )  # fmt: skip
    return page([table(_COLUMNS, rows), total], width=width)


def count_text(chosen: Sequence[Entry]) -> str:
    """Return how many entries there are, and how big they are together."""
    entries_word = "entry" if len(chosen) == 1 else "entries"
    return f"{len(chosen)} {entries_word}, {bytes_text(sum(entry.bytes for entry in chosen))},"


def cache_to_dict(chosen: Iterable[Entry]) -> dict[str, Any]:
    """Return the folder and its entries as plain values."""
    return {"folder": str(cache_folder()), "entries": [_entry_to_dict(entry) for entry in chosen]}


def what_of(entry: Entry) -> str:
    """Return what was measured, in words."""
    if entry.problem:
        return f"{_DAMAGED}: {entry.problem}"
    kind = kind_of(entry)
    if kind == "drift":
        return f"drift of {entry.key.get('candidate', '?')}"
    dtypes, widths = entry.key.get("dtypes"), entry.key.get("widths")
    if isinstance(dtypes, list) and isinstance(widths, list):
        return f"{kind} of {', '.join(map(str, dtypes))} at {', '.join('x'.join(map(str, width)) for width in widths)}"
    return kind


def kind_of(entry: Entry) -> str:
    """Return what sort of entry it is, in words."""
    if entry.problem:
        return _DAMAGED
    return next((kind for mark, kind in _KINDS.items() if mark in entry.key), "something else")


def device_of(entry: Entry) -> str:
    """Return the product that it was measured on; nothing where it holds for every device."""
    return str(entry.key.get("device") or entry.key.get("name") or "")


def models_of(entry: Entry) -> tuple[str, ...]:
    """Return the checkpoints or the class that it is about; nothing where it is about a device alone."""
    failures = entry.values.get("failures")
    lessons = [failure.get("checkpoint") for failure in failures if isinstance(failure, Mapping)] if failures else []
    named = (entry.values.get("checkpoint"), entry.key.get("class"), *lessons)
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))


def _is_called(model: str, name: str) -> bool:
    return name.lower() in model.lower() or (Path(name).exists() and str(Path(name).resolve()) == model)


def _entry_to_dict(entry: Entry) -> dict[str, Any]:
    return {
        "file": entry.file.name,
        "kind": kind_of(entry),
        "what": what_of(entry),
        "device": device_of(entry) or None,
        "models": list(models_of(entry)),
        "measured_at": entry.measured_at,
        "bytes": entry.bytes,
        "problem": entry.problem or None,
    }
