"""What runs inside a step is a part of it; loops are guarded step by step; models in models are guarded once."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
import transformers as tf
from guarding.generators import DOWN, IDS, generator
from torch import nn
from transformers import PreTrainedModel

from safe_dtype import guard, report, unguard
from safe_dtype.errors import NotGuardedError
from safe_dtype.guarding.state import guard_of
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32
INNER = DOWN.removeprefix("model.")


class Chat(tf.Qwen3ForCausalLM):  # type: ignore[misc]  # transformers has no types
    """A model with methods as the code of a repository has them."""

    def sample(self, ids: torch.Tensor, number: int) -> torch.Tensor:
        """Append the best token, so often."""
        for _ in range(number):
            ids = torch.cat([ids, self(ids).logits[:, -1:].argmax(-1)], 1)
        return ids

    def sample_by_name(self, ids: torch.Tensor, number: int) -> torch.Tensor:
        """Append the best token, so often."""
        for _ in range(number):
            ids = torch.cat([ids, self.forward(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        return ids

    def chat(self, ids: torch.Tensor, number: int) -> torch.Tensor:
        """Append the best token, so often."""
        return self.generate(ids, max_new_tokens=number, do_sample=False)

    def say(self, text: str, number: int) -> torch.Tensor:
        """Make tokens of a text, and append the best, so often."""
        return self.chat(torch.tensor([[len(word) for word in text.split()]]), number)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean of the last hidden states, in a space of its own."""
        return self.lm_head(self.model(ids).last_hidden_state.mean(1))


def chat() -> Any:
    """Return one in bfloat16, with the weights of `generator()`."""
    plain = generator()
    model = Chat(plain.config).eval().to(BF16)
    model.load_state_dict(plain.state_dict())
    return model


def in_float32(model: Any) -> Any:
    """Return a copy of it in float32."""
    copied = copy.deepcopy(model)
    recast(copied, {BF16}, FP32)
    return copied


@pytest.mark.parametrize("method", ["sample", "sample_by_name", "chat"])
@pytest.mark.parametrize("kind", ["nan", "cublas"])
def test_loops(method: str, kind: str) -> None:
    """A method that runs the whole model again and again is guarded step by step: it goes on from the step that failed."""
    model, plain = guard(chat()), chat()
    truth = in_float32(plain)
    with torch.no_grad(), fault(model, DOWN, kind, call=2):
        tokens = getattr(model, method)(IDS[1:], 5)
        # Two tokens of bfloat16, the others of float32.
        wanted = getattr(truth, method)(getattr(plain, method)(IDS[1:], 2), 3)
    assert torch.equal(tokens, wanted)
    (event,) = report(model).events
    assert (event.step, event.module, event.restarted) == (2, DOWN, False)


def test_text_to_text() -> None:
    """A method that is handed a text makes its steps itself, and those are guarded."""
    model, truth = guard(chat()), in_float32(chat())
    with torch.no_grad(), fault(model, DOWN, "nan"):
        assert torch.equal(model.say("a bb ccc", 3), truth.say("a bb ccc", 3))
    assert [event.step for event in report(model).events] == [0]


@pytest.mark.parametrize("module", [DOWN, "lm_head"])
@pytest.mark.parametrize("kind", ["nan", "cublas"])
def test_parts_of_a_method(module: str, kind: str) -> None:
    """What a method runs is one step: it is made again as a whole, in float32 from its beginning."""
    model, truth = guard(chat()), in_float32(chat())
    with torch.no_grad(), fault(model, module, kind):
        assert torch.equal(model.embed(IDS), truth.embed(IDS))
    assert [event.module for event in report(model).events] == [module]


# Models in models


def test_both_guards() -> None:
    """A guard on a part leaves that on the whole: each answers for the calls that it is entered by."""
    model = guard(generator())
    guard(model.model)
    with fault(model, DOWN, "nan"):
        model(input_ids=IDS)
    assert (len(report(model).events), len(report(model.model).events)) == (1, 0)
    recast(model, {FP32}, BF16)
    with fault(model, DOWN, "nan"):
        model.model(input_ids=IDS)
    assert (len(report(model).events), len(report(model.model).events)) == (1, 1)


@pytest.mark.parametrize("inner_first", [True, False])
def test_order(inner_first: bool) -> None:
    """A part that was guarded before or after the whole keeps its guard, and the whole keeps its own."""
    model = generator()
    for part in (model.model, model) if inner_first else (model, model.model):
        guard(part)
    assert guard_of(model) is not guard_of(model.model)
    with fault(model, DOWN, "cublas"):
        model.model.forward(input_ids=IDS)
    assert (len(report(model).events), len(report(model.model).events)) == (0, 1)


def test_let_go_one_by_one() -> None:
    """Letting the part go leaves it in the care of the whole; letting the whole go leaves the part's own."""
    gc.collect()
    plain = dict(vars(PreTrainedModel))
    model = guard(generator())
    guard(model.model)
    unguard(model.model)
    with fault(model, DOWN, "nan"):
        model.model(input_ids=IDS)
    assert len(report(model).events) == 1
    guard(model.model)
    unguard(model)
    recast(model, {FP32}, BF16)
    with fault(model, DOWN, "nan"):
        model.model(input_ids=IDS)
    assert len(report(model.model).events) == 1
    unguard(model.model)
    with pytest.raises(NotGuardedError):
        report(model)
    assert dict(vars(PreTrainedModel)) == plain
    assert "forward" in vars(tf.Qwen3Model)
    assert vars(tf.Qwen3Model)["forward"].__qualname__ == "Qwen3Model.forward"


class Pair(nn.Module):
    """A model around others: one that is its own, and one that it merely knows."""

    def __init__(self, own: Any, teacher: Any) -> None:
        super().__init__()
        self.own = own
        self.teachers = [teacher]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        return self.own(ids).last_hidden_state + self.teachers[0](ids).last_hidden_state.to(self.own.dtype)


def test_not_its_own() -> None:
    """A guarded model that another one calls but does not contain is guarded by its own guard."""
    teacher = guard(generator().model)
    pair = guard(Pair(generator().model, teacher).eval())
    with torch.no_grad(), fault(teacher, INNER, "nan"):
        assert pair(IDS).isfinite().all()
    assert (len(report(pair).events), len(report(teacher).events)) == (0, 1)
    assert pair.own.dtype == BF16
    with torch.no_grad(), fault(pair.own, INNER, "nan"):
        assert pair(IDS).isfinite().all()
    assert (len(report(pair).events), len(report(teacher).events)) == (1, 1)


@pytest.mark.parametrize("first", [0, 1])
def test_shared(first: int) -> None:
    """Two guarded models with one inside both: each call is in the care of the one that was called."""
    inner = generator().model
    both = [guard(Pair(inner, inner).eval()) for _ in range(2)]
    with torch.no_grad(), fault(inner, INNER, "nan"):
        both[first](IDS)
    assert [len(report(model).events) for model in both] == [1 - first, first]
    unguard(both[1])
    recast(inner, {FP32}, BF16)
    with torch.no_grad(), fault(inner, INNER, "nan"):
        inner(IDS)
    assert guard_of(inner) is guard_of(both[0])
    unguard(both[0])
    assert guard_of(inner) is None


def test_taken_out() -> None:
    """A part that was taken out of its model goes free with it."""
    model = guard(generator())
    inner, model.model = model.model, generator().model
    unguard(model)
    assert guard_of(inner) is None
