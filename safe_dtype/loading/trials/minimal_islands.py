"""The fewest of several things that are still enough, found by halving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Names = tuple[str, ...]


def fewest(names: Sequence[str], enough: Callable[[Names], bool]) -> Names:
    """Return a part of `names`, in their order, that is `enough`, and from which no part that was tried can be left out.

    All of `names` together are taken to be enough. Asks about 2 log2(n) times where few are needed, 2 n times at most.
    """
    needed = tuple(names)
    size = len(needed)
    while size:
        start = 0
        while start < len(needed):
            fewer = needed[:start] + needed[start + size :]
            if enough(fewer):
                needed = fewer
            else:
                start += size
        size //= 2
    return needed
