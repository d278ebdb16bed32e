"""Look at the numbers that a step returns, before anybody uses them."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import nn

from ..errors.of_the_moment import is_of_the_moment
from ..models.blocks import block_names
from ..numerics.followed import is_followed
from ..verifying.result_fields import Named, is_looked_at, results_of
from .deferred.judged_later import is_put_off
from .passing_hooks import hooked

# -Inf is legal in scores, where it rules classes out, and in what has no name; a box or a depth of -Inf is an overflow.
_RULED_OUT = ("logit", "score", "prob", "mask", "bias")
# Clamped values lie at the end of float16 or 1000 below it (64504 is rounded to 64512).
_PINNED = 64504.0
_TENSOR, _is_finite = torch.Tensor, math.isfinite
_largest, _total = torch.max, torch.sum  # quicker than the methods, and than amax

Peaks = Sequence[tuple[nn.Module, torch.Tensor, torch.Tensor]]  # a watched block, its smallest and its largest value


class Soundness(Enum):
    """What the numbers in an output are worth."""

    SOUND = "numbers"
    PADDING = "numbers, but for rows that attention_mask hides"
    SPOILED = "NaN or Inf where there should be numbers"
    UNREAD = "nobody knows yet: the loop around the step reads later"


SOUND, _SPOILED = Soundness.SOUND, Soundness.SPOILED  # asking the class takes longer than a look at a number


def is_sound(output: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the results in `output` are numbers, see `soundness`."""
    return soundness(output, kwargs) is not _SPOILED


def soundness(output: Any, kwargs: Mapping[str, Any]) -> Soundness:
    """Tell whether all floating results in `output` are numbers: no NaN, no +Inf, and no row of nothing but -Inf.

    -Inf alone is legal in scores, as in a mask over the vocabulary, and in tensors without a name; not in boxes, depths
    or hidden states. Costs one reduction for each tensor of results, and one read of a device's memory for all of them;
    in a step that is judged later neither, see `spoiled_flag`.
    `kwargs` are the keyword arguments of the call: what its `attention_mask` hides does not count.
    """
    named = results_of(output)
    if len(named) == 1:  # as at nearly every step
        name, tensor = named[0]
        if _is_finite_at_once(name, tensor):
            return SOUND
    results = _looked_at(named, output, kwargs)
    if is_put_off():
        return Soundness.UNREAD
    if all(_read([_soundness_flag(name, tensor) for name, tensor in results])):
        return SOUND
    spoiled = spoiled_rows(results)
    mask = _mask_of(kwargs)
    hidden = mask is not None and all(
        rows.shape == mask.shape and not bool(rows[mask.to(rows.device) != 0].any()) for rows in spoiled.values()
    )
    return Soundness.PADDING if hidden else _SPOILED


def numbers_of(output: Any) -> Named:
    """Return the results in `output` by name, as real numbers that can be looked at."""
    return _numbers_in(results_of(output))


def spoiled_flag(output: Any, kwargs: Mapping[str, Any], peaks: Peaks) -> torch.Tensor:
    """Return whether anything in `output` is no number, or a peak pinned: a bool without dimensions, on the device.

    Nothing is read. -Inf alone and what the `attention_mask` in `kwargs` hides do not count, as in `soundness`.
    """
    mask = _mask_of(kwargs)
    # What is finite is zero less itself, NaN and Inf are NaN; on every backend NaN alone differs from itself.
    flag: torch.Tensor | None = None
    for name, tensor in _looked_at(results_of(output), output, kwargs):
        largest = tensor.amax(-1) if _ruled_out[name] and tensor.dim() > 1 else _soundness_flag(name, tensor)
        if mask is not None and mask.shape == largest.shape and mask.device == largest.device:  # a prompt, not a token
            largest = largest.masked_fill(mask == 0, 0)
        least = largest - largest if largest.numel() == 1 else (largest - largest).sum()
        flag = least if flag is None else flag + least.to(flag.device, flag.dtype, non_blocking=True)
    spoiled = None if flag is None else flag.ne(flag).reshape(())
    if peaks:
        pinned = ~(_peaks_together(peaks).amax() < _PINNED)
        spoiled = pinned if spoiled is None else spoiled | pinned.to(spoiled.device, non_blocking=True)
    return torch.zeros((), dtype=torch.bool) if spoiled is None else spoiled


def _looked_at(named: Named, output: Any, kwargs: Mapping[str, Any]) -> Named:
    results = _numbers_in(named)
    if "labels" in kwargs and isinstance(output, tuple):
        return [(name, tensor) for name, tensor in results if tensor.dim()]  # the loss has no name there
    return results


def _numbers_in(named: Named) -> Named:
    results = []
    for name, tensor in named:
        if is_looked_at(tensor) and not _is_captured(tensor):
            real = tensor.detach() if tensor.requires_grad else tensor
            results.append((name, torch.view_as_real(real.resolve_conj()) if real.dtype.is_complex else real))
    return results


def spoiled_rows(results: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return by name which rows, along the last dimension, are no numbers: bool tensors of the shapes before it.

    Results without such a row are left out.
    """
    rows = {name: _row_is_spoiled(name, tensor) for name, tensor in results}
    return {name: spoiled for name, spoiled in rows.items() if bool(spoiled.any())}


def _mask_of(kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    decodes = any(kwargs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    mask = kwargs.get("decoder_attention_mask" if decodes else "attention_mask")
    return mask if isinstance(mask, torch.Tensor) else None


class _RuledOut(dict[str, bool]):
    """Whether -Inf is legal in a result, by each name that was asked for: at every step, where a call takes longer."""

    def __missing__(self, name: str) -> bool:
        last = name.rpartition(".")[2]
        self[name] = legal = last == "output" or last.isdigit() or any(word in last for word in _RULED_OUT)
        return legal


_ruled_out = _RuledOut()


def _is_captured(tensor: torch.Tensor) -> bool:
    """Whether what is done with `tensor` goes into a CUDA graph: nothing can be read meanwhile."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _is_finite_at_once(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is sound, asked before whether it has numbers at all: to tell that takes longer."""
    if type(tensor) is not _TENSOR or (not tensor.is_cpu and (is_put_off() or _is_captured(tensor))):
        return False
    try:
        # Of finite numbers alone the sum is finite, unless it overflows, and it takes a quarter of the time of the largest.
        # On an accelerator to ask twice is to wait twice, and logits may hold -Inf.
        if tensor.is_cpu:
            total = _total(tensor, dtype=torch.float32) if tensor.dtype is torch.float16 else _total(tensor)
            if _is_finite(total.item()):
                return True
        return _is_finite(_soundness_flag(name, tensor).item())
    except (RuntimeError, TypeError) as exc:  # complex, nested, meta: it has no largest number
        if is_of_the_moment(exc):
            raise
        return False


def _soundness_flag(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of one element that is finite where all of `tensor` is sound. Nothing is read."""
    if not _ruled_out[name]:
        smallest, largest = tensor.aminmax()
        return torch.maximum(largest, -smallest)
    shape = tensor.shape
    if len(shape) < 2 or tensor.numel() == shape[-1]:
        return _largest(tensor)
    # The finite lie between -Inf and +Inf; a sum of finite numbers may overflow, a largest may not.
    smallest, largest = tensor.amax(-1).aminmax()
    return torch.maximum(largest, -smallest)


def _read(flags: list[torch.Tensor]) -> list[bool]:
    """Return which of `flags` are finite, reading once from each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for flag in flags:
        by_device.setdefault(flag.device, []).append(flag)
    return [_is_finite(value) for group in by_device.values() for value in torch.stack(_of_one_dtype(group)).tolist()]


def _of_one_dtype(flags: list[torch.Tensor]) -> list[torch.Tensor]:
    # float32 holds the ends of the 16-bit formats; what is finite in float64 need not be so in float32.
    wide = torch.float64 if any(flag.dtype == torch.float64 for flag in flags) else torch.float32
    return [flag.to(wide) for flag in flags]


def _row_is_spoiled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 0:
        return ~tensor.isfinite()
    return ~(tensor.amax(-1).isfinite() if _ruled_out[name] else tensor.isfinite().all(-1))


@contextmanager
def saturation_watch(blocks: list[nn.Module]) -> Iterator[Peaks]:
    """Collect, while `blocks` run in float16, the smallest and the largest value that each of them returns.

    32 architectures clamp their hidden states to the range of float16 and go on, finite and wrong (T5: 31 % off).
    """
    peaks: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def look(block: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(hidden, torch.Tensor) and hidden.dtype == torch.float16 and not is_followed():
            peaks.append((block, *hidden.detach().aminmax()))

    with hooked(blocks, after=look):
        yield peaks


def saturated(peaks: Peaks) -> nn.Module | None:
    """Return the first block whose values are pinned to the end of float16; None where none are. Reads once."""
    if not peaks:
        return None
    largest = _peaks_together(peaks)
    if largest.amax().item() < _PINNED:
        return None
    return next(block for (block, *_), peak in zip(peaks, largest.tolist(), strict=True) if not peak < _PINNED)


def _peaks_together(peaks: Peaks) -> torch.Tensor:
    where = peaks[0][1].device
    ends = [end.to(where, non_blocking=True) for _, *both in peaks for end in both]
    return torch.stack(ends).view(-1, 2).abs().amax(1)


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
