"""The rescale in force in a model, and the hooks that keep its outputs as they were."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from ...facts import Rescale
from ...models.undo_log import UndoLog
from .fold import Fold
from .prove import Effect, hidden_states, innermost_models
from .rescaled import Rescaled, forget_rescaled, keep_in
from .seams import put_on
from .watch import Watch


class _Unscale:
    """Hooks on an inner model that return hidden states at their original scale, in float32, whose range holds them."""

    def __init__(self, rescaled: Rescaled, name: str) -> None:
        self._rescaled, self._name = rescaled, name
        self._as_tuple = False

    def attach(self, module: nn.Module, log: UndoLog) -> None:
        """Put the hooks on `module`."""
        log.add(module.register_forward_pre_hook(self.enter, with_kwargs=True).remove)
        log.add(module.register_forward_hook(self).remove)

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

    def __init__(self, watch: Watch, name: str) -> None:
        self._watch, self._name = watch, name

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Take it back."""
        self._watch.take_back(f"{self._name} runs, and the rescaling was proved for text alone")


def keep_rescaled(
    model: nn.Module, fold: Fold, effect: Effect, *, loaded: Rescale | None = None, log: UndoLog | None = None
) -> Rescaled:
    """Attach a folded rescale to `model`, with the hooks that return hidden states at their original scale.

    It is taken back before a change of the model that it would not survive, with a warning.

    Args:
        model: The model.
        fold: The rescale in it.
        effect: What that does to what the model returns.
        loaded: What was folded in when the weights were brought into the dtype that the model will run in; by default
            all of it.
        log: Gets what takes off all that is put on the model here.
    """
    log = log if log is not None else UndoLog.forgetful()
    fold.loaded = fold.rescale if loaded is None else loaded
    rescaled = Rescaled(fold, effect)
    log.add(functools.partial(forget_rescaled, model))
    keep_in(model, rescaled)
    watch = Watch(rescaled)
    for name in fold.rescale.unproven:
        unproven = _Unproven(watch, name)
        log.add(model.get_submodule(name).register_forward_pre_hook(unproven, prepend=True).remove)
    for name, inner in innermost_models(model):
        if any(name == key[0] for key in effect.hidden):
            _Unscale(rescaled, name).attach(inner, log)
    put_on(watch, log)
    return rescaled
