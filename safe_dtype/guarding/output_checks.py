"""Look at the numbers that a step returns, before anybody uses them."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from ..models.blocks import block_names

# What is returned beside the results: of no use to the next step, or legally infinite (proposals outside an image).
_BESIDE = ("past_", "hidden_", "encoder_", "decoder_", "enc_", "init_", "intermediate_", "cross_", "attentions", "router_",
           "all_", "aux", "loss")  # fmt: skip
_RESULTS = ("logits", "last_hidden_state")  # where there is one of these, the rest follows from it
# Clamped values lie at the end of float16 or 1000 below it (64504 is rounded to 64512).
_PINNED = 64504.0

Peaks = list[tuple[nn.Module, torch.Tensor]]  # a clamping block, and its largest |value|


def is_sound(output: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the results in `output` are numbers: no NaN, no +Inf, and no row of nothing but -Inf.

    -Inf alone is legal, as in a mask over the vocabulary. Costs one reduction and one read of its result for each
    tensor of results. `kwargs` are the keyword arguments of the call: what its `attention_mask` hides does not count.
    """
    if isinstance(output, torch.Tensor):
        return _tensor_is_sound(output, kwargs)
    for name in _RESULTS:
        tensor = getattr(output, name, None)
        if isinstance(tensor, torch.Tensor):
            return _tensor_is_sound(tensor, kwargs)
    return all(_tensor_is_sound(tensor, kwargs) for tensor in _results(output))


def _results(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, Mapping):
        yield from _tensors(value for name, value in output.items() if not str(name).startswith(_BESIDE))
    elif isinstance(output, (tuple, list)):
        yield from _tensors(output)
        yield from (tensor for value in output if isinstance(value, (tuple, list)) for tensor in _tensors(value))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor))


def _tensor_is_sound(tensor: torch.Tensor, kwargs: Mapping[str, Any]) -> bool:
    # A subclass (fake, functional, distributed) or a meta tensor has no numbers to look at.
    if type(tensor) is not torch.Tensor or not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dim() < 2 or tensor.numel() == tensor.shape[-1]:
        return math.isfinite(tensor.max().item())  # quicker than amax
    largest = tensor.amax(-1)
    # The finite lie between -Inf and +Inf; a sum of finite numbers may overflow, a largest may not.
    if torch.isfinite(largest).all().item():
        return True
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.shape == largest.shape:
        # Padding may be anything: a row of a mask that hides everything is NaN in some kernels.
        return bool(torch.isfinite(largest[mask.to(largest.device) != 0]).all().item())
    return False


@contextmanager
def saturation_watch(blocks: list[nn.Module]) -> Iterator[Peaks]:
    """Collect, while `blocks` run in float16, the largest |value| that each of them returns.

    32 architectures clamp their hidden states to the range of float16 and go on, finite and wrong (T5: 31 % off).
    """
    peaks: Peaks = []

    def look(block: nn.Module, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(hidden, torch.Tensor) and hidden.dtype == torch.float16:
            peaks.append((block, hidden.detach().abs().amax()))

    handles = [block.register_forward_hook(look) for block in blocks]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def saturated(peaks: Peaks) -> nn.Module | None:
    """Return the first block whose values are pinned to the end of float16; None where none are. Reads once."""
    if not peaks:
        return None
    largest = torch.stack([peak.to(peaks[0][1].device) for _, peak in peaks])
    if largest.amax().item() < _PINNED:
        return None
    return next(block for (block, _), peak in zip(peaks, largest.tolist(), strict=True) if not peak < _PINNED)


def watched_blocks(model: nn.Module, was_wider: bool) -> list[nn.Module]:  # noqa: FBT001  (one question, asked once)
    """Return the blocks whose values are looked at in float16.

    Finite logits are not enough: a tanh, a clamp or the variance of a norm may swallow an infinity on the way. Where the
    model was made in a wider range, that is looked for in every block; in others only where one clamps.
    """
    clamping = clamping_blocks(model)
    if not was_wider:
        return clamping
    return [module for name in block_names(model) if (module := model.get_submodule(name)) not in clamping] + clamping


def clamping_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of `model` that clamp their hidden states in float16."""
    classes: set[Any] = {type(module) for module in model.modules()}
    clamping = {module_class for module_class in classes if _clamps(module_class)}
    return [module for module in model.modules() if type(module) in clamping]


@cache
def _clamps(module_class: Any) -> bool:
    # Read from the source, so that an architecture that is new or remote is found as well.
    if not sys.modules.get(module_class.__module__) or module_class.__module__.startswith("torch."):
        return False
    try:
        source = inspect.getsource(module_class.forward)
    except (OSError, TypeError):
        return False
    return "torch.clamp(" in source and ("finfo" in source or "clamp_value" in source) and "float16" in source
