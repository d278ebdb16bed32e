"""The bits that weights lost when they were loaded, brought back from the files when the model changes its dtype."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn

from ...models.original_weights import Exponents, OriginalWeights
from ...models.stored_names import plain_name
from .fold import exponents_of_weights
from .rescaled import Rescaled, rescaled_of
from .stored_weights import stored_weight
from .underflow import multiplied

logger = logging.getLogger(__name__)

_NAMED = 3  # how many weights a line in the log names


class RoundedWeights:
    """What the weights of a model are cast from when it goes to another dtype: their files, where that is right.

    A weight that was rounded is read again only where its file gives the very bits that it has now. What anybody has
    written into it since, an adapter that was merged say, is theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = type(model).__name__
        self._weights = OriginalWeights(model)
        self._rescaled = rescaled_of(model)
        self._moved: dict[str, Exponents] = dict(self._rescaled.fold.moved()) if self._rescaled is not None else {}
        self._on_loading = exponents_of_weights(self._rescaled.fold.loaded) if self._rescaled is not None else {}
        self._as_they_are: dict[str, list[str]] = {}  # by what has become of them

    def __enter__(self) -> RoundedWeights:
        self._weights.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._weights.__exit__(kind, exc, traceback)

    def of(self, module: str) -> Callable[[str, torch.Tensor], torch.Tensor | None]:
        """Return `restored` for names inside of a module of the model; that of the model itself is empty."""
        prefix = f"{module}." if module else ""
        return lambda name, present: self.restored(prefix + name, present)

    def restored(self, name: str, present: torch.Tensor, *, passed: torch.dtype | None = None) -> torch.Tensor | None:
        """Return what to cast instead of `present`, a weight that lost bits; None where that is `present` itself.

        Args:
            name: Of the weight.
            present: Its values now.
            passed: The dtype that it lost bits in, where it is in a wider one by now.
        """
        moved = next((key for key in (name, plain_name(name)) if self._moved.get(key)), None)
        if self._rescaled is not None and moved is not None and not present.is_meta:
            return self._moved_back_and_forth(self._rescaled, name, moved, present)
        if present.is_meta or not self._weights.loses(name, passed or present.dtype):
            return None
        stored = self._weights.unchanged(name, present)
        if stored is None:
            self._note(name)
        return stored

    def _moved_back_and_forth(self, rescaled: Rescaled, name: str, moved: str, present: torch.Tensor) -> torch.Tensor:
        """Return a weight that a rescale has multiplied, in float32: of its file, else with the bits that were kept."""
        exponents = self._moved[moved]
        own = rescaled.fold.unmoved(moved, present, exponents)
        stored = stored_weight(self._weights, name, own, present.dtype, self._on_loading.get(moved, {}))
        if stored is not None:
            return multiplied(stored.float(), exponents)
        self._note(name)
        return multiplied(own, exponents)

    def leave(self, name: str, dtype: torch.dtype) -> None:
        """Note a weight that is in `dtype` somewhere else, and is cast from there as it is."""
        if self._weights.loses(name, dtype):
            self._as_they_are.setdefault("were written anew on loading", []).append(name)

    def tell(self) -> None:
        """Log which weights stay rounded as they are, and why."""
        for why, names in self._as_they_are.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            logger.warning(
                "%s: %d rounded weights %s, and are cast as they are: %s%s", self._model, len(names), why,
                ", ".join(names[:_NAMED]), more,
            )  # fmt: skip

    def _note(self, name: str) -> None:
        problems = self._weights.problems or (
            ("nothing in their files is made into them",) if name in self._weights.unmade else ()
        )
        why = f"cannot be read again ({'; '.join(problems)})"
        self._as_they_are.setdefault(why if problems else "have changed since they were loaded", []).append(name)
