"""A rescale is folded into a real model only where its results stay the same; else the model is as it was."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf
from engineered import engineered
from rescaling.gauges_by_hand import product, residual
from tiny_models import TINY
from torch import Tensor, nn

from safe_dtype.errors import RescaleError
from safe_dtype.facts import FLOAT32, Gauge, Move, Part, Rescale, Rows
from safe_dtype.models.shift_hooks import shifted_modules
from safe_dtype.numerics import compute_in
from safe_dtype.rescaling import fold_in, gauges_for

_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OPT = {
    "vocab_size": 96, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

_CLIP = {
    name: _SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}


def everything(model: nn.Module) -> tuple[dict[str, Tensor], list[float], int]:
    """Return copies of all parameters, all eps, and how many modules have a shift."""
    eps = [one.variance_epsilon for one in model.modules() if hasattr(one, "variance_epsilon")]
    shifts = sum(1 for _ in shifted_modules(model))
    return {name: one.detach().clone() for name, one in model.named_parameters()}, eps, shifts


def same(first: Any, second: Any) -> bool:
    """Whether two answers of `everything` are bitwise equal."""
    return first[1:] == second[1:] and all(torch.equal(one, second[0][name]) for name, one in first[0].items())


def without(gauge: Gauge, target: str) -> Gauge:
    """Return `gauge` without the moves of what ends in `target`."""
    kept = tuple(move for move in gauge.moves if not move.target.endswith(target))
    assert len(kept) < len(gauge.moves)
    return Gauge(gauge.name, kept)


def found(model: Any, name: str = "residual") -> Gauge:
    """Return the gauge called `name` that discovery finds."""
    return next(gauge for gauge in gauges_for(model).gauges if gauge.name == name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact(dtype: torch.dtype) -> None:
    """An exact rescale gives the same bits, and the effect tells which hidden states are smaller, and by what."""
    model = engineered("llama").to(dtype)
    fold, effect = fold_in(model, Rescale(((residual(model), 6),)))
    assert fold.rescale.bits("residual") == 6
    assert effect.bitwise
    assert effect.keeps_cache
    layers = model.config.num_hidden_layers
    # The embedding is scaled where the first layer gets it, and the last hidden state is normalized.
    assert set(effect.hidden) <= {("model", "hidden_states", place) for place in range(layers)}
    assert {effect.hidden["model", "hidden_states", place] for place in range(1, layers)} == {-6}


def test_interior_scales_no_hidden_state() -> None:
    """A rescale inside of blocks is seen by nobody outside."""
    model = engineered("phi3_interior")
    _, effect = fold_in(model, Rescale(((product(model), 5),)))
    assert effect.hidden == {}
    assert effect.keeps_cache


WRONG = {
    "an-eps-left-out": lambda gauge: without(gauge, "layers.1.input_layernorm.variance_epsilon"),
    "the-last-eps-left-out": lambda gauge: without(gauge, "model.norm.variance_epsilon"),
    "a-writer-left-out": lambda gauge: without(gauge, "layers.2.mlp.down_proj.weight"),
    "the-start-left-out": lambda gauge: without(gauge, "model.layers.0"),
    "a-power-changed": lambda gauge: replace(
        gauge, moves=tuple(replace(one, power=one.power * (1 + one.target.endswith("1.mlp.down_proj.weight")))
                           for one in gauge.moves),
    ),
    "one-move-too-many": lambda gauge: replace(
        gauge, moves=(*gauge.moves, Move(Part.WEIGHT, "model.layers.0.mlp.up_proj.weight", 1))
    ),
    "half-of-a-writer": lambda gauge: replace(
        gauge, moves=tuple(replace(one, rows=Rows(-2, 0.0, 0.5)) if one.target.endswith("3.mlp.down_proj.weight")
                           else one for one in gauge.moves),
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_wrong(wrong: str, dtype: torch.dtype) -> None:
    """A gauge with one mistake is refused, and every weight, eps and shift is what it was; in float16 as well."""
    torch.manual_seed(0)
    sizes = {**_SIZES, "num_hidden_layers": 4}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, rms_norm_eps=1e-3)).eval().to(dtype)
    with torch.no_grad():  # small ones lose bits where they are multiplied in float16
        model.model.layers[2].mlp.down_proj.weight *= 1e-4
    before = everything(model)
    with pytest.raises(RescaleError, match=r"differ by|not scaled as a whole"):
        fold_in(model, Rescale(((WRONG[wrong](residual(model)), 8),)))
    assert same(everything(model), before)


def test_float16_loses_small_weights() -> None:
    """In float16 a gauge that takes weights below its range is refused, whatever it does in exact numbers."""
    model = engineered("qwen3").bfloat16()
    fold_in(model, Rescale(((residual(model), 6),)))  # as it should be
    narrow = TINY["qwen3"].make().eval().half()
    with pytest.raises(RescaleError, match="differ by"):
        fold_in(narrow, Rescale(((residual(narrow), 14),)))


def test_interrupted() -> None:
    """The model is as it was also where something else than a comparison ends the fold."""
    model = engineered("llama")
    before, calls = everything(model), []

    def interrupt(*_: Any) -> None:
        calls.append(model.model.norm.variance_epsilon)
        if len(calls) == 2:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fold_in(model, Rescale(((residual(model), 6),)))
    assert calls[1] < calls[0], "it was folded in"
    assert same(everything(model), before)


def test_sums_in_another_order() -> None:
    """Where products are added in another order results may differ by one rounding, and the effect says so."""
    torch.manual_seed(0)
    model = TINY["qwen3"].make().eval()

    class Reordered(nn.Linear):
        """Adds from the back as soon as its weight was moved."""

        def forward(self, x: Tensor) -> Tensor:
            moved = not torch.equal(self.weight, self.original)
            return x.flip(-1) @ self.weight.flip(-1).T if moved else x @ self.weight.T

    linear = model.model.layers[1].mlp.down_proj
    other = Reordered(linear.in_features, linear.out_features, bias=False)
    other.weight, other.original = linear.weight, linear.weight.detach().clone()
    model.model.layers[1].mlp.down_proj = other
    _, effect = fold_in(model, Rescale(((residual(model), 6),)))
    assert not effect.bitwise
    assert effect.hidden["model", "hidden_states", 1] == -6


def test_values_that_carry_the_scale() -> None:
    """OLMo 2 has no norm before its projections: values are smaller, so that caches from before do not fit."""
    torch.manual_seed(0)
    model = tf.Olmo2ForCausalLM(tf.Olmo2Config(**_SIZES)).eval()
    _, effect = fold_in(model, Rescale(((found(model), 4),)))
    assert effect.bitwise
    assert not effect.keeps_cache


def test_cache_that_the_config_leaves_out() -> None:
    """A config that training left without a cache does not hide what a cache would hold."""
    torch.manual_seed(0)
    model = tf.Olmo2ForCausalLM(tf.Olmo2Config(**_SIZES, use_cache=False)).eval()
    _, effect = fold_in(model, Rescale(((found(model), 4),)))
    assert not effect.keeps_cache
    assert model.config.use_cache is False


def test_states_of_mamba() -> None:
    """Recurrent states are looked at as caches are: a gauge of hidden states keeps them, one inside may not."""
    torch.manual_seed(0)
    model = TINY["mamba"].make().eval()
    residual_of_it, inside = gauges_for(model).gauges[:2]
    fold, effect = fold_in(model, Rescale(((residual_of_it, 4),)))
    assert effect.keeps_cache
    fold.undo()
    assert any(move.target.endswith("x_proj.weight") for move in inside.moves)
    _, effect = fold_in(model, Rescale(((inside, 4),)))
    assert effect.bitwise
    assert not effect.keeps_cache


def test_encoder_decoder() -> None:
    """Each side of an encoder-decoder has its own hidden states, and one may be rescaled without the other."""
    model = engineered("t5").bfloat16()
    gauges = {gauge.name: gauge for gauge in gauges_for(model).gauges}
    rescale = Rescale(((gauges["encoder residual"], 6), (gauges["decoder residual"], 3)))
    fold, effect = fold_in(model, rescale)
    assert {key[0]: exponent for key, exponent in effect.hidden.items()} == {"encoder": -6, "decoder": -3}
    assert not any(field == "last_hidden_state" for _, field, _ in effect.hidden)
    assert effect.keeps_cache
    fold.undo()
    _, effect = fold_in(model, rescale.with_bits({"decoder residual": 0}))
    assert {key[0] for key in effect.hidden} == {"encoder"}


@pytest.mark.parametrize("tied", [True, False])
def test_head_that_makes_up(tied: bool) -> None:
    """Without a last norm the head would have to make up for a smaller hidden state, which it is given: refused."""
    torch.manual_seed(0)
    config = tf.OPTConfig(**_OPT, _remove_final_layer_norm=True, tie_word_embeddings=tied)
    model = tf.OPTForCausalLM(config).eval()
    before = everything(model)
    with pytest.raises(RescaleError, match="to the head"):
        fold_in(model, Rescale(((found(model), 4),)))
    assert same(everything(model), before)


def test_base_model() -> None:
    """A model without a head is compared by its last hidden state."""
    model = engineered("llama").model
    _, effect = fold_in(model, Rescale(((residual(engineered("llama")), 6),)).renamed(lambda name: name[6:]))
    assert effect.bitwise
    assert effect.hidden["", "hidden_states", 2] == -6


@pytest.mark.parametrize("pad", [None, 0])
def test_classifier(pad: int | None) -> None:
    """A classifier is run on one row, for which it needs no padding token."""
    torch.manual_seed(0)
    model = tf.LlamaForSequenceClassification(tf.LlamaConfig(**{**_SIZES, "pad_token_id": pad})).eval()
    _, effect = fold_in(model, Rescale(((residual(model), 6),)))
    assert effect.bitwise


def test_training_goes_on() -> None:
    """Dropout is off while results are compared, and on again afterwards, module by module."""
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**_SIZES, attention_dropout=0.5)).train()
    model.model.layers[0].eval()
    before = {name: one.training for name, one in model.named_modules()}
    _, effect = fold_in(model, Rescale(((residual(model), 6),)))
    assert effect.bitwise
    assert {name: one.training for name, one in model.named_modules()} == before


def test_tuples() -> None:
    """A model whose config asks for tuples is compared by names all the same."""
    model = engineered("llama").model
    model.config.return_dict = False
    gauge = Rescale(((residual(engineered("llama")), 6),)).renamed(lambda name: name[6:])
    _, effect = fold_in(model, gauge)
    assert effect.hidden["", "hidden_states", 1] == -6
    assert model.config.return_dict is False


def test_another_input_than_tokens() -> None:
    """A model that listens is refused with the name of what it wants."""
    with pytest.raises(RescaleError, match="reads input_features"):
        fold_in(TINY["whisper"].make(), Rescale(()))


def test_more_than_tokens() -> None:
    """A model that fails on tokens alone is refused with its own words."""
    model = tf.CLIPModel(tf.CLIPConfig(text_config=_CLIP, vision_config={**_CLIP, "image_size": 16, "patch_size": 8}))
    with pytest.raises(RescaleError, match="CLIPModel cannot be run on a few tokens: AttributeError"):
        fold_in(model, Rescale(()))


def test_computed_in_float32() -> None:
    """Where products in bfloat16 are wrong or slow the comparison runs in a context of the caller's."""
    model = engineered("gemma2").bfloat16()
    _, effect = fold_in(model, Rescale(((found(model), 7),)), computing=compute_in(FLOAT32))
    assert effect.hidden["model", "hidden_states", 2] == -7
    assert not torch.is_inference_mode_enabled()


def test_a_rescaled_model_is_pickled() -> None:
    """The proof asks for hidden states, and leaves nothing of transformers behind with which a model is not pickled."""
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**_SIZES)).eval()
    ids = torch.arange(3, 9)[None]
    fold_in(model, Rescale(((found(model), 3),)))
    read = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
        assert len(model(ids, output_hidden_states=True).hidden_states) == 3
