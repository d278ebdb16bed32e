"""What stands for the result of an operation that failed: NaN of the shape, dtype and device that it would have had."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class CannotPoison(Exception):  # noqa: N818  (no error: an answer, with its reason)
    """Nothing can stand for what the operation would have given."""


def poisoned_values(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what stands for `func(*args, **kwargs)`, an operation of torch that has raised.

    Floating numbers are NaN, and integers beside them 0, which is a valid index and count. What the operation would
    have written into (in place, `out=`) is NaN from now on. Random numbers are not drawn: what runs again begins with
    the random state of before.

    Raises:
        CannotPoison: If there is no floating number among the results (a token, a mask, a condition: ranks would go
            different ways), if the result would be a view, or if its shape cannot be told without the numbers.
    """
    schema = func._schema
    if any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns):
        raise CannotPoison("a view cannot be made of other numbers")
    written = list(_written(schema, args, kwargs))
    shapes = _shapes_of(func, args, kwargs)
    if not any(isinstance(value, Tensor) and _holds_nan(value) for value in (*tree_leaves(shapes), *written)):
        raise CannotPoison("there is no floating number among its results, and ranks would go different ways")
    results = shapes if len(schema.returns) > 1 else (shapes,) * len(schema.returns)
    values = tuple(
        tree_map(_poisoned, shape)
        if value.alias_info is None
        else _written_under(value.alias_info, schema, args, kwargs)
        for value, shape in zip(schema.returns, results, strict=True)
    )
    for tensor in written:
        if _holds_nan(tensor):  # integers that were there are valid as they are
            _fill(tensor, math.nan)
    return values if len(values) > 1 else next(iter(values), None)


def _arguments(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield what the operation declares of each argument that was passed, and the argument."""
    for place, argument in enumerate(schema.arguments):
        if place < len(args) and not argument.kwarg_only:
            yield argument, args[place]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _written(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for argument, value in _arguments(schema, args, kwargs):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _written_under(alias: Any, schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the argument that a result is the same tensor as."""
    for argument, value in _arguments(schema, args, kwargs):
        if argument.alias_info is not None and argument.alias_info.before_set & alias.before_set:
            return value
    raise CannotPoison("its result is part of an argument that was not passed")


def _shapes_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what the operation would give, as fake tensors, which have a shape and a device and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes half a second, where nothing has failed as well

    fake = FakeTensorMode(allow_fallback_kernels=False)
    try:
        with fake:
            fakes, fake_kwargs = tree_map(_like, args), tree_map(_like, dict(kwargs))
            before = [tensor.shape for tensor in _written(func._schema, fakes, fake_kwargs)]
            shapes = func(*fakes, **fake_kwargs)
            after = [tensor.shape for tensor in _written(func._schema, fakes, fake_kwargs)]
    except Exception as exc:  # whatever it is: the shape is not known then
        raise CannotPoison("the shape of its result is not known without running it") from exc
    if before != after:
        raise CannotPoison("it would have changed the shape of what it writes into")
    return shapes


def _like(value: Any) -> Any:
    """Return a tensor of the fake mode that is on, of the same kind; no generator: nothing is drawn."""
    if isinstance(value, torch.Generator):
        return None
    if not isinstance(value, Tensor):
        return value
    if value.layout != torch.strided or value.is_quantized:
        raise CannotPoison("it works on tensors of another layout")
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _holds_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _fill(tensor: Tensor, number: float) -> None:
    try:
        tensor.fill_(number)
    except RuntimeError as exc:
        raise CannotPoison(f"{tensor.dtype} takes no NaN") from exc


def _poisoned(shape: Any) -> Any:
    """Return NaN in place of a fake tensor, and anything else as it is: sizes, and what was not asked for."""
    if not isinstance(shape, Tensor):
        return shape
    if shape.layout != torch.strided:
        raise CannotPoison("its result has another layout")
    value = torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype, device=shape.device)
    _fill(value, math.nan if _holds_nan(value) else 0)
    return value
