"""One call of `from_pretrained` of diffusers, patched: planned where that is possible, else the plain call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError, SafeDtypeError, StrictModeError
from ..errors.warn import warn
from ..loading import Request
from ..loading.diffusion import load_diffusers_model, load_pipeline, pipeline_plan_of, plan_diffusers_model
from ..loading.planned_once import take_planned
from ..planning import Policy
from .moved_after import device_moved_to
from .telling import Telling, tell_pipeline, tell_plan

logger = logging.getLogger(__name__)

_SOURCES = ("pretrained_model_name_or_path", "pretrained_model_or_path")


def part_planned(
    original: Callable[..., Any], policy: Policy, tell: Telling, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Load a single model of diffusers, by `original`, in the plan's dtype.

    Raises:
        StrictModeError: If `policy` is strict, and the dtype ordered (else the saved one) is rejected here.
    """
    source, arguments = _split(args, kwargs)
    if take_planned() or source is None:
        return original(*args, **kwargs)
    request = Request(source, arguments, device_moved_to())
    try:
        plan = plan_diffusers_model(request, policy)
    except SafeDtypeError as exc:
        if isinstance(exc, StrictModeError) and policy.mode == "strict":
            raise
        result = original(*args, **kwargs)
        _log_plain(source, exc)
        return result
    for text in plan.warnings:
        warn(text)
    loaded = load_diffusers_model(original, request, plan)
    tell_plan(plan, tell)
    return loaded


def pipeline_planned(
    original: Callable[..., Any], policy: Policy, tell: Telling, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Load a pipeline of diffusers, by `original`, each of its models in the dtype that is planned for it.

    Raises:
        StrictModeError: As of one model.
    """
    source, arguments = _split(args, kwargs)
    if take_planned() or source is None:
        return original(*args, **kwargs)
    try:
        pipeline = load_pipeline(original, source, arguments, policy, device_moved_to())
    except CheckpointError as exc:
        result = original(*args, **kwargs)  # where that raises, its own error says enough
        _log_plain(source, exc)
        return result
    plan = pipeline_plan_of(pipeline)
    if plan is not None:
        tell_pipeline(plan, tell)
    return pipeline


def _split(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | os.PathLike[str] | None, dict[str, Any]]:
    """Return what is loaded, and the other arguments; None for a call that is diffusers' own affair."""
    named = [name for name in _SOURCES if name in kwargs]
    others = {name: value for name, value in kwargs.items() if name not in named}
    sources = [*args, *(kwargs[name] for name in named)]
    if len(sources) != 1 or not isinstance(sources[0], str | os.PathLike):
        return None, others
    return sources[0], others


def _log_plain(source: str | os.PathLike[str], obstacle: SafeDtypeError) -> None:
    reason = str(obstacle).partition("\n")[0]
    logger.warning("%s: loaded as it is, without a plan and unguarded: %s", source, reason)
