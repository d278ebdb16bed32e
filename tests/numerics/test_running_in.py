"""A model in float16 computes what it would in another dtype, from the weights that it has."""

from __future__ import annotations

import copy

import pytest
import torch
from engineered import FAMILIES, engineered, prompts
from torch import nn

from safe_dtype.numerics import running_in


@pytest.mark.parametrize("family", FAMILIES)
def test_bit_for_bit_what_a_float32_model_computes(family: str) -> None:
    """Whatever leaves float16's range on the way: the results are those of the same weights in float32."""
    model = engineered(family).half()
    batch = prompts(family, count=1, tokens=24, seed=3)[0]
    with torch.inference_mode():
        with running_in(torch.float32):
            found = model(**batch).logits
        truth = copy.deepcopy(model).float()(**batch).logits
    assert found.dtype == torch.float32
    assert torch.equal(found, truth)
    assert {one.dtype for one in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("family", ["qwen3", "t5", "gpt_oss"])
def test_in_bfloat16(family: str) -> None:
    """It is bfloat16's rounding, too."""
    model = engineered(family).half()
    batch = prompts(family, count=1, tokens=24, seed=3)[0]
    with torch.inference_mode():
        with running_in(torch.bfloat16):
            found = model(**batch).logits
        truth = copy.deepcopy(model).bfloat16()(**batch).logits
    assert torch.equal(found, truth)


def test_large_matrices_in_pieces() -> None:
    """A head of many rows is cast in pieces, with a bias or without."""
    torch.manual_seed(0)
    for bias in (False, True):
        head = nn.Linear(64, 100_000, bias=bias).half()
        x = torch.randn(2, 5, 64).half()
        with torch.inference_mode(), running_in(torch.float32):
            found = head(x)
        torch.testing.assert_close(found, copy.deepcopy(head).float()(x.float()))


def test_what_a_module_keeps_stays_in_its_dtype() -> None:
    """A buffer that is written in place stays in float16."""
    norm = nn.BatchNorm1d(4).half().train()
    with torch.no_grad(), running_in(torch.float32):
        norm.running_mean.add_(torch.ones(4, dtype=torch.float16))
    assert norm.running_mean.dtype == torch.float16
    assert torch.equal(norm.running_mean, torch.ones(4, dtype=torch.float16))
