"""Rescales folded into real models: the same results, everything brought back, adapters followed."""

from __future__ import annotations

import copy
import io
from typing import Any

import peft
import pytest
import torch
from engineered import engineered, prompts
from rescaling.gauges_by_hand import product, residual, scores
from torch import Tensor

from safe_dtype.errors import RescaleError
from safe_dtype.facts import Gauge, Move, Part, Rescale, Rows
from safe_dtype.rescaling import Fold


def logits(model: Any, family: str) -> Tensor:
    """Return what `model` says of a prompt that makes it overflow in float16."""
    with torch.inference_mode():
        found: Tensor = model(**prompts(family, count=1, tokens=24, seed=3)[0]).logits
    return found


def weights(model: Any) -> dict[str, Tensor]:
    """Return copies of all parameters."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_results_are_the_same_bits(family: str, dtype: torch.dtype) -> None:
    """A residual rescale changes weights and no bit of the results."""
    model = engineered(family).to(dtype)
    before, plain = weights(model), logits(model, family)
    Fold(model).move_to(Rescale(((residual(model), 6),)))
    assert torch.equal(logits(model, family), plain)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(model.get_parameter(name), before[name] / 64)


def test_undo_brings_everything_back() -> None:
    """Weights, eps and hooks are as they were before the fold."""
    model = engineered("qwen3").bfloat16()
    before, eps = weights(model), model.model.norm.variance_epsilon
    hooks = len(model.model.layers[0]._forward_pre_hooks)
    fold = Fold(model)
    fold.move_to(Rescale(((residual(model), 7),)))
    assert model.model.norm.variance_epsilon == eps / 4**7
    fold.undo()
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert (model.model.norm.variance_epsilon, len(model.model.layers[0]._forward_pre_hooks)) == (eps, hooks)


def test_moving_on_is_moving_once() -> None:
    """From 4 to 9 bits in place is what 9 bits at once are."""
    first, second = engineered("llama"), engineered("llama")
    fold = Fold(first)
    for bits in (4, 9):
        fold.move_to(Rescale(((residual(first), bits),)))
    Fold(second).move_to(Rescale(((residual(second), 9),)))
    assert all(torch.equal(one, second.get_parameter(name)) for name, one in first.named_parameters())
    assert first.model.norm.variance_epsilon == second.model.norm.variance_epsilon


def test_rows() -> None:
    """A gauge may move half of a fused projection; two gauges at once multiply what both move."""
    model = engineered("phi3_interior")
    plain = logits(model, "phi3_interior")
    fold = Fold(model)
    fold.move_to(Rescale(((product(model), 5),)))
    assert torch.equal(logits(model, "phi3_interior"), plain)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    assert fold.moved()[name] == {Rows(-2, 0.5, 1.0): -5}


def test_numbers() -> None:
    """The scaling of attention scores is moved as an attribute, and eager attention computes the same bits."""
    model = engineered("qwen2_scores")
    plain = logits(model, "qwen2_scores")
    Fold(model).move_to(Rescale(((scores(model), 3),)))
    assert torch.equal(logits(model, "qwen2_scores"), plain)


@pytest.mark.parametrize(
    ("move", "said"),
    [
        pytest.param(Move(Part.WEIGHT, "model.layers.9.mlp.down_proj.weight", -1), "layers.9", id="no-such-module"),
        pytest.param(Move(Part.WEIGHT, "model.layers.0.mlp.down_proj.bias", -1), "no parameter", id="no-such-weight"),
        pytest.param(Move(Part.NUMBER, "model.norm.eps", -2), "no number", id="no-such-number"),
        pytest.param(Move(Part.INPUT, "model.layers.0.nothing", -1), "nothing", id="no-such-input"),
        pytest.param(
            Move(Part.WEIGHT, "model.norm.weight", -1, Rows(-1, 0.3, 1.0)), "no whole rows", id="rows-that-are-none"
        ),
    ],
)
def test_refused_whole(move: Move, said: str) -> None:
    """A rescale that does not fit the model is refused with the reason, and nothing of it is done."""
    model = engineered("llama")
    before = weights(model)
    gauge = Gauge("residual", (*residual(model).moves, move))
    with pytest.raises(RescaleError, match=said):
        Fold(model).move_to(Rescale(((gauge, 4),)))
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_tied_weight_twice() -> None:
    """One weight under two names is not multiplied twice."""
    model = engineered("qwen3")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    gauge = Gauge("head", tuple(Move(Part.WEIGHT, name, -1) for name in names))
    with pytest.raises(RescaleError, match="one weight"):
        Fold(model).move_to(Rescale(((gauge, 4),)))


def test_copies() -> None:
    """A deep copy is a model of its own: its fold moves its weights and none of the original's."""
    model = engineered("llama")
    plain = logits(model, "llama")
    fold = Fold(model)
    fold.move_to(Rescale(((residual(model), 4),)))
    model.fold = fold  # any attribute will do
    copied = copy.deepcopy(model)
    copied.fold.move_to(Rescale(((residual(copied), 9),)))
    assert torch.equal(logits(copied, "llama"), plain)
    assert model.model.norm.variance_epsilon == copied.model.norm.variance_epsilon * 4**5


def test_pickled() -> None:
    """A rescaled model can be pickled and computes the same when it is read again."""
    model = engineered("llama")
    plain = logits(model, "llama")
    Fold(model).move_to(Rescale(((residual(model), 4),)))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(logits(torch.load(buffer, weights_only=False), "llama"), plain)


def lora(model: Any, **given: Any) -> Any:
    """Return `model` with a random LoRA adapter on what the residual gauge moves, and on something else."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj", "q_proj"], r=4, init_lora_weights=False, **given)
    return peft.get_peft_model(model, config).eval()


def test_adapter_that_is_there_already() -> None:
    """A fold into a model with an adapter shrinks what both of them add to the stream."""
    adapted = lora(engineered("llama"))
    plain = logits(adapted, "llama")
    model = adapted.get_base_model()
    gauge = residual(engineered("llama"))
    fold = Fold(model)
    fold.move_to(Rescale(((gauge, 6),)))
    torch.testing.assert_close(logits(adapted, "llama"), plain, rtol=1e-5, atol=1e-4)
    name = "model.layers.1.mlp.down_proj.base_layer.weight"
    assert torch.equal(model.get_parameter(name), engineered("llama").model.layers[1].mlp.down_proj.weight)
