"""Gradients that were there before the passes of a window: of an optimizer that steps with every second one, say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.weak import TensorWeakRef

from ..judge_numbers import local_part
from ..loop import Loop


class KeptGradients:
    """What the weights of a loop's optimizers had for gradients when the first backward pass of a window began.

    Such gradients have no loss scale: the vote of their window took it away. In float16 they get that of the passes which
    are added to them (a power of two changes no bit of them), and where the window runs again, they are what it began with.
    Those that are zeroed before the first pass cost nothing, and others a copy.

    Args:
        loop: Whose optimizers.
        is_open: Whether the window before made no step: gradients have their scale yet, and no window runs again that adds
            to them.
    """

    def __init__(self, loop: Loop, is_open: Callable[[], bool]) -> None:
        self._loop, self._is_open = loop, is_open
        self._kept: list[tuple[torch.Tensor, torch.Tensor | None]] = []  # a weight, and its gradient; None: zeros
        self._has_begun = False  # whether this attempt has had a backward pass
        self._at_start: list[tuple[torch.Tensor, TensorWeakRef, int]] = []  # weights, gradients, how often written to
        self._are_scaled = False  # where an exception has ended an attempt, say

    def begin(self) -> None:
        """Begin an attempt."""
        self._kept, self._has_begun = [], False
        self._at_start = [
            (weight, TensorWeakRef(gradient), gradient._version) for weight, gradient in self._gradients()
        ]

    def before_pass(self) -> None:
        """Keep what is there before the first backward pass of an attempt, and scale it where that pass does."""
        if self._has_begun:
            return
        self._has_begun = True
        self._keep(self._gradients(), scales=True)
        self._are_scaled = self._loop.scaler is not None

    def before_end(self) -> None:
        """Keep what is there where an attempt has failed before its first pass: it is about to be forgotten with the rest.

        Not what has come since the attempt began: `loss.backward()` is a pass that nobody here is told of.
        """
        if not self._has_begun:
            self._has_begun = True
            left = []
            for weight, reference, version in self._at_start:
                gradient = weight.grad
                if gradient is not None and _is_left(gradient, reference, version):
                    left.append((weight, gradient))
            self._keep(left, scales=False)

    def unscaled(self) -> None:
        """Note that all gradients have lost their scale, after a unanimous vote."""
        self._kept, self._are_scaled = [], False

    def put_back(self) -> None:
        """Have the gradients that were there before, after all were forgotten."""
        for weight, gradient in self._kept:
            weight.grad = torch.zeros_like(weight) if gradient is None else gradient
        self._kept, self._are_scaled = [], False

    def _gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        groups = (group for optimizer in self._loop.optimizers for group in optimizer.param_groups)
        weights = dict.fromkeys(weight for group in groups for weight in group["params"])  # each once
        return [(weight, weight.grad) for weight in weights if weight.grad is not None]

    def _keep(self, gradients: list[tuple[torch.Tensor, torch.Tensor]], *, scales: bool) -> None:
        if not gradients or self._is_open():
            return
        scaler, device = self._loop.scaler, gradients[0][0].device
        are_there = torch.stack([local_part(one).any().to(device) for _, one in gradients]).tolist()  # one wait
        scale = float(scaler.get_scale()) if scaler is not None and any(are_there) else 1.0
        for (weight, gradient), is_there in zip(gradients, are_there, strict=True):
            if not is_there:
                if not gradient.is_sparse:  # as the optimizer wants them
                    self._kept.append((weight, None))
                continue
            # A copy, and the gradient itself is changed in its place: it may lie in a bucket of DistributedDataParallel.
            as_it_was = gradient.detach().clone()
            if self._are_scaled:
                as_it_was.div_(scale)
            elif scales and scaler is not None:
                gradient.detach().mul_(scale)
            self._kept.append((weight, as_it_was))


def _is_left(gradient: torch.Tensor, at_start: TensorWeakRef, version: int) -> bool:
    """Whether a gradient is the one of the start, and nobody but `zero_grad` has written to it since.

    Views of a bucket of DistributedDataParallel are taken to be: it moves them to other buckets, and counts what was written
    to any of a bucket's. A pass in it that the loop was not told of would have the ranks wait for each other.
    """
    local = local_part(gradient)
    if local._is_view():
        return True
    return gradient is at_start() and (gradient._version == version or not local.any())
