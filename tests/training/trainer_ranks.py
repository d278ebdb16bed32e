"""The Trainer on several ranks of one job, one of which fails: what each of them says of it."""

from __future__ import annotations

from typing import Any

import torch
from ranks.processes import begin_case
from training.trainer_runs import Fault, Setting, difference, run
from transformers import Trainer

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.training import switch_precision
from safe_dtype.training.trainer.attach import is_attached

Case = tuple[str, Fault, Dtype, dict[str, Any]]

SIXTEEN_BITS = (BFLOAT16, FLOAT16)


class EvaluatesFirst(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Evaluates and predicts before it trains. Not attached, accelerate is told to prepare the model for training all the same."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, and train."""
        self.evaluate(self.train_dataset)
        self.predict(self.train_dataset)
        if not is_attached(self):
            del self.model._is_accelerate_prepared
        return super().train(*args, **kwargs)


CASES: tuple[Case, ...] = (
    ("forward", Fault(2), FLOAT16, {}),
    ("backward", Fault(2, "backward"), FLOAT16, {}),
    ("NaN loss", Fault(2, "nan"), FLOAT16, {}),
    ("both", Fault(2, dtypes=SIXTEEN_BITS), FLOAT32, {}),
    ("first of two", Fault(2, micro=0), FLOAT16, {"accumulation": 2}),
    ("second of two", Fault(2, "backward", micro=1), FLOAT16, {"accumulation": 2}),
    ("evaluated first", Fault(2), FLOAT16, {"trainer": EvaluatesFirst}),
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
        found[name] += unlike_weights(ours.trainer.model)
    begin_case("KeyError", 60)
    found["KeyError"] = type(
        run(Setting(Fault(2, "key", (*SIXTEEN_BITS, FLOAT32)) if fails_here else None)).error
    ).__name__
    return found


def unlike_weights(model: torch.nn.Module) -> str:
    """Return by how much the weights of two ranks differ; nothing where they are equal."""
    own = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    others = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(others, own)
    return "" if torch.equal(*others) else f"weights of ranks differ by {(others[0] - others[1]).abs().max():.1e}"


class TrainsAgain(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trains three steps, and then five from the start, on the weights that it has."""

    def train(self, *_: Any, **__: Any) -> Any:
        """Train twice."""
        super().train()
        self.args.max_steps = 5
        return super().train()


class Resumes(Trainer):  # type: ignore[misc]
    """Trains three steps, and two more from its checkpoint."""

    def train(self, *_: Any, **__: Any) -> Any:
        """Train, and go on."""
        super().train()
        self.args.max_steps = 5
        return super().train(resume_from_checkpoint=True)


def second_runs(folder: str) -> dict[str, str]:
    """Return where second runs of one Trainer differ from those that were switched by hand, the model in DDP each time."""
    torch.set_num_threads(1)
    fails, found = torch.distributed.get_rank() == 1, {}
    saved = {"save_strategy": "steps", "save_steps": 3}
    for name, step, other in (
        ("again", 4, {"trainer": TrainsAgain}),
        ("resumed", 1, {"trainer": Resumes, "arguments": saved}),
    ):
        begin_case(name, 60)
        common: dict[str, Any] = {"steps": 3, **other}
        ours = run(Setting(Fault(step) if fails else None, folder=f"{folder}/{name}", **common))
        by_hand = run(Setting(by_hand=(step, FLOAT16), attached=False, folder=f"{folder}/{name} by hand", **common))
        found[name] = str(ours.error or "") + str(by_hand.error or "")
        found[name] += difference(ours.everything(), by_hand.everything())
        found[name] += "" if ours.rows[-1]["precision"] == "float16" else str(ours.rows[-1])
    begin_case("prepared again", 60)
    accelerator, model = ours.trainer.accelerator, ours.trainer.model_wrapped
    accelerator.free_memory()
    assert accelerator.prepare(model) is model
    switch_precision(accelerator, BFLOAT16)
    computed: list[torch.dtype] = []
    ours.trainer.model.lm_head.register_forward_hook(lambda *given: computed.append(given[-1].dtype))
    model(input_ids=torch.ones(1, 4, dtype=torch.long))
    found["prepared again"] = "" if computed == [torch.bfloat16] else str(computed)
    return found
