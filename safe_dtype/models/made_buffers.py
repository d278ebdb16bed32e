"""The numbers that transformers makes on loading and never saves, made once more in another dtype.

The scale of Gemma's embeddings is a float in the config. Loaded in bfloat16 it is 5.65625, in float32 5.65685. So it is not
cast, as a weight is; it is made as `from_pretrained` makes it: by `_init_weights` of the model, on a twin of the module that
holds it.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_MADE = "_safe_dtype_made_at_version"


def made_anew(model: nn.Module, name: str, dtype: torch.dtype) -> Tensor | None:
    """Return a buffer as loading in `dtype` would make it, on the CPU.

    Args:
        model: Which stays as it is.
        name: Of a buffer that is not saved, and is floating.
        dtype: A floating one.

    Returns:
        None where nothing makes it, or where in its present dtype it would not be what it is now, bit for bit: somebody
        has changed it since.
    """
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    present = module._buffers[own]
    if present is None or present.is_meta or own not in module._non_persistent_buffers_set:
        return None
    # What is made of a module's children would write to theirs; a dropout has nothing that could be written to.
    if any(any(True for _ in chain(child.parameters(), child.buffers())) for child in module.children()):
        return None
    owner = _owner(model, path)
    if owner is None:
        return None
    made = _made(owner, module, own, present, dtype)
    if made is None or made.isnan().any():
        return None
    if torch.equal(made.to(present.dtype), present.cpu()):
        return made
    # Between two 16-bit dtypes a number is rounded twice: it is made in the present one, too, to be compared.
    as_it_was = _made(owner, module, own, present, present.dtype)
    return made if as_it_was is not None and torch.equal(as_it_was, present.cpu()) else None


def note_made(buffer: Tensor) -> None:
    """Note that a buffer has the numbers of `made_anew` from now on."""
    if not buffer.is_inference():
        setattr(buffer, _MADE, buffer._version)


def is_as_made(buffer: Tensor, before: Tensor) -> bool:
    """Whether nobody has written into a buffer since it was made anew in the place of `before`, whose numbers it has."""
    is_untouched = not buffer.is_inference() and getattr(buffer, _MADE, None) == buffer._version
    return is_untouched and buffer.shape == before.shape and torch.equal(buffer.to(before), before)


def _owner(model: nn.Module, path: str) -> PreTrainedModel | None:
    """Return the innermost model of transformers around a module: it knows how to make what is in it."""
    names = path.split(".") if path else []
    for end in range(len(names), -1, -1):
        around = model.get_submodule(".".join(names[:end]))
        if isinstance(around, PreTrainedModel):
            return around
    return None


def _made(owner: PreTrainedModel, module: nn.Module, own: str, present: Tensor, dtype: torch.dtype) -> Tensor | None:
    twin: Any = type(module).__new__(type(module))
    twin.__dict__.update(module.__dict__)
    made = torch.full(present.shape, torch.nan, dtype=dtype)
    others = {name: None if buffer is None else buffer.to("meta") for name, buffer in module._buffers.items()}
    twin.__dict__["_buffers"] = {**others, own: made}
    twin.__dict__["_parameters"] = {
        name: None if weight is None else nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        for name, weight in module._parameters.items()
    }
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            owner._init_weights(twin)
    except Exception as exc:  # noqa: BLE001  (of any class of transformers or of remote code: the buffer is cast then)
        logger.debug("%s of %s is not made anew: %s", own, type(module).__name__, exc)
        return None
    buffer = twin._buffers[own]
    return buffer if isinstance(buffer, Tensor) and buffer.shape == present.shape and buffer.dtype == dtype else None
