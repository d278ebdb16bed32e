"""In which dtype a step computes: in the plan's compute dtype where it has enough rows, under autocast where it must."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from transformers.utils import ModelOutput

from ..devices.inventory import identity_of
from ..errors import NoSuchDeviceError
from ..errors.warn import warn
from ..models.offloaded import is_offloaded
from ..models.planned_layout import planned_products
from ..models.recast import main_dtype
from .state import Guard
from .written.written_places import NOTHING, Written

# Arguments that a step does not multiply by weights, by a part of their name.
_BESIDE = ("mask", "position", "past", "cache", "labels")


def as_planned(
    guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """Return `forward`, or where the plan or a remedy says so for this call, `forward` in another compute dtype.

    A step that computes in the dtype of its weights costs four comparisons.
    """
    start = guard.cast_from
    if (
        guard.autocast is None
        and guard.override is None
        and guard.copy is None
        and (start is None or rows_of(args, kwargs) < start)
    ):
        return forward

    def computed(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if guard.override is not None:
                stack.enter_context(guard.override.in_force())
            if guard.autocast is not None:
                stack.enter_context(torch.autocast(*guard.autocast))
            # Asked again: meanwhile the model may have left the dtype that the plan was for.
            elif guard.plan is not None and guard.cast_from is not None and rows_of(args, kwargs) >= guard.cast_from:
                stack.enter_context(planned_products(guard.plan.compute, guard.plan.routes, guard.cast_from))
            if guard.copy is not None:
                stack.enter_context(guard.copy.in_force())
            output = forward(*args, **kwargs)
        model = guard.model()
        if guard.copy is None or model is None:
            return output
        return _narrowed(output, main_dtype(model))

    return computed


def _narrowed(output: Any, now: torch.dtype | None) -> Any:
    """Return `output` in the dtype of the weights, as other ranks have it that ran on those; a loss stays as it is."""
    if isinstance(output, torch.Tensor):
        return output.to(now) if output.dim() and output.dtype == torch.float32 else output
    if isinstance(output, ModelOutput):
        return type(output)(**{name: _narrowed(part, now) for name, part in output.items()})
    if type(output) in (tuple, list):
        return type(output)([_narrowed(part, now) for part in output])
    if type(output) is dict:
        return {name: _narrowed(part, now) for name, part in output.items()}
    return output


def first_step(guard: Guard) -> Written:
    """Look where the model is before the first step of a kind; return that nothing is known of what the step writes.

    A plan holds for the devices that it was made for. Where the model has been moved to another product since, products
    are computed in the dtype of the weights, and a warning says so once.
    """
    plan, model = guard.plan, guard.model()
    if plan is None or plan.made_for is None or model is None or "moved" in guard.mentioned:
        return NOTHING
    devices = {weight.device for weight in model.parameters() if not weight.is_meta}
    # Beside an accelerator the CPU holds what is brought to it; without one it computes.
    devices = {device for device in devices if device.type != "cpu"} or devices
    moved = [device for device in devices if not _is_planned_for(str(device), plan.made_for.devices)]
    if moved and not is_offloaded(model):
        guard.mentioned.add("moved")
        guard.cast_from = None
        where = str(moved[0])
        text = f"{plan.source} was planned for {plan.device_name} ({plan.device}) and runs on {where}: {plan.storage} may "
        warn(
            f"{text}not be the best dtype there. Next: load it with device_map='{where}', so that this is planned for"
        )
    return NOTHING


def _is_planned_for(device: str, products: tuple[str, ...]) -> bool:
    try:
        return identity_of(device).name in products
    except NoSuchDeviceError:
        return True


def rows_of(args: Iterable[Any], kwargs: dict[str, Any]) -> int:
    """Return how many rows the products of a call will have: the positions in its largest input."""
    named = [(name, value) for name, value in kwargs.items() if not any(word in name for word in _BESIDE)]
    inputs = [*(("", value) for value in args), *named]
    return max((_rows(name, value) for name, value in inputs if isinstance(value, torch.Tensor)), default=0)


def _rows(name: str, tensor: torch.Tensor) -> int:
    if not tensor.is_floating_point():
        return tensor.numel()
    rows = tensor.numel() // tensor.shape[-1] if tensor.dim() and tensor.shape[-1] else 0
    # The last dimension of a wave (batch, samples) is time: convolutions make rows of it.
    is_wave = rows == tensor.shape[0] if tensor.dim() > 1 else False
    return tensor.numel() if is_wave and "embed" not in name else rows
