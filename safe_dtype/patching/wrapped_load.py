"""The wrapper around one class's `from_pretrained`: where every way of loading a model passes exactly once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from ..planning import Policy

logger = logging.getLogger(__name__)

_NAME = "from_pretrained"


class Seam:
    """The class method of `owner` and what is there in its place.

    Somebody may wrap ours in turn. It is then left where it is, and without a policy it does nothing.
    """

    def __init__(self, owner: type, policy_now: Callable[[], Policy | None]) -> None:
        self.owner = owner
        self._before = owner.__dict__[_NAME]
        self._ours = classmethod(self._wrapper(policy_now))
        setattr(owner, _NAME, self._ours)
        self._removed = False

    @property
    def in_place(self) -> bool:
        """Whether ours is what the class holds now."""
        return self.owner.__dict__.get(_NAME) is self._ours

    def remove(self) -> None:
        """Put back the very object that was there."""
        self._removed = True
        if self.in_place:
            setattr(self.owner, _NAME, self._before)
        else:
            logger.info("%s.%s was changed after us: ours stays beneath and does nothing", self.owner.__name__, _NAME)

    def _wrapper(self, policy_now: Callable[[], Policy | None]) -> Callable[..., Any]:
        before = self._before

        @functools.wraps(before.__func__)
        def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
            original = before.__get__(None, cls)
            policy = policy_now()
            if policy is None or self._removed:
                return original(*args, **kwargs)
            from .planned import from_pretrained_planned  # loads what needs torch, which is here by now

            return from_pretrained_planned(original, policy, args, kwargs)

        return from_pretrained
