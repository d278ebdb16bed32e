"""What ranks call a model, so that they speak of the same one; and whether a rank holds all of it."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from ..guarding.shared_steps import PARTS

_WRAPPERS = frozenset({"DistributedDataParallel", "DeepSpeedEngine", "OptimizedModule"})


def model_key(model: nn.Module) -> str:
    """Return the class of a model and a digest of the names and shapes of its parameters: the same on all ranks.

    Dtypes, values and devices are not in it, and of a parameter that is spread over ranks it is the shape of the whole. It
    walks over all parameters once.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        shape: Any = getattr(parameter, "ds_shape", parameter.shape)
        digest.update(f"{name} {tuple(shape)}\n".encode())
    return f"{class_of(model).__name__} {digest.hexdigest()[:16]}"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of DDP, DeepSpeed's engine and `torch.compile`."""
    while type(model).__name__ in _WRAPPERS:
        inner = next(
            (inner for name in ("module", "_orig_mod") if (inner := getattr(model, name, None)) is not None), None
        )
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def is_whole(model: nn.Module) -> bool:
    """Whether this process holds all of every parameter: tensor parallel, FSDP and ZeRO-3 spread them over ranks."""
    return not any(hasattr(parameter, name) for parameter in model.parameters() for name in PARTS)


def class_of(model: nn.Module) -> type:
    """Return the class of a model: FSDP2 puts another one in its place, derived from `FSDPModule` and from that."""
    bases = type(model).__bases__
    is_replaced = len(bases) == 2 and bases[0].__name__ == "FSDPModule"
    return bases[1] if is_replaced else type(model)
