"""Models on cards that hold bfloat16 and do not compute in it: loaded, patched and generated with, as their owners do."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import engineered
import pytest
import torch
import transformers as tf
from accelerator.rehearsal import Rehearsal
from torch_musa.cards import CARDS

import safe_dtype
from safe_dtype import SafeAutoModelForCausalLM, plan_of, report
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32

MEASURED = "measuring whether float16 holds its activations"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint that float16 cannot hold as it is."""
    return engineered.saved("qwen3", tmp_path_factory.mktemp("overflowing") / "model")


def insert(rehearsal: Rehearsal, card: str) -> None:
    """Let the only device be this card, slower in all dtypes: else nothing of a tiny model would take any time."""
    rehearsal.set_devices(1)
    rehearsal.insert(card)
    rates = {dtype: (reading / 1e5, multiplying / 1e5) for dtype, (reading, multiplying) in CARDS[card].rates.items()}
    rehearsal.backend.insert(replace(CARDS[card], rates=rates), 0)


def generated(model: tf.PreTrainedModel) -> torch.Tensor:
    """Return the tokens of a short greedy generation, on the host."""
    prompt = engineered.prompts("qwen3", count=1, tokens=12, seed=5)[0]["input_ids"].to(model.device)
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False
    ).cpu()  # fmt: skip


@pytest.mark.parametrize("card", ["T4", pytest.param("V100", marks=pytest.mark.slow)])
def test_first_and_second_load(
    rehearsal: Rehearsal, overflowing: Path, card: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first load measures and rescales into float16, the second measures nothing; both generate as float32 does."""
    insert(rehearsal, card)
    expected = generated(tf.AutoModelForCausalLM.from_pretrained(overflowing, dtype=torch.float32))
    for is_first in (True, False):
        caplog.clear()
        model = SafeAutoModelForCausalLM.from_pretrained(overflowing, device_map="auto")
        assert (MEASURED in caplog.text) is is_first
        assert (plan_of(model).storage, model.device.type) == (FLOAT16, rehearsal.device().type)
        assert plan_of(model).rescale
        assert torch.equal(generated(model), expected)
        assert not report(model).events


@pytest.mark.parametrize("how", ["ladder=fp16>fp32", pytest.param("dtype", marks=pytest.mark.slow)])
def test_a_program_asks_for_float16(rehearsal: Rehearsal, overflowing: Path, how: str) -> None:
    """A program that knows nothing of safe_dtype gets it rescaled where a policy or its own dtype asks for float16."""
    insert(rehearsal, "T4")
    ordered = {"dtype": torch.float16} if how == "dtype" else {}
    with safe_dtype.patched("" if ordered else how):
        model = tf.AutoModelForCausalLM.from_pretrained(overflowing, device_map=str(rehearsal.device()), **ordered)
    assert plan_of(model).storage == FLOAT16
    assert plan_of(model).rescale


def test_a_program_that_asks_nothing(
    rehearsal: Rehearsal, overflowing: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is rounded for it, since it may train; one line says how to get what is faster."""
    insert(rehearsal, "T4")
    with caplog.at_level(logging.INFO, "safe_dtype"), safe_dtype.patched():
        model = tf.AutoModelForCausalLM.from_pretrained(overflowing, device_map=str(rehearsal.device()))
    assert plan_of(model).storage in (BFLOAT16, FLOAT32)
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("telling")]
    assert "; float16 would take 0." in line
    assert line.endswith(" the time, but rounds the weights: the policy ladder=fp16>fp32 asks for it")
