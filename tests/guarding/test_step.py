"""One step of a guarded model: what comes through as it is, and what it is brought up to date with."""

from __future__ import annotations

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny

from safe_dtype import guard, report
from safe_dtype.errors import CannotResumeError
from safe_dtype.guarding.state import guard_of
from safe_dtype.guarding.step import up_to_date
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("kind", ["out_of_memory", "shape"])
def test_others_come_through(kind: str) -> None:
    """What another dtype does not cure is raised as it was, and nothing has changed."""
    model = guard(tiny())
    with fault(model, DOWN, kind) as put, pytest.raises(RuntimeError) as caught:
        model.generate(IDS, max_new_tokens=2)
    assert put.fired == 1
    assert caught.value.__cause__ is None
    assert report(model).events == ()
    assert model.dtype == BF16


def test_unknown_state_is_not_guessed() -> None:
    """A call that continues from a state of an unknown class is refused clearly, with the model cured."""

    class OwnCache(transformers.DynamicCache):
        pass

    model = guard(tiny())
    with fault(model, DOWN, "cublas"), pytest.raises(CannotResumeError, match="call again; the model is in float32"):
        model(input_ids=IDS, past_key_values=OwnCache())
    model(input_ids=IDS, past_key_values=OwnCache())


def test_training_is_left_alone() -> None:
    """In training mode a failure comes through, and a NaN too."""
    model = guard(tiny()).train()
    with fault(model, DOWN, "cublas"), pytest.raises(RuntimeError, match="CUBLAS"):
        model(input_ids=IDS)
    with fault(model, DOWN, "nan"):
        assert model(input_ids=IDS, labels=IDS).loss.isnan()
    assert report(model).events == ()


def test_up_to_date() -> None:
    """Caches, model outputs and tensors of a dtype that the model has left are cast; other inputs stay as they are."""
    model = guard(tiny())
    with torch.no_grad():
        earlier = model(input_ids=IDS, use_cache=True, output_hidden_states=True)
    with fault(model, DOWN, "cublas"):
        model(input_ids=IDS)
    state = guard_of(model)
    assert state is not None
    cache, hidden = earlier.past_key_values, earlier.hidden_states[-1]
    double = torch.ones(2, dtype=torch.float64)
    args, kwargs = up_to_date(
        state, (hidden, IDS), {"past_key_values": cache, "encoder_outputs": earlier, "other": double}
    )
    assert (args[0].dtype, args[1] is IDS, kwargs["other"].dtype) == (FP32, True, torch.float64)
    assert {layer.keys.dtype for layer in cache.layers} == {FP32}
    assert kwargs["encoder_outputs"].logits.dtype == earlier.logits.dtype == FP32


def test_steps_are_counted() -> None:
    """An event names the step: of the generation, or of all the calls outside of one."""
    model = guard(tiny())
    for _ in range(3):
        model(input_ids=IDS)
    with fault(model, DOWN, "cublas"):
        model(input_ids=IDS)
    other = guard(tiny())
    other(input_ids=IDS)
    with fault(other, DOWN, "cublas", call=2):
        other.generate(IDS, max_new_tokens=4)
    assert [report(one).events[0].step for one in (model, other)] == [3, 2]
