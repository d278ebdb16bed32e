"""Change the dtype of a loaded model in place: parameter by parameter, ties, hooks, buffers and lists intact.

`model.to(dtype)` is wrong here: it casts what must stay float32 (`_keep_in_fp32_modules`, `inv_freq`) for good, and it
refuses models that are offloaded or quantized.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors.of_the_moment import is_of_memory
from ..numerics import as_half
from ..numerics.packed_weights import holds_codes
from . import offloaded
from .forwards.blocked_forward import weight_of
from .made_buffers import made_anew, note_made
from .quantized.coded_tensors import codes_in, shows_a_dtype
from .shift_hooks import norms_in_float32, shifted_modules
from .undo_log import UndoLog, keeps_all, way_back

# Tried: beside their codes plain parameters may change dtype. quanto's products come out in the dtype of its scales.
_CODES_STAY = ("bitsandbytes", "torchao")


@dataclass(frozen=True, slots=True)
class Recast:
    """What a change of dtype did."""

    tensors: int  # how many parameters, buffers and offloaded weights changed their dtype
    grown_bytes: int  # over all devices; negative where the new dtype is smaller


def main_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of most of the model's floating numbers; None where it has none."""
    numbers: Counter[torch.dtype] = Counter()
    quantized = _is_quantized(model)
    for parameter in model.parameters():
        # The dtype that a quantizer's own class shows is that of its scales.
        if (
            parameter.is_floating_point()
            and parameter.dtype.itemsize > 1
            and (type(parameter) is nn.Parameter or not quantized)
        ):
            numbers[parameter.dtype] += parameter.numel()
    return numbers.most_common(1)[0][0] if numbers else None


def refusal(model: nn.Module) -> str | None:
    """Return why the weights of `model` cannot change dtype at all; None where they can."""
    for module in model.modules():
        quantizer = getattr(module, "hf_quantizer", None)
        if quantizer is None:
            continue
        method = getattr(quantizer.quantization_config, "quant_method", "unknown")
        method = getattr(method, "value", method)  # an enum, for the methods that transformers knows
        if method not in _CODES_STAY and any(holds_codes(part) for part in module.modules()):
            return f"its weights are quantized with {method}, whose kernels fix the dtype beside the codes"
    return None


def growth(model: nn.Module, former: Collection[torch.dtype], new: torch.dtype) -> dict[torch.device, int]:
    """Return how many bytes each device needs more for `model` in `new`; what lies on disk counts nothing."""
    needed: Counter[torch.device] = Counter()
    in_files = _in_files_alone(model)
    for _, tensor in (*_parameters(model, former, new), *_buffers(model, former)):
        if tensor.device.type != "meta":
            old = 0 if id(tensor) in in_files else tensor.dtype.itemsize
            needed[tensor.device] += tensor.numel() * (new.itemsize - old)
    for tensor in offloaded.tensors(model):
        if tensor.dtype in former:
            needed[tensor.device] += tensor.numel() * (new.itemsize - tensor.dtype.itemsize)
    return dict(needed)


def peak_growth(model: nn.Module, former: Collection[torch.dtype], new: torch.dtype) -> dict[torch.device, int]:
    """Return how many bytes more each device needs at most while `recast` brings `model` into `new`, weight by weight.

    Beside what has grown already that is the new weight, while the old one is still there, and the comparison of the two
    for the way back. Old weights that the cast rounds are kept for it in main memory.
    """
    grown: Counter[torch.device] = Counter()
    peaks: Counter[torch.device] = Counter()
    in_files = _in_files_alone(model)
    for tensor in (
        *(one for _, one in (*_parameters(model, former, new), *_buffers(model, former))),
        *offloaded.tensors(model),
    ):
        if tensor.device.type == "meta" or tensor.dtype not in former:
            continue
        old = tensor.dtype.itemsize
        meanwhile = tensor.numel() * (new.itemsize + old + 1)
        peaks[tensor.device] = max(peaks[tensor.device], grown[tensor.device] + meanwhile)
        grown[tensor.device] += tensor.numel() * (new.itemsize - (0 if id(tensor) in in_files else old))
        if keeps_all(tensor.dtype, new):
            grown[torch.device("cpu")] += tensor.numel() * old
    return dict(peaks | grown)  # the larger of both


def _in_files_alone(model: nn.Module) -> set[int]:
    """Return the id() of the weights whose memory was given back: another layout of them is multiplied."""
    return {id(module.weight) for module in model.modules() if weight_of(module) is not None}


def recast(
    model: nn.Module,
    former: Collection[torch.dtype],
    new: torch.dtype,
    *,
    original: Callable[[str, torch.Tensor], torch.Tensor | None] | None = None,
    without: Collection[int] = (),
    log: UndoLog | None = None,
) -> Recast:
    """Bring every floating tensor of `model` that is in a dtype of `former` into `new`.

    Args:
        model: Changed in place. Parameters stay the same objects, so ties, hooks and optimizers keep theirs.
        former: The dtypes to leave.
        new: The dtype to go to. In 16 bit, what the class keeps in float32 goes to float32 instead.
        original: Returns what to cast instead of a tensor of this name and these values, which lost bits when it was
            loaded; None where it is cast as it is.
        without: The id() of parameters that stay as they are.
        log: Where to note the way back, bit for bit.
    """
    log = log if log is not None else UndoLog.forgetful()
    in_float32 = kept_in_float32(model, new)
    original = original or _as_it_is
    count = grown = 0
    with torch.inference_mode(mode=False), torch.no_grad():
        for name, parameter in (*_parameters(model, former, new), *_buffers(model, former)):
            if id(parameter) in without:
                continue
            wanted = torch.float32 if in_float32(name) else new
            before = parameter.numel() * parameter.dtype.itemsize
            stored, made = original(name, parameter.data), None
            if stored is None and not isinstance(parameter, nn.Parameter):
                stored = made = made_anew(model, name, wanted)
            values = parameter.data if stored is None else stored.to(parameter.device)
            # Values of the one kind in a parameter of the other: nothing can multiply by it any more.
            with torch.inference_mode(parameter.is_inference()):
                tensor = _in(wanted, values)
                tensor = tensor if tensor.is_inference() == parameter.is_inference() else tensor.clone()
                _note_replacing(log, parameter, tensor)
                _replace(parameter, tensor)
            if made is not None:
                note_made(parameter)
            count += 1
            grown += parameter.numel() * parameter.dtype.itemsize - before if parameter.device.type != "meta" else 0
        _recast_codes(model, former, new, log)
        count += _recast_attributes(model, former, new, log)
        moved, bytes_more = offloaded.recast(model, former, new, in_float32, original, log)
    for _, _, shift in shifted_modules(model):
        _note_attribute(log, shift, "outside")
        shift.outside_is_now(new)
    _tell_configs(model, former, new, log)
    torch.clear_autocast_cache()
    return Recast(count + moved, grown + bytes_more)


def left_over(
    model: nn.Module, former: Collection[torch.dtype], new: torch.dtype, *, without: Collection[int] = ()
) -> int:
    """Return how many parameters should be in `new` and are not; those whose id() is in `without` do not count."""
    in_float32 = kept_in_float32(model, new)
    return sum(
        parameter.dtype != (torch.float32 if in_float32(name) else new) and id(parameter) not in without
        for name, parameter in _parameters(model, former, new)
    )


def may_change(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be cast for a moment, whatever model it is of: a quantizer's own parameters cannot."""
    return not isinstance(tensor, nn.Parameter) or type(tensor) is nn.Parameter or hasattr(tensor, "_local_tensor")


def _is_quantized(model: nn.Module) -> bool:
    return any(getattr(module, "hf_quantizer", None) is not None for module in model.modules())


def _parameters(
    model: nn.Module, former: Collection[torch.dtype], new: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    quantized = _is_quantized(model)
    for name, parameter in model.named_parameters():
        # Beside codes only plain parameters change: a quantizer's own classes carry what their kernels expect.
        if parameter.dtype in former and parameter.dtype != new and (type(parameter) is nn.Parameter or not quantized):
            yield name, parameter


def _buffers(model: nn.Module, former: Collection[torch.dtype]) -> Iterator[tuple[str, torch.Tensor]]:
    # Buffers that stayed float32 in a 16-bit model (inv_freq) are in no dtype of `former`, and stay. Where float32
    # itself is left, those that are not saved stay: transformers computes them anew, in float32.
    for prefix, module in model.named_modules():
        unsaved = module._non_persistent_buffers_set if torch.float32 in former else ()
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in former and name not in unsaved:
                yield f"{prefix}.{name}".lstrip("."), buffer


def _as_it_is(_name: str, _tensor: torch.Tensor) -> None:
    """Cast every tensor as it is."""


def _in(wanted: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
    # torch converts bfloat16 to float16 number by number.
    quicker = wanted == torch.float16 and tensor.dtype == torch.bfloat16 and type(tensor) is torch.Tensor
    return as_half(tensor) if quicker and tensor.device.type == "cpu" else tensor.to(wanted)


def _replace(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
    if type(parameter.data) is not torch.Tensor:
        # `p.data =` on a DTensor reports the new dtype, and its local part keeps the old one.
        torch.utils.swap_tensors(parameter, nn.Parameter(tensor, parameter.requires_grad))  # type: ignore[no-untyped-call]
        return
    gradient, parameter.grad = parameter.grad, None
    parameter.data = tensor
    if gradient is not None:
        parameter.grad = gradient.to(tensor.dtype)


def _note_replacing(log: UndoLog, parameter: torch.Tensor, changed: torch.Tensor) -> None:
    if log.forgets:
        return
    back = way_back(parameter.data, changed)

    def undo() -> None:
        with torch.inference_mode(mode=parameter.is_inference()), torch.no_grad():
            try:
                _replace(parameter, back(parameter.data))
            except RuntimeError as exc:
                if not is_of_memory(exc) or parameter.device.type == "cpu":
                    raise
                _replace_by_way_of_the_host(parameter, back)

    log.add(undo, parameter.device)


def _recast_codes(model: nn.Module, former: Collection[torch.dtype], new: torch.dtype, log: UndoLog) -> None:
    """Have the codes beside the weights multiply in the dtype that those have now: other parameters, of the same codes."""
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the former one too, whose id() is not to be given again
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not shows_a_dtype(parameter) or parameter.dtype not in set(former) - {new}:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = parameter, nn.Parameter(codes_in(parameter, former, new), requires_grad=False)
            log.add(functools.partial(module._parameters.__setitem__, name, parameter), parameter.device)
            module._parameters[name] = made[id(parameter)][1]


def _replace_by_way_of_the_host(parameter: torch.Tensor, back: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Bring a parameter back on a device that has no room for the old tensor beside the new one."""
    device, values = parameter.device, parameter.data.to("cpu")
    parameter.data = torch.empty(0, dtype=values.dtype, device=device)  # its room is that of the old one
    parameter.data = back(values).to(device)


def _note_attribute(log: UndoLog, owner: Any, name: str) -> None:
    before = getattr(owner, name)
    log.add(lambda: setattr(owner, name, before))


def _recast_attributes(model: nn.Module, former: Collection[torch.dtype], new: torch.dtype, log: UndoLog) -> int:
    """Cast the plain tensors that modules keep as attributes, and the compute dtype of quantized layers."""
    count = 0
    module: Any
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, torch.Tensor) and value.dtype in former:
                log.add(functools.partial(module.__dict__.__setitem__, name, value))
                module.__dict__[name] = value.to(new)
                count += 1
        if getattr(module, "compute_dtype", None) in former:
            _note_attribute(log, module, "compute_dtype")
            module.compute_dtype = new
            count += 1
    return count


def _tell_configs(model: nn.Module, former: Collection[torch.dtype], new: torch.dtype, log: UndoLog) -> None:
    """Set `dtype` in every config, sub-configs too: attention, masks and paged caches read it there."""
    waiting = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    seen: set[int] = set()
    while waiting:
        config = waiting.pop()
        if id(config) in seen or isinstance(config, dict):
            continue
        seen.add(id(config))
        if getattr(config, "dtype", None) in former:
            _note_attribute(log, config, "dtype")
            config.dtype = new
        waiting += [sub for name in getattr(config, "sub_configs", ()) if (sub := getattr(config, name, None))]


def kept_in_float32(model: nn.Module, new: torch.dtype) -> Any:
    """Return a test on names: is this one kept in float32 when the model is in `new`? As transformers would load it."""
    patterns: set[str] = set()
    module: Any
    for module in model.modules():
        if hasattr(module, "_get_dtype_plan"):
            patterns.update(module._get_dtype_plan(new))
    shifted = set(norms_in_float32(model)) if new != torch.float32 else set()
    if not patterns:
        return shifted.__contains__
    # Searched without anchors, as transformers 5 does on loading.
    pattern = re.compile("|".join(pattern.replace("*", ".*") for pattern in sorted(patterns)))
    return lambda name: name in shifted or pattern.search(name) is not None
