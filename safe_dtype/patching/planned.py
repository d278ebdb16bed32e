"""One call of the patched `from_pretrained`: planned where that is possible, else the plain call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..devices.memory import bytes_of
from ..errors import PeerLostError, RanksDisagreeError, SafeDtypeError, StrictModeError
from ..errors.warn import warn
from ..loading import Request, load, plan_request
from ..loading.planned_once import take_planned
from ..models.load_lock import one_at_a_time
from ..models.origin import plan_of
from ..planning import Plan, Policy
from ..ranks import meet
from .moved_after import device_moved_to
from .telling import Telling, tell_plan

logger = logging.getLogger(__name__)

_SOURCE = "pretrained_model_name_or_path"


class _Plainly:
    """What `load` calls: the class method as it was before it was patched."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        model_class = getattr(original, "args", (None,))[0]
        self.config_class = getattr(model_class, "config_class", None)

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        take_planned()  # for this call alone: models loaded inside it get plans of their own
        return self._original(*args, **kwargs)


def from_pretrained_planned(
    original: Callable[..., Any], policy: Policy, tell: Telling, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `original` with the plan's dtype, guard the model, and say so. What cannot be planned is the plain call.

    Raises:
        StrictModeError: If `policy` is strict, and the dtype ordered (else the saved one) is rejected here.
    """
    named = _SOURCE in kwargs
    if take_planned() or bool(args) == named:  # neither or both: the original raises its own error
        return original(*args, **kwargs)
    source, *model_args = (kwargs[_SOURCE],) if named else args
    arguments = {name: value for name, value in kwargs.items() if name != _SOURCE}
    request = Request(source, arguments, device_moved_to())
    plan, obstacle = _plan(request, policy)
    if plan is None:
        with one_at_a_time():
            result = original(*args, **kwargs)
        # Where that raises, its own error says enough.
        logger.warning("%s: loaded as it is, without a plan and unguarded: %s", source, obstacle)
        return result
    for text in plan.warnings:
        warn(text)
    loaded = load(_Plainly(original), request, plan, *model_args)
    tell_plan(plan_of(loaded[0] if isinstance(loaded, tuple) else loaded), tell)
    return loaded


def _plan(request: Request, policy: Policy) -> tuple[Plan | None, str]:
    """Return the plan; or None, and the reason why there is none."""
    if not _sizes_can_be_read(request.arguments.get("max_memory")):
        return None, "max_memory cannot be read"
    try:
        # A program that was written for plain transformers may train what it loads: nothing is rounded unasked.
        with meet(request, policy) as meeting:
            return plan_request(request, policy, drifts="ignored", meeting=meeting), ""
    except (RanksDisagreeError, PeerLostError):
        raise  # loaded as it is, it would be another model on every rank
    except StrictModeError as exc:
        if policy.mode == "strict":
            raise
        obstacle: SafeDtypeError = exc
    except SafeDtypeError as exc:
        obstacle = exc
    return None, str(obstacle).partition("\n")[0]


def _sizes_can_be_read(max_memory: Any) -> bool:
    try:
        return max_memory is None or (isinstance(max_memory, Mapping) and all(map(_size, max_memory.values())))
    except (TypeError, ValueError):
        return False


def _size(size: Any) -> bool:
    return bytes_of(size) >= 0
