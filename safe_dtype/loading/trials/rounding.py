"""The drift gate: before a checkpoint is rounded, the drift that rounding causes is measured on the checkpoint, once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from ...checkpoints.fingerprint import fingerprint
from ...errors import CheckpointError, VerifyError
from ...errors.of_the_moment import is_of_memory
from ...facts import FLOAT32, CheckpointFacts, DeviceFacts, Drift, Dtype, MeasuredDrift, drift_from_dict, drift_to_dict
from ...models.planned_layout import lay_out_as_planned, planned_products
from ...numerics import compute_in
from ...planning import Candidate, Plan, Policy, Routes, make_plan, worth_measuring
from ...planning.predict import weight_bytes
from ...rendering.progress import part
from ...store.keys import results_key
from ...store.temporary import temporary_folder
from ...verifying import Checkpoint, drift_from, record_outputs
from ..request import Request
from .remembered_trial import recall_trial, remember_trial
from .second_copy import can_be_loaded_apart, how_it_runs, load_apart, rates_are_sure, reads_text, second_copy_of

logger = logging.getLogger(__name__)

_ROOM = 1.1  # of the weights' bytes
_TOKENS, _FEW_BATCHES = 384, 16  # of 128 and of 8 tokens: 512 positions in all


def plan_with_drifts(  # noqa: PLR0913  (all but the first five by name)
    plan: Plan, request: Request, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy | None,
    *, measure: bool, expected: tuple[Candidate, ...] = (),
) -> Plan:  # fmt: skip
    """Return `plan`, or the faster one that a measured drift allows.

    Args:
        plan: Made without a look at drifts.
        request: The call that it was made for.
        device: The facts that it was made from; so `checkpoint` and `policy`.
        checkpoint: The same.
        policy: The same.
        measure: Whether to measure what is not remembered: that loads the model, and runs it on a short text. Else the
            plan expects it to be well.
        expected: What the plan expects to be well already.
    """
    asked = policy is not None and policy.codes is not None
    if not can_be_loaded_apart(request, device, checkpoint, is_asked=asked):
        return plan
    while (candidate := worth_measuring(plan)) and (candidate.codes or rates_are_sure(device)):
        key = {**_key(candidate, plan, device, fingerprint(checkpoint, request.where)), **how_it_runs(request, plan)}
        measured = _remembered(candidate, key, request)
        if measured is None and measure:
            has_float32 = device.memory.has_room_for(weight_bytes(FLOAT32, checkpoint) * _ROOM)
            measured, is_lasting = _measured(candidate, plan, request, device, has_float32=has_float32)
            if is_lasting:
                remember_trial(key, request.where, plan.source, {"drift": _to_dict(measured)})
        if measured is None and not (reads_text(checkpoint) and _has_a_text(request, device, plan)):
            return plan
        if measured is None:
            expected += (candidate,)
        else:
            checkpoint = replace(checkpoint, drifts=(*checkpoint.drifts, measured))
        plan = make_plan(device, checkpoint, policy, ordered=plan.ordered, expected=expected)
        if measured is not None and measured.drift is None:
            break  # what cannot be asked of one way to run it cannot be asked of another
    return plan


def _has_a_text(request: Request, device: DeviceFacts, plan: Plan) -> bool:
    """Whether there is a tokenizer to measure it with. It is read only where nothing was measured yet."""
    try:
        return bool(second_copy_of(request, device, plan).batches(tokens=_TOKENS, few=_FEW_BATCHES))
    except (CheckpointError, VerifyError):
        return False


def _measured(
    candidate: Candidate, plan: Plan, request: Request, device: DeviceFacts, *, has_float32: bool
) -> tuple[MeasuredDrift, bool]:
    """Run the checkpoint in float32, then as `candidate` would, and compare.

    Where there is no room for it in float32 (`has_float32`), codes are compared with the weights as they were saved,
    multiplied in float32.

    Returns the drift, or why there is none, and whether that lasts: a lack of room is of this moment.
    """
    logger.warning(
        "%s: measuring what %s does to its results, once; loading takes longer this time", plan.source, candidate
    )
    is_lasting = True
    # Weights as they were saved are read from their files: they need no room.
    reference = candidate.storage if candidate.codes and not has_float32 else FLOAT32
    try:
        drift, problem = _drift(candidate, plan, second_copy_of(request, device, plan), reference), ""
    except (CheckpointError, VerifyError) as exc:
        drift, problem = None, str(exc).partition("\n")[0]
    except RuntimeError as exc:
        if not is_of_memory(exc):
            raise
        drift, problem, is_lasting = None, f"there is no room for it now: {exc}".partition("\n")[0], False
    finally:
        gc.collect()  # models of transformers refer to themselves, and the caller's own needs the room
    logger.info("%s: %s drifts by %s", plan.source, candidate, drift or problem)
    return MeasuredDrift(candidate.storage, candidate.compute, drift, problem, candidate.codes), is_lasting


def _drift(candidate: Candidate, plan: Plan, checkpoint: Checkpoint, reference: Dtype) -> Drift:
    batches = checkpoint.batches(tokens=_TOKENS, few=_FEW_BATCHES)
    with temporary_folder("safe_dtype-drift-") as folder:
        in_float32 = nullcontext() if reference == FLOAT32 else compute_in(FLOAT32)
        with part("running it in float32", 0, 2), in_float32:
            model = load_apart(checkpoint, reference)
            recording = record_outputs(model, batches, folder)
        if candidate.storage != reference:
            del model
            gc.collect()  # models of transformers refer to themselves, and the next one needs the room
            model = load_apart(checkpoint, candidate.storage)
        with part(f"running it as {candidate}", 1, 2), _as_planned(model, candidate, _routes(candidate, plan)):
            return drift_from(recording, model, batches)


def _as_planned(model: Any, candidate: Candidate, routes: Routes | None) -> AbstractContextManager[object]:
    """Have `model` compute as a model that is loaded with these routes would."""
    lay_out_as_planned(model, candidate, routes)
    if routes is None or routes.cast_from is None or (candidate.storage == candidate.compute and not routes.onednn):
        return nullcontext()
    return planned_products(candidate.compute, routes, routes.cast_from)


def _routes(candidate: Candidate, plan: Plan) -> Routes | None:
    return next(decision.routes for decision in plan.decisions if decision.candidate == candidate)


def _remembered(candidate: Candidate, key: Mapping[str, Any], request: Request) -> MeasuredDrift | None:
    return recall_trial(key, request.where, lambda entry: _from_dict(candidate, entry["drift"]))


def _key(candidate: Candidate, plan: Plan, device: DeviceFacts, digest: str) -> Mapping[str, Any]:
    routes = _routes(candidate, plan)
    return {
        "drift_of": digest,
        "candidate": str(candidate),
        "layout": routes.layout if routes else "plain",
        "wide": str(routes.wide) if routes else "",
        "cast_from": routes.cast_from if routes else None,
        **results_key(device),
    }


def _to_dict(measured: MeasuredDrift) -> dict[str, Any]:
    return {"problem": measured.problem, "figures": drift_to_dict(measured.drift) if measured.drift else None}


def _from_dict(candidate: Candidate, values: Mapping[str, Any]) -> MeasuredDrift:
    drift = drift_from_dict(values["figures"]) if values["figures"] else None
    return MeasuredDrift(candidate.storage, candidate.compute, drift, values["problem"], candidate.codes)
