"""Uses the public API as a user would; only type-checked, never run."""

from __future__ import annotations

from safe_dtype import BFLOAT16, Plan, Policy, SafeAutoModel, make_plan, plan_of, read_checkpoint
from safe_dtype.devices import facts_of, prior_facts

model = SafeAutoModel.from_pretrained("examples/tiny-qwen3", policy="auto,prefer=memory")
plan: Plan = plan_of(model)
text: str = plan.explain()
json_text: str = plan.to_json(indent=2)
for decision in plan.decisions:
    reason: str = decision.reason
seconds: float | None = plan.cost.seconds if plan.cost else None
same: Plan = make_plan(facts_of("cpu"), read_checkpoint("examples/tiny-qwen3"), Policy(prefer="fidelity"))
other: Plan = make_plan(prior_facts("NVIDIA Tesla T4"), read_checkpoint("org/name"), ordered=BFLOAT16)
