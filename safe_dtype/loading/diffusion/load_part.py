"""One model of diffusers: planned as a model of transformers is, loaded in that dtype by diffusers, and guarded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.weight_files import mark_weight_files
from ...errors import CheckpointError
from ...guarding import guard
from ...models.load_lock import one_at_a_time
from ...models.origin import Origin, keep_origin
from ...planning import Plan, Policy
from ...planning.plan import Ground
from ..plan_request import Drifts, plan_request
from ..planned_once import all_planned
from ..request import Request, without_dtype


def plan_diffusers_model(request: Request, policy: Policy | str | None, *, drifts: Drifts = "never") -> Plan:
    """Return the plan of one model for its dtype alone: products are computed as diffusers computes them, bit for bit.

    Raises:
        CheckpointError: If its files cannot be found or read, or are quantized.
        PlanError: If no dtype is accepted.
    """
    plan = plan_request(request, policy, drifts=drifts)
    if plan.quantization:
        raise CheckpointError(plan.source, "it is quantized")
    plan = replace(plan, compute=plan.storage, routes=None, device_map=None, codes=None)
    if plan.chosen is not None and plan.chosen.ground is Ground.RANGE:
        # Nobody can say before the first picture, and then the guard does.
        plan = replace(plan, warnings=())
    return plan


def load_diffusers_model(original: Callable[..., Any], request: Request, plan: Plan) -> Any:
    """Call `original`, a model's `from_pretrained`, in the plan's dtype; return what it returns, the model guarded."""
    with one_at_a_time(), all_planned():
        loaded = original(
            request.source, **without_dtype(request.arguments), torch_dtype=getattr(torch, plan.storage.name)
        )
    guard_part(loaded[0] if isinstance(loaded, tuple) else loaded, request, plan)
    return loaded


def guard_part(model: Any, request: Request, plan: Plan) -> None:
    """Keep with a model how it was loaded, and guard it."""
    source = os.fspath(request.source or "")
    place = str(Path(source).resolve()) if Path(source).exists() else source
    where = request.where
    commit = plan.made_for.checkpoint.commit if plan.made_for and plan.made_for.checkpoint else None
    files = mark_weight_files(replace(where, revision=commit or where.revision))
    arguments = {name: value for name, value in without_dtype(request.arguments).items() if name != "token"}
    keep_origin(model, Origin(plan, type(model), place, arguments, files))
    guard(model)
