"""Keep an exception as it is while what raised it runs again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..classify import links_of


@contextmanager
def as_it_is(error: BaseException | None) -> Iterator[None]:
    """Keep what `error` and its causes carry: a module may raise the very same objects again."""
    links = [(link, dict(link.__dict__), link.__traceback__, link.__cause__, link.__context__, link.__suppress_context__)
             for link in (links_of(error) if error is not None else ())]  # fmt: skip
    try:
        yield
    finally:
        for link, attributes, traceback, cause, context, is_suppressed in links:
            link.__dict__.clear()
            link.__dict__.update(attributes)
            link.__traceback__, link.__cause__, link.__context__ = traceback, cause, context
            link.__suppress_context__ = is_suppressed
