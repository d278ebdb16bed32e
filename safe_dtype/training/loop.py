"""What the guard asks of a loop of training, whoever wrote it: plain torch and accelerate have one adapter each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from ..facts import Dtype

CLOSURE = (  # what is wrong, and what to do
    "an optimizer that runs the model itself, in a closure (LBFGS), makes passes that cannot be held back",
    "train with an optimizer whose `step()` takes no closure, or without a guard, in float32",
)


class WindowWatch(Protocol):
    """What is told of a loop while an attempt runs."""

    is_done: bool  # whether the vote was unanimous: gradients have no scale any more

    def loss(self, loss: torch.Tensor) -> None:
        """Called before each backward pass."""

    def backward_ended(self) -> None:
        """Called after each backward pass that has ended well."""

    def norm(self, norm: torch.Tensor, parameters: Iterable[torch.Tensor]) -> None:
        """Called with the norm of the gradients of these parameters, where the loop computes it anyway."""

    def step(self) -> None:
        """Called before an optimizer steps with gradients that are whole; what it raises unwinds the loop."""

    def is_last(self) -> bool | None:
        """Whether this is the last micro-batch of its window; None where the loop did not get it from a window."""


class Loop(Protocol):
    """A loop of training: what is trained in it, in which dtype, and how that is changed."""

    dtype: Dtype

    @property
    def scaler(self) -> Any:
        """The `torch.amp.GradScaler` in float16, else None."""

    @property
    def models(self) -> Sequence[nn.Module]:
        """The models, as the loop calls them."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers of torch that it steps."""

    def switch(self, dtype: Dtype) -> None:
        """Have the next pass compute in `dtype`, with a new scaler in float16."""

    def watched(self, watch: WindowWatch) -> AbstractContextManager[None]:
        """Tell `watch` what happens in the block."""

    def place(self) -> Any:
        """Return where the loop is in its own counting of micro-batches."""

    def return_to(self, place: Any) -> None:
        """Have the loop count from there again."""

    def stepped(self) -> None:
        """Called after a unanimous vote: the gradients are unscaled, and the optimizers step now."""
