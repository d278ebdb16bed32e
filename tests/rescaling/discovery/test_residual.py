"""Gauges of hidden states: exactly the moves that make every block return less."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as tf
from rescaling.architectures import config_of, found_in, gauge_of
from rescaling.discovery.patterns import LAYER, PRE_NORM, pattern

from safe_dtype.facts import Part
from safe_dtype.rescaling.discovery.discover import discover
from safe_dtype.rescaling.discovery.twin import make_twin

RESIDUALS = {
    "llama": PRE_NORM,
    "qwen3": PRE_NORM,
    "phi3": PRE_NORM,
    "mixtral": {
        **{key: power for key, power in PRE_NORM.items() if "mlp" not in key}, f"{LAYER}.mlp.experts.down_proj": -1,
    },
    "gpt_oss": {
        **{key: power for key, power in PRE_NORM.items() if "mlp" not in key},
        f"{LAYER}.self_attn.o_proj.bias": -1,
        f"{LAYER}.mlp.experts.down_proj": -1,
        f"{LAYER}.mlp.experts.down_proj_bias": -1,
    },
    "gemma3": {  # its gains are 1 + weight
        f"> {LAYER}": -1,
        f"{LAYER}.input_layernorm.eps": -2,
        f"< {LAYER}.post_attention_layernorm": -1,
        f"{LAYER}.pre_feedforward_layernorm.eps": -2,
        f"< {LAYER}.post_feedforward_layernorm": -1,
        "model.norm.eps": -2,
    },
    "olmo2": {  # nothing is normalised on its way in
        f"> {LAYER}": -1,
        f"{LAYER}.self_attn.q_norm.variance_epsilon": -2,
        f"{LAYER}.self_attn.k_norm.variance_epsilon": -2,
        f"{LAYER}.post_attention_layernorm.variance_epsilon": -2,
        f"{LAYER}.post_attention_layernorm.weight": -1,
        f"{LAYER}.mlp.gate_proj.weight": 1,
        f"{LAYER}.post_feedforward_layernorm.variance_epsilon": -2,
        f"{LAYER}.post_feedforward_layernorm.weight": -1,
        "model.norm.variance_epsilon": -2,
    },
    "olmo": {  # its eps is written into the code
        f"> {LAYER}": -1,
        f"> {LAYER}.input_layernorm": 1,
        f"{LAYER}.self_attn.o_proj.weight": -1,
        f"> {LAYER}.post_attention_layernorm": 1,
        f"{LAYER}.mlp.down_proj.weight": -1,
        "> model.norm": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RESIDUALS)
def test_hidden_states(name: str) -> None:
    """Exactly these moves make the hidden states of every block smaller."""
    assert pattern(gauge_of(name, "residual")) == RESIDUALS[name]


@pytest.mark.parametrize("name", [*RESIDUALS, "nemotron", "qwen2", "opt", "t5", "jamba"])
def test_every_block(name: str) -> None:
    """Every block returns 2 ** -bits times as much, exactly, and the outputs are the same bits."""
    found = found_in(name)
    residual = [one for one in found.proved if one.stack is not None]
    assert residual
    assert found.problems == ()
    assert all(one.proof.exact and one.proof.bitwise_bfloat16 and one.proof.coverage == "all" for one in residual)


def test_begins_at_the_first_block() -> None:
    """It is the input of the first block that becomes smaller: a tied embedding stays as it is."""
    gauge = gauge_of("qwen3", "residual")
    assert [move.target for move in gauge.moves if move.part is Part.INPUT] == ["model.layers.0"]
    assert not [move for move in gauge.moves if "embed" in move.target or "lm_head" in move.target]


def test_two_stacks() -> None:
    """An encoder and a decoder are rescaled each by itself."""
    for called, inside in (("encoder residual", "encoder."), ("decoder residual", "decoder.")):
        assert all(move.target.startswith(inside) for move in gauge_of("t5", called).moves)


def test_normalised_stack() -> None:
    """Where every block ends in a norm there is nothing to rescale, and that is not a failure."""
    found = found_in("bert")
    assert found.trivial
    assert found.problems == ()
    assert not [one for one in found.proved if one.stack is not None]


class Square(tf.LlamaForCausalLM):
    """A model whose layers square what they are given: nothing makes up for that."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.register_forward_hook(lambda _module, _args, output: output + 0.1 * output * output)


def test_no_gauge() -> None:
    """Where nothing makes up for a smaller hidden state, the kind of block that is in the way is named."""
    found = discover(make_twin(Square, config_of("llama")))
    assert not [one for one in found.proved if one.stack is not None]
    assert found.problems == ("residual: nothing makes up for a smaller hidden state in LlamaDecoderLayer",)
