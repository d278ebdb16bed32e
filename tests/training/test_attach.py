"""A Trainer goes on where a precision fails, as a run does that was switched by hand, bit for bit."""

from __future__ import annotations

import copy
import functools
import logging
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn
from training.trainer_runs import Fault, Injector, Run, Setting, difference, run
from transformers import Trainer, TrainerCallback

import safe_dtype
from safe_dtype.errors import NoDtypeLeft, StrictModeError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.training.trainer.attach import is_attached

SIXTEEN_BITS = (BFLOAT16, FLOAT16)
EVERY = (BFLOAT16, FLOAT16, FLOAT32)


@functools.cache
def expected(setting_by_hand: tuple[int, Dtype], **other: Any) -> dict[str, Any]:
    """Return all of a run that was switched by hand, and that nothing watches."""
    return everything(run(Setting(by_hand=setting_by_hand, attached=False, **other)))


def everything(of: Run) -> dict[str, Any]:
    """Return all that has to be equal of a run that ended well."""
    assert of.error is None
    return of.everything()


CASES = {
    "forward raises": (Fault(2), FLOAT16, 1),
    "backward raises": (Fault(2, "backward"), FLOAT16, 1),
    "loss is NaN": (Fault(2, "nan"), FLOAT16, 1),
    "gradients overflow": (Fault(2, "inf"), FLOAT16, 1),
    "both 16-bit dtypes": (Fault(2, dtypes=SIXTEEN_BITS), FLOAT32, 1),
    "NaN in both": (Fault(2, "nan", SIXTEEN_BITS), FLOAT32, 1),
    "first step": (Fault(0), FLOAT16, 1),
    "first of two micro-batches": (Fault(2, micro=0), FLOAT16, 2),
    "second of two": (Fault(2, micro=1), FLOAT16, 2),
    "NaN in the first of two": (Fault(2, "nan", micro=0), FLOAT16, 2),
    "backward of the first of two": (Fault(2, "backward", micro=0), FLOAT16, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_as_switched_by_hand(case: str) -> None:
    """Whatever fails, the run is that which was switched at that step: not a bit of it differs."""
    fault, dtype, accumulation = CASES[case]
    ours = run(Setting(fault, accumulation=accumulation))
    assert difference(everything(ours), expected((fault.step, dtype), accumulation=accumulation)) == ""
    assert ours.trainer.state.global_step == 5
    assert {int(state["step"]) for state in ours.trainer.optimizer.state.values()} == {5}
    assert [row["precision"] for row in ours.rows] == ["bfloat16"] * fault.step + [dtype.name] * (5 - fault.step)


def test_nothing_fails() -> None:
    """Where nothing fails, the run is that of the Trainer alone, and no pass is made twice."""
    ours, plain = run(Setting()), run(Setting(attached=False))
    assert difference(everything(ours), everything(plain)) == ""
    assert ours.passes == plain.passes == 5


def test_norm_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells whether gradients are finite is what the Trainer clips by: they are read once."""
    norms: list[Any] = []
    get_total_norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *a, **k: norms.append(a) or get_total_norm(*a, **k))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", None)
    assert run(Setting()).error is None
    assert len(norms) == 5


def test_precisions_differ() -> None:
    """The comparison of two runs sees in which precision one of them was."""
    assert difference(expected((2, FLOAT16)), expected((2, FLOAT32))) != ""
    assert difference(expected((2, FLOAT16)), expected((3, FLOAT16))) != ""


@pytest.mark.parametrize("begin", [65536.0, 2.0**40])
def test_overflow_is_retried(begin: float) -> None:
    """A batch that overflows in float16 runs again with a smaller scale: none is dropped, as a scaler alone does."""
    ours = run(Setting(Fault(2), loss_factor=3000.0, accumulation=2, init_scale=begin))
    assert ours.scale < begin
    by_hand = run(
        Setting(by_hand=(2, FLOAT16), init_scale=ours.scale, attached=False, loss_factor=3000.0, accumulation=2)
    )
    assert difference(everything(ours), everything(by_hand)) == ""
    assert {int(state["step"]) for state in ours.trainer.optimizer.state.values()} == {5}


def test_overflow_is_dropped_without_us() -> None:
    """A scaler alone drops the same batches, while the Trainer counts their steps."""
    plain = run(Setting(by_hand=(2, FLOAT16), attached=False, loss_factor=3000.0, accumulation=2))
    assert plain.trainer.state.global_step == 5
    assert max(int(state["step"]) for state in plain.trainer.optimizer.state.values()) < 5


def test_other_errors_come_through() -> None:
    """An error that no dtype cures is raised as it is, after one attempt."""
    ours = run(Setting(Fault(2, "key", EVERY), accumulation=2))
    assert type(ours.error) is KeyError
    assert str(ours.error) == "'labels'"
    assert ours.passes == 2 * 2 + 1
    assert ours.trainer.accelerator.mixed_precision == "bf16"


def test_nothing_helps() -> None:
    """Where every dtype gives NaN the run ends, and weights and optimizer are those of the last good step."""
    ours = run(Setting(Fault(2, "nan", EVERY)))
    assert type(ours.error) is NoDtypeLeft
    assert {int(state["step"]) for state in ours.trainer.optimizer.state.values()} == {2}
    assert all(bool(torch.isfinite(weight).all()) for weight in ours.trainer.model.parameters())


class NoLabels(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Steps 2 and 4 have a batch without any label, the first one of their window."""

    micro = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count micro-batches as the Trainer asks for them."""
        self.micro = self.micro + 1 if self.accelerator.gradient_accumulation_steps > 1 else 1
        return super().training_step(*args, **kwargs)  # type: ignore[no-any-return]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Let nothing be counted."""
        if self.state.global_step in (2, 4) and self.micro % 2 == 1:
            inputs["labels"] = torch.full_like(inputs["labels"], -100)
        return model(**inputs).loss  # type: ignore[no-any-return]


@pytest.mark.parametrize("policy", [None, "strict"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batch_without_labels(accumulation: int, policy: str | None) -> None:
    """Its loss is NaN in every dtype and its gradients are finite: the run is the plain one. It is tried in all of them once."""
    common: dict[str, Any] = {
        "trainer": NoLabels,
        "accumulation": accumulation,
        "steps": 6,
        "arguments": {"logging_steps": 3},
    }
    ours, plain = run(Setting(policy=policy, **common)), run(Setting(attached=False, **common))
    assert (ours.error, plain.error) == (None, None)
    assert difference(everything(ours), everything(plain)) == ""
    assert all(bool(torch.isfinite(weight).all()) for weight in ours.trainer.model.parameters())
    assert [row["precision"] for row in ours.rows] == ["bfloat16", "bfloat16"]
    assert ours.passes == plain.passes + (0 if policy else 3 * accumulation)


def test_batch_without_labels_in_float16() -> None:
    """The loss scale is again the one from before, and not that of a new scaler."""
    common: dict[str, Any] = {"dtype": FLOAT16, "init_scale": 64.0, "steps": 6}
    ours, others = run(Setting(trainer=NoLabels, **common)), run(Setting(**common))
    assert (ours.error, ours.scale) == (None, others.scale)
    assert ours.scale != 64.0
    assert {row["precision"] for row in ours.rows} == {"float16"}


def test_logged_sums() -> None:
    """A row of the log that covers several steps adds up the losses of the attempts that counted."""
    rows = {"logging_steps": 3}
    ours = run(Setting(Fault(1, "nan", micro=1), accumulation=2, steps=3, arguments=rows))
    by_hand = run(Setting(by_hand=(1, FLOAT16), attached=False, accumulation=2, steps=3, arguments=rows))
    assert [row["loss"] for row in ours.rows] == [row["loss"] for row in by_hand.rows]
    assert ours.rows[0]["nonfinite_steps"] == ours.rows[0]["fallbacks"] == 1


class OwnSteps(Trainer):  # type: ignore[misc]  # transformers is not typed
    """A subclass as TRL's are: its own loss, which takes the labels out, metrics in lists, a step with a counter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics_of_steps: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        self.steps_begun = 0

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the negative log-likelihood, and note it."""
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        self.metrics_of_steps["train"]["nll"].append(loss.item())
        return (loss, logits) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Count."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.steps_begun += 1
        return loss


@pytest.mark.parametrize("fault", [Fault(2, "nan", micro=1), Fault(2, "backward", micro=0)], ids=["nan", "backward"])
def test_subclass(fault: Fault) -> None:
    """A subclass's own loss and step are called as they are; what they count of a failed attempt is taken back."""
    ours = run(Setting(fault, accumulation=2, trainer=OwnSteps))
    by_hand = run(Setting(by_hand=(2, FLOAT16), attached=False, accumulation=2, trainer=OwnSteps))
    assert difference(everything(ours), everything(by_hand)) == ""
    assert ours.trainer.metrics_of_steps == by_hand.trainer.metrics_of_steps
    assert ours.trainer.steps_begun == by_hand.trainer.steps_begun == 10


class Shifting(Trainer):
    """Writes to its inputs."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Train on the next tokens of the vocabulary."""
        inputs["input_ids"].add_(1).remainder_(64)
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("step", [0, 2])
def test_inputs_that_a_step_writes_to(step: int) -> None:
    """They are written to once, in the first window and in later ones."""
    ours = run(Setting(Fault(step, "nan", SIXTEEN_BITS), trainer=Shifting, accumulation=2))
    assert difference(everything(ours), expected((step, FLOAT32), trainer=Shifting, accumulation=2)) == ""


def test_float16_on_a_cpu() -> None:
    """fp16=True on a CPU, where accelerate trains in float32 without a word, is float16 with a scaler."""
    ours = run(Setting(dtype=FLOAT16))
    assert {row["precision"] for row in ours.rows} == {"float16"}
    assert difference(everything(ours), expected((0, FLOAT16))) == ""


def test_without_clipping() -> None:
    """Without gradient clipping the gradients are judged all the same."""
    unclipped = {"max_grad_norm": 0.0}
    ours = run(Setting(Fault(2, "inf"), arguments=unclipped))
    by_hand = run(Setting(by_hand=(2, FLOAT16), attached=False, arguments=unclipped))
    assert difference(everything(ours), everything(by_hand)) == ""


@pytest.mark.needs("transformers>=5.23")  # older ones checkpoint all layers or none
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    """Layers that are computed again in backward are computed in the precision of their window."""
    saving = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    ours = run(Setting(Fault(2, "inf"), arguments=saving))
    assert (
        difference(everything(ours), everything(run(Setting(by_hand=(2, FLOAT16), attached=False, arguments=saving))))
        == ""
    )


def test_lora() -> None:
    """Adapters that are trained on a frozen model in 16 bit go on in the next dtype; the base is not touched."""
    ours = run(Setting(Fault(2), change=with_adapters))
    by_hand = run(Setting(by_hand=(2, FLOAT16), attached=False, change=with_adapters))
    assert difference(everything(ours), everything(by_hand)) == ""


def with_adapters(model: nn.Module) -> nn.Module:
    """Return a model in bfloat16 with float32 adapters."""
    from peft import LoraConfig, get_peft_model

    adapted: nn.Module = get_peft_model(
        model.bfloat16(), LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear")
    )
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapted


@pytest.mark.parametrize("kind", ["raise", "nan"])
def test_strict(kind: str) -> None:
    """In strict mode no precision is changed: the run ends before a step is applied, and the error names the others."""
    ours = run(Setting(Fault(2, kind), policy="strict"))
    assert type(ours.error) is StrictModeError
    assert "at optimizer step 2. Not tried: float16, float32. Next: train in one of these" in str(ours.error)
    assert "Would work" not in str(ours.error)
    assert ours.trainer.accelerator.mixed_precision == "bf16"
    assert {int(state["step"]) for state in ours.trainer.optimizer.state.values()} == {2}


def test_ladder() -> None:
    """The ladder of the policy names where to go on."""
    ours = run(Setting(Fault(2), policy="ladder=bf16>fp32"))
    assert difference(everything(ours), expected((2, FLOAT32))) == ""


def test_one_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A change of precision is one warning, with its reason, its step and the two dtypes."""
    with caplog.at_level(logging.WARNING, "safe_dtype"):
        run(Setting(Fault(2)))
    (record,) = caplog.records
    assert "not implemented for 'BFloat16'" in record.getMessage()
    assert (record.step, record.before, record.after) == (2, "bfloat16", "float16")


def test_attached_once() -> None:
    """A second call changes nothing, and returns the Trainer."""
    ours = run(Setting())
    step = ours.trainer.training_step
    assert safe_dtype.attach(ours.trainer, "strict") is ours.trainer
    assert ours.trainer.training_step is step


def test_copies_train_themselves() -> None:
    """A deep copy of an attached Trainer is attached, and leaves the first one as it was, before a run and after it."""
    ours = run(Setting(arguments={"lr_scheduler_type": "constant"})).trainer
    before = {name: weight.detach().clone() for name, weight in ours.model.named_parameters()}
    other = copy.deepcopy(ours)
    other.train()
    assert is_attached(other)
    assert difference(before, dict(ours.model.named_parameters())) == ""
    assert [row["precision"] for row in other.state.log_history if "loss" in row] == ["bfloat16"] * 5


def test_trainers_with_the_same_arguments() -> None:
    """What one Trainer came down to is its own: others of the process, made before or after it, begin as they ask for."""
    first = run(Setting(Fault(1, dtypes=SIXTEEN_BITS), steps=2)).trainer

    def another() -> Any:
        model, texts = copy.deepcopy(first.model), first.train_dataset
        return safe_dtype.attach(Trainer(model, first.args, train_dataset=texts, callbacks=[]))

    def precisions(of: Any) -> list[str]:
        return [row["precision"] for row in of.state.log_history if "loss" in row]

    second = another()
    second.train()
    assert (precisions(first), precisions(second)) == (["bfloat16", "float32"], ["bfloat16"] * 2)
    first.train()
    assert precisions(first) == ["float32"] * 2
    third = Injector(another(), Fault(1)).trainer
    third.train()
    third.train()
    second.train()
    assert (precisions(third), precisions(second)) == (["float16"] * 2, ["bfloat16"] * 2)


class Interrupting(TrainerCallback):  # type: ignore[misc]
    """Stops in the middle of an accumulation, once."""

    def __init__(self) -> None:
        self.is_done = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop in the third step."""
        if state.global_step == 2 and not self.is_done:
            self.is_done = True
            raise KeyboardInterrupt


def test_interrupted_window() -> None:
    """A run that was interrupted within a window begins the next one with a whole window."""
    ours = run(Setting(accumulation=2, steps=2))
    trainer = ours.trainer
    trainer.args.max_steps = 4
    trainer.add_callback(Interrupting())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert trainer.state.global_step == 4
