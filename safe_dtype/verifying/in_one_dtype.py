"""A model whose quantizer has left it: all of its weights in the dtype that was asked for."""

from __future__ import annotations

import re
from typing import Any

import torch

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def in_one_dtype(model: Any, dtype: torch.dtype) -> bool:
    """Bring the weights of a dequantized model into `dtype`; return whether it is one.

    Transformers dequantizes float8 weights to the dtype asked for, and leaves what is beside them in the dtype of its
    file: a model of two dtypes, whose first product fails, and that is saved in float8 without a word of that in its
    config. Where the quantizer is still there its rules are its own, and nothing is changed. What the class keeps in
    float32 stays there.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return False
    exceptions: dict[str, torch.dtype] = getattr(model, "_get_dtype_plan", lambda _: {})(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dtype not in _FLOATS or parameter.dtype == dtype or parameter.is_meta:
                continue
            wanted = next((exceptions[pattern] for pattern in exceptions if re.search(pattern, name)), dtype)
            parameter.data = parameter.data.to(wanted)
    model._weight_conversions = None  # with its quantizer's: without them it is saved as a model of its class
    return True
