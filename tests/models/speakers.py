"""Classes with a method to wrap, and who wraps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class User:
    """Somebody who needs a method wrapped."""


def ours(original: Callable[..., Any]) -> Callable[..., Any]:
    """Add `!` to what the method says."""
    return lambda self, *args, **kwargs: original(self, *args, **kwargs) + "!"


def classes() -> tuple[Any, Any]:
    """Return a class with the method `say` and the class method `named`, and a subclass that inherits them."""

    class Base:
        def say(self, word: str) -> str:
            """Say it."""
            return word

        @classmethod
        def named(cls, word: str, *, times: int = 1) -> str:
            """Say it with the name of the class."""
            return cls.__name__ + word * times

    class Child(Base):
        pass

    return Base, Child


def own(owner: type) -> dict[str, Any]:
    """Return the attributes of the class itself."""
    return dict(vars(owner))
