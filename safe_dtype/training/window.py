"""The micro-batches of one optimizer step, held until the step is made: a failed attempt reads them again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any


class Window(Sequence[Any]):
    """The micro-batches of one optimizer step, in their order.

    Whoever iterates gets copies of dictionaries, so that what a loop takes out of one is there when it comes again.
    """

    def __init__(self, batches: Sequence[Any], note: Callable[[bool | None], None]) -> None:
        self._batches = tuple(batches)
        self._note = note

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        return self._batches[place]

    def __iter__(self) -> Iterator[Any]:
        """Yield the micro-batches, and note of each whether it is the last one."""
        try:
            for place, batch in enumerate(self._batches):
                self._note(place == len(self._batches) - 1)
                yield copy.copy(batch) if hasattr(batch, "keys") else batch
        finally:
            self._note(None)


def windows_of(batches: Iterable[Any], size: int, note: Callable[[bool | None], None]) -> Iterator[Window]:
    """Yield `batches` in windows of `size`; the last one has what is left."""
    if size < 1:
        raise ValueError(f"a window has at least one micro-batch, not {size}")
    iterator = iter(batches)
    while batch := tuple(islice(iterator, size)):
        yield Window(batch, note)
