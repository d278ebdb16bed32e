"""A model's outputs as a plain dict of tensors, which every form can return without transformers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def outputs_of(answer: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of what a model returned, in its order, by dotted name, each in its dtype: ids and masks, too.

    A tensor alone is called "output"; items of tuples are numbered. Caches, complex numbers, what is no tensor, and None
    are left out.

    Raises:
        TypeError: If there is no tensor in it.
    """
    outputs = dict(_leaves("", answer))
    if not outputs:
        raise TypeError(f"The model returned {type(answer).__name__} without a tensor: nothing to compare.")
    return outputs


@contextmanager
def flat_outputs(model: torch.nn.Module) -> Iterator[None]:
    """Let `model` return what `outputs_of` makes of its answer, until the block ends."""
    forward = model.forward
    own = "forward" in vars(model)

    @functools.wraps(forward)
    def flattened(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return outputs_of(forward(*args, **kwargs))

    model.forward = flattened
    try:
        yield
    finally:
        if own:
            model.forward = forward
        else:
            # transformers' exporters put an attribute back where there was none: it would shadow the class's method.
            vars(model).pop("forward", None)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if not value.is_complex():
            yield name or "output", value
    elif isinstance(value, Mapping):  # ModelOutput is one, and holds no None
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(f"{name}.{number}" if name else str(number), item)
