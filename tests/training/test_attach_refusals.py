"""What a Trainer cannot be attached for is said before its first step."""

from __future__ import annotations

import logging

import pytest
from training.trainer_runs import Setting, run

import safe_dtype
from safe_dtype.errors import HalfParametersError, NeedsRestart, PolicyError
from safe_dtype.facts import FLOAT16
from safe_dtype.training.trainer.attach import is_attached


def test_half_parameters_are_refused() -> None:
    """Parameters that are trained in 16 bit have no float32 masters: said before the first step."""
    ours = run(Setting(change=lambda model: model.bfloat16()))
    assert type(ours.error) is HalfParametersError


def test_engines_are_refused() -> None:
    """A Trainer whose engine has the precision built in is not attached, and the engine is named."""
    trainer = run(Setting(attached=False)).trainer
    accelerator = trainer.accelerator
    accelerator.state.distributed_type = type(accelerator.distributed_type).DEEPSPEED
    step = trainer.training_step
    with pytest.raises(NeedsRestart, match=r"DeepSpeed.*Next: train it without the guard; or by DDP or FSDP2"):
        safe_dtype.attach(trainer)
    assert trainer.training_step == step


def test_policy_is_read_first() -> None:
    """A policy that cannot be read is refused before anything is wrapped."""
    trainer = run(Setting(attached=False)).trainer
    with pytest.raises(PolicyError):
        safe_dtype.attach(trainer, "fast")
    assert "training_step" not in vars(trainer)


def test_codes_are_refused() -> None:
    """A policy that rounds weights as they are loaded is an error for a Trainer, whose model is there."""
    trainer = run(Setting(attached=False, steps=1)).trainer
    with pytest.raises(PolicyError, match=r"int8 rounds weights as they are loaded.*Next: write it like 'auto,"):
        safe_dtype.attach(trainer, "int8")
    assert not is_attached(trainer)


def test_float16_on_a_cpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """What may be many times slower than float32 does not begin without a word."""
    with caplog.at_level(logging.WARNING, "safe_dtype"):
        run(Setting(dtype=FLOAT16, steps=1))
    (record,) = caplog.records
    assert "fp16=True was asked for on a CPU" in record.getMessage()
    assert "Next: bf16=True" in record.getMessage()
