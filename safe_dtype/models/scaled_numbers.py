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
        del exponents[name]
    if not exponents:
        del module.__dict__[_ATTRIBUTE]


def exponent_of(module: nn.Module, name: str) -> int:
    """Return the power of two that the float `name` of `module` is multiplied by now."""
    exponents = module.__dict__.get(_ATTRIBUTE)
    return exponents.get(name, 0) if exponents else 0
