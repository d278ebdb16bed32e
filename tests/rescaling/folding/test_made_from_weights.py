"""Adapters that are made from the weights of a rescaled model are those that the model as it was would give."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from engineered import engineered
from rescaling.folding.test_watch import logits, rescaled

from safe_dtype.rescaling import rescaled_of


@pytest.mark.parametrize(
    "given",
    [{"use_dora": True}, {"use_dora": True, "init_lora_weights": False}, {"init_lora_weights": "pissa"},
     {"init_lora_weights": "olora"}, {"init_lora_weights": "orthogonal"}],
    ids=["dora", "random dora", "pissa", "olora", "orthogonal"],
)  # fmt: skip
def test_adapter_made_from_the_weights(given: dict[str, Any]) -> None:
    """An adapter that is made anew from moved weights is the one that the model as it was would give."""
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj", "q_proj"], r=4, **given)
    expected, found = [], []
    for model, said in ((engineered("llama"), expected), (rescaled()[0], found)):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, config).eval()
        with torch.no_grad():  # what it adds is seen only where it is no longer what was taken out
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(1.5)
        said += [logits(adapted, "llama"), logits(adapted.merge_and_unload(), "llama")]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_adapter_made_after_a_raise() -> None:
    """A raise since the last prompt is no writing into the weights."""
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj"], r=4, init_lora_weights=False)
    torch.manual_seed(0)
    expected = logits(peft.get_peft_model(engineered("llama"), config).eval(), "llama")
    model, _ = rescaled()
    logits(model, "llama")
    rescaled_of(model).raise_bits(2)  # type: ignore[union-attr]
    torch.manual_seed(0)
    torch.testing.assert_close(
        logits(peft.get_peft_model(model, config).eval(), "llama"), expected, rtol=1e-4, atol=1e-3
    )
