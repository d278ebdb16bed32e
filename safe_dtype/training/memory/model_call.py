"""A call of a model in a window: the first one of a loop is looked at before it is made, the latest is there for a step down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call of a model, by reference."""

    model: nn.Module  # as the loop calls it, in its wrapper
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def unwrapped(self) -> nn.Module:
        """The model without compiler and without what reduces its gradients."""
        model: Any = self.model
        while (inner := getattr(model, "_orig_mod", None) or _inside_ddp(model)) is not None:
            model = inner
        return model  # type: ignore[no-any-return]

    @property
    def inputs(self) -> dict[Any, Any]:
        """All arguments, those without a name by their places."""
        return {**dict(enumerate(self.args)), **self.kwargs}

    @property
    def is_compiled(self) -> bool:
        """Whether what runs is made of the model by a compiler, which keeps fewer activations."""
        model: Any = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        return any(
            "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
            for module in model.modules()
        )


class LatestCall:
    """The latest call of any of the models that gradients are asked of, while an attempt runs; none is kept between windows.

    Args:
        models: As the loop calls them.
        look: Called before the first call of all; what it raises comes out of that call.
    """

    def __init__(self, models: Iterable[nn.Module], look: Callable[[ModelCall], None]) -> None:
        self._models = list(models)
        self._look: Callable[[ModelCall], None] | None = look
        self.call: ModelCall | None = None

    @property
    def is_looked_for(self) -> bool:
        """Whether the first call is still to come."""
        return self._look is not None

    def look_no_more(self) -> None:
        """Look at no call before it is made."""
        self._look = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the calls in the block."""
        with ExitStack() as stack:
            for model in self._models:
                stack.callback(model.register_forward_pre_hook(self._note, with_kwargs=True).remove)
            yield

    def forget(self) -> None:
        """Let go of the inputs."""
        self.call = None

    def _note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # an evaluation between two micro-batches
            return
        self.call = ModelCall(model, args, kwargs)
        if (look := self._look) is not None:
            self._look = None
            look(self.call)


def _inside_ddp(model: Any) -> nn.Module | None:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
