"""What is kept with a rescaled model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import RescaleError
from ...errors.warn import warn
from ...facts import MOST_BITS, Rescale
from .fold import Fold
from .prove import Effect, hidden_states, innermost_models

_ATTRIBUTE = "_safe_dtype_rescaled"  # in the __dict__ of the model


class Rescaled:
    """The rescale in force in a model, and what it does to what the model returns."""

    def __init__(self, fold: Fold, effect: Effect) -> None:
        self.fold = fold
        self.effect = effect
        self.raised = 0  # bits that were added since

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


class _Unscale:
    """Hooks on an inner model: give hidden states back in their own size, in float32, which holds it."""

    def __init__(self, rescaled: Rescaled, name: str) -> None:
        self._rescaled, self._name = rescaled, name
        self._as_tuple = False

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on `module`."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self)

    def enter(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Ask for names: in a tuple nobody knows what is a hidden state."""
        wanted = kwargs.get("return_dict")
        self._as_tuple = (getattr(module.config, "return_dict", True) if wanted is None else wanted) is False
        return args, {**kwargs, "return_dict": True} if self._as_tuple else kwargs

    def __call__(self, _module: nn.Module, _args: Any, returned: Any) -> Any:
        """Multiply back."""
        for field, place, value in list(hidden_states(returned)):
            exponent = self._rescaled.exponent(self._name, field, place)
            if exponent:
                own, held = value.float() * 2.0**-exponent, returned[field]
                returned[field] = own if place < 0 else (*held[:place], own, *held[place + 1 :])
        return returned.to_tuple() if self._as_tuple and hasattr(returned, "to_tuple") else returned


class _Follow:
    """A forward pre-hook on an inner model: a copy of a model notices here what became of its modules."""

    def __init__(self, rescaled: Rescaled) -> None:
        self._rescaled = rescaled

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        fold = self._rescaled.fold
        if fold.is_watching and not fold.is_stale():
            return
        if fold.is_stale():
            fold.follow_or_tell()
        fold.watch_seats()


class _Unproven:
    """A forward pre-hook on what a text does not reach: where it runs nobody knows what a rescaled stream does with it.

    An image tower may add its features between two blocks. It runs before them: they compute as they were made then.
    """

    def __init__(self, rescaled: Rescaled, name: str) -> None:
        self._rescaled, self._name = rescaled, name

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        if not self._rescaled.rescale.shifts:
            return
        self._rescaled.fold.undo()
        text = f"{self._name} runs, and the rescaling was proved for text alone: it is undone. float16 may overflow"
        warn(f"{text}. Next: load in float32 for such inputs")


def keep_rescaled(model: nn.Module, fold: Fold, effect: Effect) -> Rescaled:
    """Keep with `model` what was folded into it, and have it return hidden states in their own size."""
    found = Rescaled(fold, effect)
    model.__dict__[_ATTRIBUTE] = found
    for name in fold.rescale.unproven:
        model.get_submodule(name).register_forward_pre_hook(_Unproven(found, name), prepend=True)
    for name, inner in innermost_models(model):
        inner.register_forward_pre_hook(_Follow(found), prepend=True)
        if any(name == key[0] for key in effect.hidden):
            _Unscale(found, name).attach(inner)
    return found


def rescaled_of(model: nn.Module) -> Rescaled | None:
    """Return what is kept with `model`; None where nothing was folded into it."""
    found = model.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Rescaled) else None
