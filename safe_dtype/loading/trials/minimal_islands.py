"""The fewest of several things that still do, found by halving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Names = tuple[str, ...]


def fewest(names: Sequence[str], does: Callable[[Names], bool]) -> Names:
    """Return a part of `names`, in their order, that `does`, and from which none of the halves tried can be left out.

    All of `names` together are taken to do. Asks about 2 log2(n) times where few are needed, 2 n times at most.
    """
    kept = tuple(names)
    size = len(kept)
    while size:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + size :]
            if does(fewer):
                kept = fewer
            else:
                start += size
        size //= 2
    return kept
