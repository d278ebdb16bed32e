"""Autocasts that a model opens in its own forward: what the ladder changes does not reach into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from ...guarding.diagnosis import names_autocast
from ...models.wrapped_methods import unwrap_methods, wrap_method

WITHOUT_OWN = " without the model's own autocast"  # in words, behind a dtype


class OwnAutocasts:
    """Those of the models of one loop. In float32 they are all that computes in 16 bits, so that is the last thing to change.

    Attributes:
        are_kept: Whether they are none of our business.
        are_off: Whether windows in float32 run without them.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = list(models)
        self.are_kept = self.are_off = False
        self._are_new = False  # off since this window

    def begin(self) -> None:
        """Begin a window."""
        self._are_new = False

    def turn_off(self) -> bool:
        """Turn them off; return whether that changes anything, as far as the code of the models shows: on all ranks alike."""
        if self.are_kept or self.are_off or not any(map(names_autocast, self._models)):
            return False
        self.are_off = self._are_new = True
        return True

    def failed(self) -> None:
        """Leave them on again, where it was no help."""
        self.are_off = self.are_off and not self._are_new

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have no autocast turned on in the block, where they are off.

        In every thread: on an accelerator torch runs a checkpointed layer again in a thread of its own.
        """
        if not self.are_off:
            yield
            return
        block = _Block()
        wrap_method(autocast, "__enter__", _staying_off, block)
        try:
            yield
        finally:
            unwrap_methods(block)


class _Block:
    """Needs torch's class of autocasts wrapped, for as long as it lasts."""


def _staying_off(original: Callable[..., Any]) -> Callable[..., Any]:
    def __enter__(self: autocast) -> Any:  # noqa: N807  (it is one)
        entered = original(self)
        torch.set_autocast_enabled(self.device, False)  # noqa: FBT003  (torch's own signature)
        return entered

    return __enter__
