"""A function of torch that is looked at while windows run: by one wrapper, however many windows there are in threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any


class WatchedFunction:
    """A function of a module or a class, with a wrapper in its place for as long as anybody watches.

    Windows of several threads, and of generators that are left half done, end in any order: a wrapper around the wrapper of
    another one would stay behind.

    Args:
        owner: The module, or the class.
        name: Of the function in it.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._original: Callable[..., Any] | None = None  # while a wrapper is in its place
        self._watchers: dict[object, Callable[..., None]] = {}
        self._lock = RLock()  # the end of a generator may come with any line of its own thread

    @contextmanager
    def watched_by(self, watcher: Callable[..., None]) -> Iterator[None]:
        """Call `watcher` before each call in the block, with the same arguments: what it raises comes out of the call."""
        key = object()
        with self._lock:
            self._watchers[key] = watcher
            self._settle()
        try:
            yield
        finally:
            with self._lock:
                del self._watchers[key]
                self._settle()

    def _settle(self) -> None:
        if self._watchers and self._original is None:
            original = self._original = vars(self._owner)[self._name]

            @functools.wraps(original)
            def call(*args: Any, **kwargs: Any) -> Any:
                for watcher in list(self._watchers.values()):
                    watcher(*args, **kwargs)
                return original(*args, **kwargs)

            setattr(self._owner, self._name, call)
        elif not self._watchers and self._original is not None:
            setattr(self._owner, self._name, self._original)
            self._original = None
