"""What belongs to a guard: its ladder and its copies."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from guarding.generators import DOWN, tiny
from torch import nn

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, Dtype, guard, report
from safe_dtype.errors import NotGuardedError
from safe_dtype.guarding.state import Guard, guard_of, torch_dtype
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_deep_copies_are_guarded() -> None:
    """A copy has a guard of its own: what happens to one does not happen to the other."""
    model = guard(tiny())
    copied = copy.deepcopy(model)
    with fault(copied, DOWN, "nan"):
        copied.generate(IDS, max_new_tokens=2)
    assert (len(report(copied).events), len(report(model).events)) == (1, 0)
    assert (copied.dtype, model.dtype) == (FP32, BF16)
    part = copy.deepcopy(model.model)
    with pytest.raises(NotGuardedError):
        report(part)


def test_pickles_carry_nothing_of_ours() -> None:
    """A pickled model and one of `torch.save` name no module of safe_dtype, and load as plain models."""
    model = guard(tiny())
    file = io.BytesIO()
    torch.save(model, file)
    for raw in (pickle.dumps(model), file.getvalue()):
        assert b"safe_dtype." not in raw
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with pytest.raises(NotGuardedError):
        report(again)
    assert not any("safe_dtype" in name for name in model.state_dict())


def state_of(model: nn.Module, **wishes: Any) -> Guard:
    """Guard `model`, and return the state of its guard."""
    state = guard_of(guard(model, **wishes))
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("policy", "ladder"),
    [("auto", (FLOAT32,)), ("ladder=bf16>fp16", (BFLOAT16, FLOAT16)), ("ladder=fp16>fp32", (FLOAT16, FLOAT32))],
)
def test_ladder(policy: str, ladder: tuple[Dtype, ...]) -> None:
    """float32 ends the ladder, unless the policy has one of its own."""
    assert state_of(tiny(), policy=policy).ladder() == ladder


def test_parts_answer_to_their_model() -> None:
    """The models inside a guarded model have its guard; plain modules have none."""
    model = tiny()
    state = state_of(model)
    assert guard_of(model.model) is state
    assert guard_of(model.lm_head) is None


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    """The dtype of most of the numbers is that of the model; float64 is none of ours."""
    model = nn.Linear(2, 2).to(dtype)
    ours = state_of(model).dtype()
    assert (torch_dtype(ours) if ours else torch.float64) == dtype
