"""Is an error that no text tells of one of dtypes? The modules that it ended are run alone, in the dtypes further down."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..facts import FLOAT32, Dtype
from ..guarding.diagnosis import ModuleCall, calls_in, is_vetoed
from ..guarding.diagnosis.module_call import CannotRepeatError
from ..guarding.step_snapshot import undone
from ..models.casting import cast
from ..numerics import uncompiled
from ..processes.handler_exceptions import is_of_a_signal
from .half_base import has_half_base, products_in

_MOST_CALLS = 3  # innermost ones: what is around them fails by them
_PATIENCE = 20.0  # seconds after which no further call is tried: other ranks wait
_HALVES = {torch.bfloat16, torch.float16}
_OF_RANKS = (DistributedDataParallel, nn.SyncBatchNorm)  # their passes are of all ranks


def passes_further_down(
    models: Iterable[nn.Module], error: Exception, now: Dtype, below: Sequence[Dtype]
) -> Dtype | None:
    """Return the first of the dtypes `below` in which a module passes that `error` ended, and that fails alone as it is.

    None where no module passes, where `error` was raised in no forward pass of a module, and where it is one that must not be
    raised twice: of memory, of communication, of the caller's own hooks. Nothing is changed: inputs are copies, and what
    the modules change in themselves is brought back.

    Args:
        models: Of the loop.
        error: What no text tells of.
        now: What the models compute in.
        below: What they may go on in.
    """
    if not below or is_vetoed(error):
        return None
    begun = time.monotonic()
    for model in models:
        for call in calls_in(model, error.__traceback__)[:_MOST_CALLS]:
            if time.monotonic() - begun > _PATIENCE or not _is_of_one_rank(call.module):
                return None
            passing = next((dtype for dtype in below if _outcome(call, dtype) is None), None)
            again = _outcome(call, now) if passing is not None else None
            if again is not None and type(again) is type(error):
                return passing
    return None


def _outcome(call: ModuleCall, dtype: Dtype) -> Exception | None:
    """Return what a module raises in `dtype`; None where it passes."""
    new = getattr(torch, dtype.name)
    try:
        args, kwargs = call.inputs(lambda tensor: cast(tensor.detach(), _HALVES - {new}, new).clone())
        with undone(call.module), torch.no_grad(), uncompiled(), _computing_in(call.module, dtype):
            call.run(*args, **kwargs)
    except CannotRepeatError as exc:
        return exc
    except Exception as exc:
        if is_of_a_signal(exc):
            raise
        return exc
    return None


@contextmanager
def _computing_in(module: nn.Module, dtype: Dtype) -> Iterator[None]:
    device = next((weight.device.type for weight in module.parameters()), "cpu")
    enabled = dtype != FLOAT32
    autocast = torch.autocast(device, getattr(torch, dtype.name) if enabled else None, enabled=enabled)
    with autocast, products_in(dtype, has_half_base=has_half_base([module])):
        yield


def _is_of_one_rank(module: nn.Module) -> bool:
    shared = any(hasattr(weight, "_local_tensor") for weight in module.parameters())
    return not shared and not any(isinstance(inner, _OF_RANKS) for inner in module.modules())
