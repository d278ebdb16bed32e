"""Quantized tensors of torchao that show another dtype: the same codes, their scales cast."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

# How torchao's classes name what they are made of, in the order of their arguments (torchao/utils.py, TorchAOBaseTensor).
_TENSORS, _ATTRIBUTES = "tensor_data_names", "tensor_attribute_names"
_PARTS = (_TENSORS, _ATTRIBUTES, f"optional_{_TENSORS}", f"optional_{_ATTRIBUTES}")


def shows_a_dtype(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is codes of torchao in a class that tells in which dtype its products are to come out."""
    return hasattr(tensor, _TENSORS) and any("dtype" in getattr(tensor, names, ()) for names in _PARTS)


def scales_of(tensor: Any) -> list[torch.Tensor]:
    """Return the floating tensors beside the codes of one that `shows_a_dtype`; codes may be of float8, and are none of them."""
    names = (*getattr(tensor, _TENSORS), *getattr(tensor, f"optional_{_TENSORS}", ()))
    parts = (getattr(tensor, name) for name in names)
    return [one for one in parts if one is not None and one.is_floating_point() and one.dtype.itemsize > 1]


def codes_in(tensor: Any, former: Collection[torch.dtype], new: torch.dtype) -> torch.Tensor:
    """Return the codes of `tensor` as torchao would show them in `new`; its own `to` leaves the dtype as it is.

    Args:
        tensor: One that `shows_a_dtype`.
        former: The dtypes to leave; a scale in any other stays as it is.
        new: The dtype to show, and of those scales.
    """
    parts: list[Any] = []
    for kind in _PARTS:
        for name in getattr(tensor, kind, ()):
            part = getattr(tensor, name)
            if isinstance(part, torch.Tensor) and part.dtype in former:
                part = part.detach().to(new)
            parts.append(new if name == "dtype" else part)
    made: torch.Tensor = type(tensor)(*parts)
    return made
