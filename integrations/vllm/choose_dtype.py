"""The dtype that vLLM is told for one model: our plan, of what vLLM can compute.

    python -m safe_dtype.integrations.vllm.choose_dtype JOB.json

A process of its own measures and plans: a device that the parent had used could not be used in the workers that vLLM
forks, and what a measurement holds in its memory would be missing there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safe_dtype.errors import CheckpointError, NotServableError, PlanError
from safe_dtype.facts import FLOAT16, dtype_named
from safe_dtype.loading import Request, checkpoint_for, device_for, half_of, plan_request
from safe_dtype.loading.published_variants import published_variant
from safe_dtype.planning import Plan, Policy
from safe_dtype.planning.plan import Ground

from .as_vllm_runs import VllmRuntime, as_vllm_runs, without

_RESCALED = "float16 holds it only once it is rescaled, or with modules in float32, and vLLM can do neither"


@dataclass(frozen=True, slots=True)
class VllmDtype:
    """What vLLM is told for a model, and why."""

    dtype: str | None  # by torch's name; None: the choice is left to vLLM
    reason: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype} for vLLM: {self.reason}" if self.dtype else f"the dtype is left to vLLM: {self.reason}"


def choose_dtype(request: Request, runtime: VllmRuntime, policy: Policy | None = None) -> VllmDtype:
    """Return the dtype to serve a model in. Where that depends on float16's range, the model is loaded and measured once.

    Args:
        request: The model as vLLM was asked for it; its dtype is an order, and "auto" is none.
        runtime: What vLLM computes in.
        policy: How to choose.

    Raises:
        NotServableError: If vLLM would compute something else than the model in the dtype that was ordered, or has none
            that is right here.
    """
    try:
        checkpoint = checkpoint_for(request)
    except CheckpointError as exc:
        return VllmDtype(None, str(exc).partition("\n")[0])
    if checkpoint.quantization:
        return VllmDtype(None, f"it is quantized with {checkpoint.quantization}, for which vLLM has rules of its own")
    device = as_vllm_runs(device_for(request, checkpoint), runtime, checkpoint.model_type)
    try:
        plan = plan_request(request, policy, drifts="measured", device=device)
        if _needs_rescue(plan):
            advice = _instead_of_a_rescue(request, plan)
            if plan.ordered:
                raise NotServableError(checkpoint.source, str(FLOAT16), _RESCALED, advice)
            plan = plan_request(
                request, policy, drifts="measured", device=without(device, [(FLOAT16, f"{_RESCALED}; {advice}")])
            )
    except PlanError as exc:
        if isinstance(exc, NotServableError):
            raise
        why = " ".join(str(exc).partition("Next:")[0].split()).rstrip(
            ". "
        )  # what comes next is another thing with vLLM
        raise NotServableError(checkpoint.source, str(request.ordered or "auto"), why, _NEXT) from exc
    if plan.chosen is not None and plan.chosen.ground is Ground.RANGE:
        half = half_of(plan, request, device, checkpoint, measure=False)
        if half is not None:  # it was measured: nobody has to wait for the first NaN
            raise NotServableError(checkpoint.source, str(plan.storage), plan.chosen.reason, _NEXT)
    return VllmDtype(plan.storage.name, plan.reason, plan.warnings)


_NEXT = "leave out --dtype where one was ordered, or run it with transformers, where every step is guarded"


def _needs_rescue(plan: Plan) -> bool:
    return plan.storage == FLOAT16 and bool(plan.rescale or plan.islands)


def _instead_of_a_rescue(request: Request, plan: Plan) -> str:
    """Return how to serve the model in float16 all the same: a checkpoint that holds the rescale in its weights."""
    variant = published_variant(request, plan)
    if variant is not None and variant.needs is None:
        return f"serve {variant.repo} in its place, which was published rescaled ({variant})"
    return (
        "leave out --dtype, or make a checkpoint that is rescaled already: `safe-dtype publish stage --dtype float16`"
    )


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job of `plugin`: the fields of a VllmDtype, or the arguments of the error."""
    arguments = {**job["arguments"], "dtype": _dtype(job["dtype"])}
    request = Request(job["model"], arguments, job["device"]).in_folder()
    runtime = VllmRuntime(tuple(map(dtype_named, job["dtypes"])), tuple(job["without_float16"]))
    try:
        return {"told": asdict(choose_dtype(request, runtime, Policy.of(job["policy"])))}
    except NotServableError as exc:
        return {"refused": exc.args}


def _dtype(name: str) -> str:
    """Return vLLM's name of a dtype as torch has it."""
    return {"half": "float16", "float": "float32"}.get(name, name)


if __name__ == "__main__":
    order = Path(sys.argv[1])
    answer = main(json.loads(order.read_text(encoding="utf-8")))
    order.with_name("answer.json").write_text(json.dumps(answer), encoding="utf-8")
