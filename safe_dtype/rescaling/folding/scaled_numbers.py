"""Floats that modules keep as attributes (an eps, say), multiplied by powers of two, and by which."""

from __future__ import annotations

from typing import Any

from torch import nn

_ATTRIBUTE = "_safe_dtype_exponents"  # in the __dict__ of a module: by the name of the attribute


def scale_number(module: nn.Module, name: str, exponent: int) -> None:
    """Multiply the float `name` of `module` by 2 ** exponent, and remember that."""
    owner: Any = module
    setattr(owner, name, getattr(owner, name) * 2.0**exponent)
    exponents = module.__dict__.setdefault(_ATTRIBUTE, {})
    exponents[name] = exponents.get(name, 0) + exponent
    if not exponents[name]:
        forget_exponent(module, name)


def forget_exponent(module: nn.Module, name: str) -> None:
    """Take the float `name` of `module` for one that nothing has multiplied."""
    exponents = module.__dict__.get(_ATTRIBUTE, {})
    exponents.pop(name, None)
    if not exponents:
        module.__dict__.pop(_ATTRIBUTE, None)


def scale_back(state: dict[str, Any]) -> None:
    """Undo it in `state`, the copied `__dict__` of a module."""
    for name, exponent in state.pop(_ATTRIBUTE, {}).items():
        state[name] *= 2.0**-exponent


def exponent_of(module: nn.Module, name: str) -> int:
    """Return the power of two that the float `name` of `module` is multiplied by now."""
    exponents = module.__dict__.get(_ATTRIBUTE)
    return exponents.get(name, 0) if exponents else 0
