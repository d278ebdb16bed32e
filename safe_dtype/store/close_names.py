"""What a mistyped path may have meant: names like it that are there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_MOST_READ = 10_000  # entries of a folder
_MOST_SAID = 3


@dataclass(frozen=True, slots=True)
class MissingPart:
    """Where a path that does not exist ends."""

    folder: Path  # the last one of it that is there
    name: str  # what it does not have
    close: tuple[str, ...]  # names in it like the missing one

    def __str__(self) -> str:
        if (self.folder / self.name).exists():
            return f"{self.folder / self.name} is a file"
        but = f", but {' and '.join(map(repr, self.close))}" if self.close else ""
        return f"there is no {self.name!r} in {self.folder}{but}"


def missing_part(path: Path) -> MissingPart:
    """Return where `path`, which does not exist, ends. A relative one starts where this process is."""
    path = Path.cwd() / path.expanduser()
    folder = next(parent for parent in path.parents if parent.is_dir())
    name = path.relative_to(folder).parts[0]
    return MissingPart(folder, name, _close_to(name, folder))


def _close_to(name: str, folder: Path) -> tuple[str, ...]:
    try:
        names = {entry.name.lower(): entry.name for entry in islice(folder.iterdir(), _MOST_READ)}
    except OSError:
        return ()
    return tuple(names[close] for close in difflib.get_close_matches(name.lower(), names, n=_MOST_SAID))
