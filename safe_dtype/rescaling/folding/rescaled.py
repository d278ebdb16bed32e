"""The rescale in force in a model."""

from __future__ import annotations

from torch import nn

from ...errors import RescaleError
from ...facts import MOST_BITS, Rescale
from .fold import Fold
from .prove import Effect

_ATTRIBUTE = "_safe_dtype_rescaled"  # in the __dict__ of the model


class Rescaled:
    """The rescale in force in a model, and what it does to what the model returns."""

    def __init__(self, fold: Fold, effect: Effect) -> None:
        self.fold = fold
        self.effect = effect
        self.raised = 0  # bits that were added since
        self.too_few = 0  # bits that were added, did not help, and were taken back: the next to try are more

    @property
    def rescale(self) -> Rescale:
        """What is in force now."""
        return self.fold.rescale

    def raise_bits(self, more: int) -> None:
        """Move every gauge by so many bits more, in place.

        Raises:
            RescaleError: If that leaves too little of float16's range for small numbers. Nothing has changed then.
        """
        wanted = {gauge.name: bits + more for gauge, bits in self.rescale.shifts}
        if max(wanted.values(), default=0) > MOST_BITS:
            raise RescaleError(f"{self.rescale} is in force, and beyond {MOST_BITS} bits small numbers are lost")
        self.fold.move_to(self.rescale.with_bits(wanted))
        self.raised += more

    def exponent(self, model: str, field: str, place: int) -> int:
        """Return k where a hidden state of an inner model is 2 ** k times what it would be without the rescale."""
        proven = self.effect.hidden.get((model, field, place), 0) if self.rescale.shifts else 0
        return proven - self.raised if proven else 0


def rescaled_of(model: nn.Module) -> Rescaled | None:
    """Return the rescale in force in `model`; None where nothing was folded into it, or it was taken back."""
    rescaled = model.__dict__.get(_ATTRIBUTE)
    return rescaled if isinstance(rescaled, Rescaled) else None


def keep_in(model: nn.Module, rescaled: Rescaled) -> None:
    """Keep `rescaled` with its model."""
    model.__dict__[_ATTRIBUTE] = rescaled


def forget_rescaled(model: nn.Module) -> None:
    """Have `rescaled_of` return None from now on."""
    model.__dict__.pop(_ATTRIBUTE, None)
