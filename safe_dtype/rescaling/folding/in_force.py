"""The rescale in force in a model, and the hooks that keep its outputs as they were."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import RescaleError
from ...errors.warn import warn
from ...facts import MOST_BITS, Rescale
from .fold import Fold
from .prove import Effect, hidden_states, innermost_models
from .watch import Entered, Watch

_ATTRIBUTE = "_safe_dtype_rescaled"  # in the __dict__ of the model


class Rescaled:
    """The rescale in force in a model, and what it does to what the model returns."""

    def __init__(self, fold: Fold, effect: Effect, loaded: Rescale) -> None:
        self.fold = fold
        self.effect = effect
        self.loaded = loaded  # what was in force when the weights were brought into the dtype that they are in
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


class _Unscale:
    """Hooks on an inner model that return hidden states at their original scale, in float32, whose range holds them."""

    def __init__(self, rescaled: Rescaled, name: str) -> None:
        self._rescaled, self._name = rescaled, name
        self._as_tuple = False

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on `module`."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self)

    def enter(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Ask for named outputs: in a tuple hidden states cannot be told from others."""
        wanted = kwargs.get("return_dict")
        self._as_tuple = (getattr(module.config, "return_dict", True) if wanted is None else wanted) is False
        return args, {**kwargs, "return_dict": True} if self._as_tuple else kwargs

    def __call__(self, _module: nn.Module, _args: Any, returned: Any) -> Any:
        """Multiply back."""
        for field, place, value in list(hidden_states(returned)):
            exponent = self._rescaled.exponent(self._name, field, place)
            if exponent:
                own, states = value.float() * 2.0**-exponent, returned[field]
                returned[field] = own if place < 0 else (*states[:place], own, *states[place + 1 :])
        return returned.to_tuple() if self._as_tuple and hasattr(returned, "to_tuple") else returned


class _Unproven:
    """A forward pre-hook on a module that text does not reach: when it runs, the rescale, proved on text, is undone.

    An image tower may add its features between two blocks. It runs before them, so they compute without the rescale.
    """

    def __init__(self, rescaled: Rescaled, name: str) -> None:
        self._rescaled, self._name = rescaled, name

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        if not self._rescaled.rescale.shifts:
            return
        self._rescaled.fold.undo()
        text = f"{self._name} runs, and the rescaling was proved for text alone: it is undone. float16 may overflow"
        warn(f"{text}. Next: load in float32 for such inputs")


def keep_rescaled(model: nn.Module, fold: Fold, effect: Effect, *, loaded: Rescale | None = None) -> Rescaled:
    """Attach a folded rescale to `model`, with the hooks that return hidden states at their original scale.

    Args:
        model: The model.
        fold: The rescale in it.
        effect: What that does to what the model returns.
        loaded: What was folded in when the weights were brought into the dtype that the model will run in; by default
            all of it.
    """
    rescaled = Rescaled(fold, effect, fold.rescale if loaded is None else loaded)
    model.__dict__[_ATTRIBUTE] = rescaled
    watch = Watch(fold)
    watch.attach()
    for name in fold.rescale.unproven:
        model.get_submodule(name).register_forward_pre_hook(_Unproven(rescaled, name), prepend=True)
    for name, inner in innermost_models(model):
        inner.register_forward_pre_hook(Entered(watch), prepend=True)
        if any(name == key[0] for key in effect.hidden):
            _Unscale(rescaled, name).attach(inner)
    return rescaled


def rescaled_of(model: nn.Module) -> Rescaled | None:
    """Return the rescale in force in `model`; None where nothing was folded into it."""
    rescaled = model.__dict__.get(_ATTRIBUTE)
    return rescaled if isinstance(rescaled, Rescaled) else None
