"""Gradients that torch's own functions clip, which know nothing of a loss scale: they lose it first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.amp.grad_scaler import OptState
from torch.nn.utils import clip_grad

from ...errors import TrainingLoopError
from ..judge_numbers import forget_unscaled, local_part
from ..loop import WindowWatch
from .watched_function import WatchedFunction

# What clip_grad_norm_, clip_grad_value_ and get_total_norm of torch hand all gradients to before they look at any: it is
# found in their module when they run, so that it does not matter where a program has imported them.
_FIRST = WatchedFunction(clip_grad, "_group_tensors_by_device_and_dtype")
_LOOKS = "_get_total_norm"  # of all that call it, the one that changes no gradient
_ONCE = "clip once a step, after the backward pass of its last micro-batch"


class TorchClipping:
    """In float16: takes the loss scale from gradients before a function of torch clips them, once an attempt.

    Args:
        scaler: Of the loss; None outside of float16, where nothing is done.
        optimizers: Of the loop.
        is_whole: Whether the gradients are those of a whole step.
        watch: Votes before gradients lose a scale that no loss had, and raises; once its vote is through, none has a scale.
    """

    def __init__(
        self, scaler: Any, optimizers: Sequence[torch.optim.Optimizer], is_whole: Callable[[], bool],
        watch: WindowWatch,
    ) -> None:  # fmt: skip
        self._scaler, self._optimizers = scaler, list(optimizers)
        self._is_whole, self._watch, self._is_paused = is_whole, watch, False

    def watched(self) -> AbstractContextManager[None]:
        """Watch what is clipped in the block."""
        return nullcontext() if self._scaler is None else _FIRST.watched_by(self._before)

    def _before(self, tensors: Any, *_args: Any, **_kwargs: Any) -> None:
        caller = sys._getframe(2).f_code.co_name  # of the function that is watched
        # What is looked at may be clipped by another function after that.
        self._unscale([tensor for row in tensors for tensor in row], is_looked_at=caller == _LOOKS)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave gradients as they are in the block, whoever looks at them."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Notice a backward pass that adds scaled gradients to others without a scale, in one optimizer.

        Where those without one are gone by then, as after `zero_grad`, the new ones lose their scale like any other.

        Raises:
            TrainingLoopError: If it has.
        """
        before = [
            (optimizer, [(weight, weight.grad, _version(weight.grad)) for weight in _weights(optimizer)],
             [local_part(weight.grad).any() for weight in _weights(optimizer) if weight.grad is not None])
            for optimizer in self._optimizers
            if self._scaler is not None and self._stage(optimizer) is OptState.UNSCALED
        ]  # fmt: skip
        yield
        for optimizer, gradients, are_there in before:
            if not any(weight.grad is not one or _version(one) != version for weight, one, version in gradients):
                continue
            if any(map(bool, are_there)):
                raise TrainingLoopError(
                    "a backward pass has added gradients with a loss scale to some that were clipped, and have none any more",
                    _ONCE,
                )
            forget_unscaled(self._scaler, [optimizer])

    def _unscale(self, gradients: Sequence[torch.Tensor], *, is_looked_at: bool) -> None:
        if self._is_paused or self._watch.is_done or (is_looked_at and not self._is_whole()):
            return
        places = {place for gradient in gradients for place in _places(gradient)}
        for optimizer in self._optimizers:
            if not any(places & _places(weight.grad) for weight in _weights(optimizer) if weight.grad is not None):
                continue
            if self._scaler._scale is None:
                self._watch.step()
            if self._stage(optimizer) is not OptState.READY:
                continue
            if not self._is_whole():
                raise TrainingLoopError(
                    "gradients are clipped in float16 before they are whole, by a function that knows nothing of their loss scale",
                    f"{_ONCE}; with accelerate by accelerator.clip_grad_norm_, in `if accelerator.sync_gradients:`",
                )
            self._scaler.unscale_(optimizer)

    def _stage(self, optimizer: torch.optim.Optimizer) -> OptState:
        stage: OptState = self._scaler._per_optimizer_states[id(optimizer)]["stage"]
        return stage


def _weights(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _version(gradient: torch.Tensor | None) -> int:
    return 0 if gradient is None else gradient._version


def _places(gradient: torch.Tensor) -> set[Any]:
    """Return what tells a gradient, and any view from its beginning (`grad.detach()`, `grad.data`), from all others."""
    place = 0 if gradient.is_sparse else local_part(gradient).data_ptr()
    return {id(gradient), (gradient.device, place)} if place else {id(gradient)}
