"""A device that the process has lost: nothing of it is read any more, and the next start plans around what lost it."""

from __future__ import annotations

import logging
from types import TracebackType

from torch import nn

from ...devices import remember_failure
from ...errors import DeviceLostError, SafeDtypeError
from ...facts import Dtype
from ...models.offloaded import execution_devices
from ..blame import module_raising
from ..classify import classify, first_line, links_of, text_of
from ..failure import Failure
from ..families.refused import is_lost
from ..state import Guard

logger = logging.getLogger(__name__)

_MOVES = ("pre_forward", "post_forward")


def loses_a_device(exc: BaseException) -> bool:
    """Whether `exc` tells that a device is lost to this process: what lies on it can be neither read nor brought back."""
    return any(isinstance(link, DeviceLostError) or is_lost(text_of(link)) for link in links_of(exc))


def raise_if_lost(guard: Guard, exc: BaseException) -> None:
    """Raise what the caller gets in place of `exc`, if that tells that the process has lost a device of the model.

    Remembered is only what its text blames on a dtype: anything may fail an assertion, an index that is out of range too.

    Raises:
        DeviceLostError: If a device is lost.
    """
    model, dtype = guard.model(), guard.dtype()
    links = list(links_of(exc))
    texts = [text_of(link) for link in links if is_lost(text_of(link))]
    if model is None or not texts or any(isinstance(link, SafeDtypeError) for link in links):
        return
    module = None if _moves_tensors(exc.__traceback__) else module_raising(model, exc.__traceback__)
    failure = classify(exc)
    if failure is not None and failure.sticky and dtype is not None:
        raise device_lost(model, module, failure, dtype) from exc
    devices = _devices_of(module, model)
    if devices != ("cpu",):
        raise DeviceLostError(",".join(devices), "", first_line(texts[0])) from exc


def _moves_tensors(trace: TracebackType | None) -> bool:
    """Whether a hook of accelerate was bringing tensors to a module: from another device, which may be the lost one."""
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name in _MOVES and frame.f_globals.get("__name__") == "accelerate.hooks":
            return True
        trace = trace.tb_next
    return False


def device_lost(model: nn.Module, module: nn.Module | None, failure: Failure, dtype: Dtype) -> DeviceLostError:
    """Return the error of a device that was lost in `dtype`, and have the next plan for it reject that.

    Args:
        model: The model that ran.
        module: The module that failed; None where that is not known, for kernels end later than their calls.
        failure: How.
        dtype: The dtype of the model.
    """
    devices = _devices_of(module, model)
    text = first_line(failure.message)
    for device in devices:
        _remember(device, dtype, text)
    return DeviceLostError(",".join(devices), str(dtype), text)


def _remember(device: str, dtype: Dtype, text: str) -> None:
    try:
        remember_failure(device, dtype, f"lost the device while a model ran: {text}")
    except RuntimeError as exc:  # the device may not even say its name any more
        logger.warning("that %s was lost in %s cannot be remembered: %s", device, dtype, exc)


def _devices_of(module: nn.Module | None, model: nn.Module) -> tuple[str, ...]:
    """Return where a module computes, or the whole model where it is not known: all accelerators; the CPU for want of them."""
    return (_where(module) if module is not None else ()) or _where(model) or ("cpu",)


def _where(module: nn.Module) -> tuple[str, ...]:
    own = [weight.device for weight in module.parameters() if not weight.is_meta]
    devices = dict.fromkeys([*own, *execution_devices(module)])
    accelerators = tuple(str(device) for device in devices if device.type != "cpu")
    return accelerators or tuple(str(device) for device in devices)
