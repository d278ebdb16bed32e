"""Numbers that modules keep (an eps, the scale of an embedding), multiplied by powers of two, and by which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_ATTRIBUTE = "_safe_dtype_exponents"  # in the __dict__ of a module: by the name of the number


def numbers_of(module: nn.Module) -> Iterator[str]:
    """Yield the names of the numbers that `module` keeps: floats, and buffers of one number that are not saved."""
    yield from (name for name, value in vars(module).items() if isinstance(value, float))
    unsaved = module._non_persistent_buffers_set
    yield from (name for name, value in module._buffers.items() if name in unsaved and _is_one_number(value))


def is_number_of(module: nn.Module, name: str) -> bool:
    """Whether `name` is one of the numbers that `module` keeps."""
    return name in numbers_of(module)


def scale_number(module: nn.Module, name: str, exponent: int) -> None:
    """Multiply the number `name` of `module` by 2 ** exponent, and remember that."""
    setattr(module, name, multiplied_number(getattr(module, name), exponent))
    exponents = module.__dict__.setdefault(_ATTRIBUTE, {})
    exponents[name] = exponents.get(name, 0) + exponent
    if not exponents[name]:
        forget_exponent(module, name)


def multiplied_number(value: Any, exponent: int) -> Any:
    """Return a number times 2 ** exponent; a buffer of integers becomes one of float32."""
    is_whole = isinstance(value, Tensor) and not value.is_floating_point()
    return (value.float() if is_whole else value) * 2.0**exponent


def forget_exponent(module: nn.Module, name: str) -> None:
    """Take the number `name` of `module` for one that nothing has multiplied."""
    exponents = module.__dict__.get(_ATTRIBUTE, {})
    exponents.pop(name, None)
    if not exponents:
        module.__dict__.pop(_ATTRIBUTE, None)


def scale_back(state: dict[str, Any]) -> None:
    """Undo it in `state`, the copied `__dict__` of a module."""
    for name, exponent in state.pop(_ATTRIBUTE, {}).items():
        table = state if name in state else state["_buffers"]
        table[name] = multiplied_number(table[name], -exponent)


def exponent_of(module: nn.Module, name: str) -> int:
    """Return the power of two that the number `name` of `module` is multiplied by now."""
    exponents = module.__dict__.get(_ATTRIBUTE)
    return exponents.get(name, 0) if exponents else 0


def _is_one_number(value: Any) -> bool:
    is_real = isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()
    return is_real and value.element_size() > 1  # neither a switch nor a code
