"""The Trainer on several ranks of one job, one of which fails: what each of them says of it."""

from __future__ import annotations

from typing import Any

import torch
from ranks.processes import begin_case
from training.trainer_runs import Fault, Setting, difference, run

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype

Case = tuple[str, Fault, Dtype, dict[str, Any]]

SIXTEEN_BITS = (BFLOAT16, FLOAT16)
CASES: tuple[Case, ...] = (
    ("forward", Fault(2), FLOAT16, {}),
    ("backward", Fault(2, "backward"), FLOAT16, {}),
    ("NaN loss", Fault(2, "nan"), FLOAT16, {}),
    ("both", Fault(2, dtypes=SIXTEEN_BITS), FLOAT32, {}),
    ("first of two", Fault(2, micro=0), FLOAT16, {"accumulation": 2}),
    ("second of two", Fault(2, "backward", micro=1), FLOAT16, {"accumulation": 2}),
)
MORE_CASES: tuple[Case, ...] = (
    ("gradients", Fault(2, "inf"), FLOAT16, {}),
    ("first step", Fault(0), FLOAT16, {}),
    ("NaN in the first of two", Fault(2, "nan", micro=0), FLOAT16, {"accumulation": 2}),
    (
        "counted tokens",
        Fault(0, micro=0),
        FLOAT16,
        {"accumulation": 2, "arguments": {"include_num_input_tokens_seen": "all"}},
    ),
    ("overflow", Fault(2), FLOAT16, {"loss_factor": 3000.0}),
    ("checkpointing", Fault(2, "inf"), FLOAT16, {"arguments": {"activation_checkpointing": True}}),
)


def differences(cases: tuple[Case, ...], failing: int) -> dict[str, str]:
    """Return where each case differs from the run that was switched by hand on all ranks; `failing` is the rank that fails."""
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    fails_here = torch.distributed.get_rank() == failing
    for name, fault, dtype, other in cases:
        begin_case(name, 60)
        ours = run(Setting(fault if fails_here else None, **other))
        scale = ours.scale if dtype == FLOAT16 else None
        by_hand = run(Setting(by_hand=(fault.step, dtype), attached=False, init_scale=scale, **other))
        found[name] = (
            str(ours.error or "") + str(by_hand.error or "") + difference(ours.everything(), by_hand.everything())
        )
        steps = {int(state["step"]) for state in ours.trainer.optimizer.state.values()}
        found[name] += "" if steps == {5} else f"{steps} optimizer steps"
    begin_case("KeyError", 60)
    found["KeyError"] = type(
        run(Setting(Fault(2, "key", (*SIXTEEN_BITS, FLOAT32)) if fails_here else None)).error
    ).__name__
    return found
