"""A whole pipeline of diffusers: its models planned each, loaded by diffusers in these dtypes, and guarded each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ...errors import SafeDtypeError, StrictModeError
from ...errors.warn import warn
from ...facts import FLOAT32
from ...guarding import guard
from ...guarding.state import guard_of
from ...models.load_lock import one_at_a_time
from ...models.origin import known_origin
from ...planning import Plan, Policy
from ..load import halves, load
from ..plan_request import Drifts
from ..planned_once import all_planned
from ..request import Request, without_dtype
from .between_parts import cast_between
from .load_part import guard_part, plan_diffusers_model
from .pipeline_models import models_of
from .pipeline_parts import PipelinePart, order_for, parts_of, request_of
from .pipeline_plan import PipelinePlan

logger = logging.getLogger(__name__)

_plans: WeakKeyDictionary[Any, PipelinePlan] = WeakKeyDictionary()


def load_pipeline(
    original: Callable[..., Any], source: str | os.PathLike[str], arguments: Mapping[str, Any],
    policy: Policy | str | None = None, moved_to: str | None = None,
) -> Any:  # fmt: skip
    """Call `original`, the `from_pretrained` of a pipeline, with a dtype for each of its models; return the pipeline.

    Models that the caller passes stay as they are, and are guarded. One that cannot be planned is loaded as diffusers
    loads it, unguarded, and the log says why.

    Raises:
        CheckpointError: If there is no such pipeline.
        StrictModeError: If `policy` is strict, and a dtype that was ordered is rejected.
    """
    parts = [part for part in parts_of(source, arguments) if part.name not in arguments]
    requests = {part.name: request_of(part, source, arguments, moved_to) for part in parts}
    plan = _plan(source, parts, requests, Policy.of(policy))
    for text in plan.warnings:
        warn(text)
    for name, reason in plan.unplanned:
        logger.warning("%s/%s: loaded as it is, without a plan and unguarded: %s", source, name, reason)
    loaded = {part.name: model for part in parts if (model := _rescued(part, requests, plan, arguments)) is not None}
    with one_at_a_time(), all_planned():
        pipeline = original(source, **_with_dtypes(arguments, plan), **loaded)
    plan = replace(plan, pipeline=type(pipeline).__name__)
    for name, part_plan in plan.parts:
        model = getattr(pipeline, name, None)
        if isinstance(model, nn.Module) and name not in loaded:
            guard_part(model, requests[name], part_plan)
    models = models_of(pipeline)
    for name, model in models.items():
        if name in arguments and guard_of(model) is None:
            guard(model, policy=policy)
    cast_between(models)
    _plans[pipeline] = plan
    return pipeline


def pipeline_plan_of(pipeline: Any) -> PipelinePlan | None:
    """Return the plans of the models that a pipeline holds now; None where none of them was loaded with one.

    A copy has one as well, and a pipeline that was made of the parts of others.
    """
    models, loaded = models_of(pipeline), _plans.get(pipeline)
    planned = {name: origin.plan for name, model in models.items() if (origin := known_origin(model)) is not None}
    if loaded is None and not planned:
        return None
    known = loaded or PipelinePlan(str(pipeline.config.get("_name_or_path") or type(pipeline).__name__), "", ())
    order = sorted(planned, key=lambda name: (name not in known.plans, name))
    reasons = dict(known.unplanned)
    others = {name: reasons.get(name, "it was not loaded by safe_dtype") for name in models if name not in planned}
    return replace(
        known, pipeline=type(pipeline).__name__, parts=tuple((name, planned[name]) for name in order),
        unplanned=tuple(others.items()),
    )  # fmt: skip


def _plan(
    source: str | os.PathLike[str], parts: list[PipelinePart], requests: Mapping[str, Request], policy: Policy | None
) -> PipelinePlan:
    plans, unplanned = [], []
    for part in parts:
        drifts: Drifts = "ignored" if part.library == "transformers" else "never"
        try:
            plans.append((part.name, plan_diffusers_model(requests[part.name], policy, drifts=drifts)))
        except SafeDtypeError as exc:
            if isinstance(exc, StrictModeError) and policy is not None and policy.mode == "strict":
                raise
            unplanned.append((part.name, str(exc).partition("\n")[0]))
    return PipelinePlan(os.fspath(source), "", tuple(plans), tuple(unplanned))


def _rescued(
    part: PipelinePart, requests: Mapping[str, Request], plan: PipelinePlan, arguments: Mapping[str, Any]
) -> Any:
    """Return a text encoder that float16 holds only once it is rescaled, loaded so; None: diffusers loads it."""
    own = plan.plans.get(part.name)
    if own is None or not halves(own) or arguments.get("device_map") is not None:
        return None
    import transformers

    return load(getattr(transformers, part.class_name), requests[part.name], own)


def _with_dtypes(arguments: Mapping[str, Any], plan: PipelinePlan) -> dict[str, Any]:
    """Return the caller's arguments with the dtype of each part, by the argument's name in this diffusers."""
    wanted = {name: _torch(own) for name, own in plan.parts}
    default = order_for("default", arguments)
    for name, _ in plan.unplanned:
        wanted[name] = order_for(name, arguments) or torch.float32
    return {
        **without_dtype(arguments),
        _dtype_argument(arguments): {**wanted, "default": default or getattr(torch, FLOAT32.name)},
    }


def _torch(plan: Plan) -> torch.dtype:
    return getattr(torch, plan.storage.name)  # type: ignore[no-any-return]


def _dtype_argument(arguments: Mapping[str, Any]) -> str:
    """Return "dtype", or "torch_dtype" where this diffusers knows only that."""
    from diffusers import utils

    knows_both = hasattr(utils, "_resolve_dtype")
    return "dtype" if knows_both and "torch_dtype" not in arguments else "torch_dtype"
