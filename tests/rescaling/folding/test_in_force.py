"""What is kept with a rescaled model: its bits can be raised, and its hidden states come back in their own size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from engineered import engineered, prompts
from rescaling.gauges_by_hand import product, residual
from torch import Tensor

from safe_dtype.errors import RescaleError, SafeDtypeWarning
from safe_dtype.facts import Rescale
from safe_dtype.rescaling import Rescaled, fold_in, gauges_for, keep_rescaled, rescaled_of


def rescaled(family: str, bits: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Rescaled]:
    """Return a model with its hidden states smaller by so many bits, and what is kept with it."""
    model = engineered(family).to(dtype)
    gauges = [gauge for gauge in gauges_for(model).gauges if gauge.name.endswith("residual")]
    assert gauges
    return model, keep_rescaled(model, *fold_in(model, Rescale(tuple((gauge, bits) for gauge in gauges))))


def batch(family: str) -> dict[str, Tensor]:
    """Return inputs under which the family's hidden states are huge."""
    return prompts(family, count=1, tokens=24, seed=3)[0]


def hidden_states(returned: Any) -> list[Tensor]:
    """Return all hidden states in what a model returned."""
    return [one for name, held in returned.items() if name.endswith("hidden_states") for one in held]


def call(model: Any, family: str, **given: Any) -> Any:
    """Return what `model` returns, hidden states and all."""
    with torch.inference_mode():
        return model(**batch(family), output_hidden_states=True, **given)


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_hidden_states_in_their_own_size(family: str) -> None:
    """Every hidden state is bitwise what it is without the rescale, and after it was raised as well."""
    truth = call(engineered(family), family)
    model, kept = rescaled(family, 6)
    for more in (0, 3):
        kept.raise_bits(more)
        found = call(model, family)
        assert torch.equal(found.logits, truth.logits)
        expected = hidden_states(truth)
        assert expected
        assert all(torch.equal(one, other) for one, other in zip(hidden_states(found), expected, strict=True))


@pytest.mark.parametrize("given", [{}, {"return_dict": True}, {"return_dict": False}], ids=str)
def test_base_model_called_directly(given: dict[str, bool]) -> None:
    """The model inside gives them in their own size as well, as a mapping or as a tuple."""
    truth = call(engineered("llama").model, "llama", **given)
    model, _ = rescaled("llama", 6)
    found = call(model.model, "llama", **given)
    assert type(found) is type(truth)
    states = (
        (found[-1], truth[-1]) if given.get("return_dict") is False else (found.hidden_states, truth.hidden_states)
    )
    assert len(states[0]) == len(states[1]) == model.config.num_hidden_layers + 1
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert torch.equal(found[0], truth[0])


def test_tuple_and_mapping_by_turns() -> None:
    """Asking for a tuple once changes nothing for the calls that follow."""
    model, _ = rescaled("llama", 6)
    assert type(call(model.model, "llama", return_dict=False)) is tuple
    assert call(model.model, "llama").hidden_states is not None
    assert type(call(model, "llama", return_dict=False)) is tuple
    assert call(model, "llama").logits is not None


def test_in_float16_beyond_its_end() -> None:
    """Hidden states that float16 cannot hold come in float32; those that were not moved stay as they are."""
    model, _ = rescaled("llama", 8, torch.bfloat16)
    model.half()
    found = call(model, "llama").hidden_states
    assert max(float(one.abs().max()) for one in found) > 65504
    assert {one.dtype for one in found[1:-1]} == {torch.float32}
    assert found[-1].dtype == torch.float16
    assert all(bool(torch.isfinite(one).all()) for one in found)


def test_without_hidden_states() -> None:
    """Who does not ask for hidden states gets none, and what the model says in its own dtype."""
    model, _ = rescaled("llama", 6, torch.bfloat16)
    with torch.inference_mode():
        found = model(**batch("llama"))
    assert found.hidden_states is None
    assert found.logits.dtype == torch.bfloat16


def test_raised() -> None:
    """Every gauge moves by so many bits more, in place, and the results stay the same bits."""
    model = engineered("phi3_interior")
    truth = call(model, "phi3_interior").logits
    kept = keep_rescaled(model, *fold_in(model, Rescale(((residual(model), 4), (product(model), 2)))))
    weight = model.model.layers[0].mlp.down_proj.weight
    kept.raise_bits(3)
    assert model.model.layers[0].mlp.down_proj.weight is weight
    assert (kept.rescale.bits("residual"), kept.rescale.bits("mlp"), kept.raised) == (7, 5, 3)
    kept.raise_bits(2)
    assert (kept.rescale.bits("residual"), kept.raised) == (9, 5)
    assert torch.equal(call(model, "phi3_interior").logits, truth)


def test_not_raised_too_far() -> None:
    """Beyond 14 bits of one gauge nothing is raised: small numbers would be lost below float16."""
    model, kept = rescaled("llama", 8)
    kept.raise_bits(6)
    before = {name: one.clone() for name, one in model.named_parameters()}
    with pytest.raises(RescaleError, match="beyond 14 bits"):
        kept.raise_bits(1)
    assert (kept.raised, kept.rescale.bits("residual")) == (6, 14)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_what_is_kept_with_a_model() -> None:
    """It is found on the model that was rescaled, and on no other, nor on the model inside."""
    model, kept = rescaled("llama", 6)
    assert rescaled_of(model) is kept
    assert rescaled_of(model.model) is None
    assert rescaled_of(engineered("llama")) is None


def test_copied() -> None:
    """A copy raises its own bits, and gives hidden states back by its own."""
    truth = hidden_states(call(engineered("llama"), "llama"))
    model, kept = rescaled("llama", 6)
    copied = copy.deepcopy(model)
    mine = rescaled_of(copied)
    assert mine is not None
    assert mine is not kept
    mine.raise_bits(4)
    assert (mine.raised, kept.raised) == (4, 0)
    for one in (model, copied):
        assert all(torch.equal(*pair) for pair in zip(hidden_states(call(one, "llama")), truth, strict=True))


def test_generation() -> None:
    """`generate` gives the hidden states of every step in their own size, with a cache that was begun before a raise."""
    given = {"max_new_tokens": 3, "min_new_tokens": 3, "output_hidden_states": True, "return_dict_in_generate": True}
    model, _ = rescaled("llama", 6)
    truth, found = (one.generate(**batch("llama"), **given) for one in (engineered("llama"), model))
    assert torch.equal(found.sequences, truth.sequences)
    assert all(
        torch.equal(one, other)
        for step, expected in zip(found.hidden_states, truth.hidden_states, strict=True)
        for one, other in zip(step, expected, strict=True)
    )


def test_cache_goes_on_after_a_raise() -> None:
    """What was cached before the bits were raised is right after it."""
    plain = engineered("llama")
    model, kept = rescaled("llama", 2)
    ids = batch("llama")["input_ids"]
    with torch.inference_mode():
        truth, first = plain(ids[:, :12], use_cache=True), model(ids[:, :12], use_cache=True)
        kept.raise_bits(5)
        expected = plain(ids[:, 12:], past_key_values=truth.past_key_values).logits
        assert torch.equal(model(ids[:, 12:], past_key_values=first.past_key_values).logits, expected)


def test_inputs_that_nobody_proved_it_for() -> None:
    """A picture reaches a part that was not in the proof: the rescale is undone before, and told; results are right."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, image_size=16, patch_size=8),
        text_config=transformers.LlamaConfig(**small, vocab_size=64),
        image_token_index=5,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    text = {"input_ids": torch.tensor([[1, 7, 8, 9, 10, 11]])}
    picture = {"input_ids": torch.tensor([[1, 5, 5, 5, 5, 9]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    with torch.inference_mode():
        plain = [model(**given).logits for given in (text, picture)]
    found = gauges_for(model)
    assert found.not_run
    rescale = Rescale(tuple((one, 6) for one in found.gauges if one.name.endswith("residual")), found.not_run)
    kept = keep_rescaled(model, *fold_in(model, rescale))
    with torch.inference_mode():
        assert torch.equal(model(**text).logits, plain[0])
        assert kept.rescale.shifts
        with pytest.warns(SafeDtypeWarning, match="proved for text alone"):
            assert torch.equal(model(**picture).logits, plain[1])
    assert kept.rescale.shifts == ()
