"""The bits that weights lost when they were loaded, brought back from the files when the model changes its dtype."""

from __future__ import annotations

import logging
from types import TracebackType

import torch
from torch import nn

from ..models.original_weights import Exponents, OriginalWeights, multiplied
from ..models.stored_names import plain_name
from ..rescaling import rescaled_of

logger = logging.getLogger(__name__)

_NAMED = 3  # how many weights a line in the log names


class LostBits:
    """What the weights of a model are cast from when it goes to another dtype: their files, where that is right.

    A weight that was rounded is read again only where its file gives the very bits that it has now. What anybody has
    written into it since, an adapter that was merged say, is theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = type(model).__name__
        self._weights = OriginalWeights(model)
        rescaled = rescaled_of(model)
        self._moved: dict[str, Exponents] = dict(rescaled.fold.moved()) if rescaled is not None else {}
        self._as_they_are: list[str] = []

    def __enter__(self) -> LostBits:
        self._weights.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._weights.__exit__(kind, exc, traceback)

    def restored(self, name: str, present: torch.Tensor) -> torch.Tensor | None:
        """Return what to cast instead of `present`, a weight that lost bits; None where that is `present` itself."""
        exponents = self._moved.get(name) or self._moved.get(plain_name(name)) or {}
        if present.is_meta or not (exponents or self._weights.loses(name, present.dtype)):
            return None
        stored = self._weights.unchanged(name, present, exponents)
        if stored is None:
            self._as_they_are.append(name)
            return None
        return multiplied(stored.float(), exponents) if exponents else stored

    def tell(self) -> None:
        """Log which weights stay rounded as they are, and why."""
        if not self._as_they_are:
            return
        count, problems = len(self._as_they_are), "; ".join(self._weights.problems)
        why = f"cannot be read again ({problems})" if problems else "have changed since they were loaded"
        names = ", ".join(self._as_they_are[:_NAMED]) + (f" and {count - _NAMED} more" if count > _NAMED else "")
        logger.warning("%s: %d rounded weights %s, and are cast as they are: %s", self._model, count, why, names)
