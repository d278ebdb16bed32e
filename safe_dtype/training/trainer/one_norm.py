"""The norm of the gradients, computed once a step: it tells whether they are finite, and the Trainer clips by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState

_REPLACED = ("clip_grad_norm_", "unscale_gradients")


class OneNorm:
    """What `accelerator.clip_grad_norm_` computes, computed before it is called, and not again when it is.

    In float16 the norm is left to it, for it is that of unscaled gradients; they are unscaled for the vote, and not again.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._parameters: list[nn.Parameter] = []
        self._norm: torch.Tensor | None = None  # of the gradients as they are now
        self._gradients: list[tuple[int, int]] = []  # by id, not kept alive; and how often each was written to
        # What the program has put there itself.
        self._before = {name: vars(accelerator)[name] for name in _REPLACED if name in vars(accelerator)}
        self._clip, self._unscale = accelerator.clip_grad_norm_, accelerator.unscale_gradients
        accelerator.clip_grad_norm_ = self._clip_by_norm
        accelerator.unscale_gradients = self._unscale_once

    def remove(self) -> None:
        """Have the Accelerator clip as it did."""
        attributes = vars(self._accelerator)
        for name, ours in zip(_REPLACED, (self._clip_by_norm, self._unscale_once), strict=True):
            if attributes.get(name) != ours:  # the program has put its own around it since
                continue
            if name in self._before:
                attributes[name] = self._before[name]
            else:
                del attributes[name]

    def compute(self, model: nn.Module) -> tuple[torch.Tensor, list[nn.Parameter]] | None:
        """Return the norm of all gradients of `model`, and its parameters; None where it is left to accelerate."""
        self._norm, self._parameters = None, list(model.parameters())
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self._accelerator.scaler is not None or any(type(gradient) is not torch.Tensor for gradient in gradients):
            return None
        self._norm = torch.nn.utils.get_total_norm(gradients)
        self._gradients = [(id(gradient), gradient._version) for gradient in gradients]
        return self._norm, self._parameters

    def _clip_by_norm(self, parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2) -> Any:
        norm, self._norm = self._norm, None
        parameters = list(parameters) if not isinstance(parameters, nn.Parameter) else [parameters]
        are_the_same = _are_the_same(parameters, self._parameters) and self._are_unchanged()
        self._gradients = []
        if norm is None or norm_type != 2 or not are_the_same or "clip_grad_norm_" in self._before:
            return self._clip(parameters, max_norm, norm_type)
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def _are_unchanged(self) -> bool:
        """Whether nobody has written to the gradients since, nor put others in their place: who wraps the training step may.

        What is written through `.data` torch does not count.
        """
        gradients = (parameter.grad for parameter in self._parameters)
        return self._gradients == [(id(one), one._version) for one in gradients if one is not None]

    def _unscale_once(self, optimizer: Any = None) -> None:
        scaler = self._accelerator.scaler
        states = scaler._per_optimizer_states if scaler is not None else {}
        if all(state["stage"] is OptState.READY for state in states.values()):
            self._unscale(optimizer)


def _are_the_same(parameters: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return len(parameters) == len(others) and all(one is other for one, other in zip(parameters, others, strict=True))
