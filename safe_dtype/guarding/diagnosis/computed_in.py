"""In which 16-bit dtypes, and on which devices, was computed where an exception was raised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...facts import COMPUTE, FLOAT32, Dtype

Place = tuple[Dtype, str]  # a 16-bit dtype, and torch's name of the device that computed in it

_SIXTEEN_BITS = {getattr(torch, dtype.name): dtype for dtype in COMPUTE if dtype != FLOAT32}


def places_of(exception: BaseException) -> set[Place]:
    """Return the 16-bit dtypes that were computed in where `exception` was raised, each with its device.

    They are those of tensors and modules that its frames hold, and of an autocast around them.
    """
    places = set()
    traceback = exception.__traceback__
    while traceback is not None:
        for value in traceback.tb_frame.f_locals.values():
            for dtype, device in _computed_in(value):
                if dtype in _SIXTEEN_BITS:
                    places.add((_SIXTEEN_BITS[dtype], device))
        traceback = traceback.tb_next
    return places


def _computed_in(value: Any) -> Iterator[tuple[torch.dtype, str]]:
    if isinstance(value, torch.nn.Module):
        value = next(value.parameters(recurse=False), None)
    if isinstance(value, torch.Tensor):
        yield value.dtype, str(value.device)
    elif isinstance(value, torch.autocast):
        yield value.fast_dtype, value.device
