"""Uses the public API as a user would; only type-checked, never run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from safe_dtype import (
    BFLOAT16,
    Drift,
    Dtype,
    Dynamic,
    Event,
    FailureKind,
    Incident,
    NotPossible,
    Plan,
    Policy,
    Remedy,
    SafeAutoModel,
    compute_in,
    drift_from,
    exceeds,
    facts_of,
    guard,
    load_optimized,
    make_plan,
    measure_drift,
    on_event,
    optimize,
    patch,
    patched,
    plan_of,
    prior_facts,
    publish,
    read_checkpoint,
    record_outputs,
    register_remedy,
    report,
    text_batches,
    unguard,
    unpatch,
)
from safe_dtype.optimizing import Status, read_record
from safe_dtype.publishing import State
from safe_dtype.testing import fault

model = SafeAutoModel.from_pretrained("examples/tiny-qwen3", policy="auto,prefer=memory")
plan: Plan = plan_of(model)
text: str = plan.explain()
json_text: str = plan.to_json(indent=2)
for decision in plan.decisions:
    reason: str = decision.reason
seconds: float | None = plan.cost.seconds if plan.cost else None
same: Plan = make_plan(facts_of("cpu"), read_checkpoint("examples/tiny-qwen3"), Policy(prefer="fidelity"))
other: Plan = make_plan(prior_facts("NVIDIA Tesla T4"), read_checkpoint("org/name"), ordered=BFLOAT16)

net: nn.Linear = guard(nn.Linear(2, 2), policy="auto,islands")
with fault(net, "", "nan", dtype=BFLOAT16) as put:
    fired: int = put.fired
for event in report(net).events:
    kind: FailureKind = event.kind
    after: Dtype | None = event.after
unguard(net)


def count(owner: nn.Module, event: Event) -> None:
    """Count an event."""


class Reset:
    """A remedy of the user's own."""

    changes_dtype = False

    def apply(self, incident: Incident) -> int:
        """Change the model."""
        if incident.blamed is None:
            raise NotPossible("no module is known")
        return 0

    def undo(self, incident: Incident) -> None:
        """Take the change back."""


def propose(incident: Incident) -> list[Remedy]:
    """Propose it for every failure."""
    return [Reset()]


registration = on_event(count)
with on_event(count), register_remedy(propose, before="attention"):
    registration.remove()

with compute_in("float32", ops=["linear"], when=lambda family, rows: rows > 8):
    drift: Drift = measure_drift(net, net, [{"input": torch.ones(1, 2)}])
cosine: float | None = drift.hidden_cosine
too_far: str | None = exceeds(drift, max_drift=0.02)
batches = text_batches(tokenizer=None, text="some text", tokens_per_batch=64)
same_drift: Drift = drift_from(record_outputs(net, batches, "folder"), net, batches)

patch()
patch(Policy(prefer="memory"))
with patched("auto,prefer=memory"):
    unpatch()

found = optimize(net, {"input": torch.ones(2, 2)}, out="out", form="aoti", dynamic=Dynamic(batch=(1, 32)), keep=True)
status: Status = found.status
form: str | None = found.winner.form if found.winner else None
outputs: dict[str, torch.Tensor] = load_optimized("out", trust=True)(input=torch.ones(1, 2))
again: bool = read_record(Path("out")) == found
state: State = publish("out", "org/name-fp16", revision="fp16", public=True, needs="safe_dtype").state
