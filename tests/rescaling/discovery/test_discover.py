"""What is discovered in an architecture: which moves make hidden states, products and scores smaller."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from rescaling.architectures import config_of, found_in, gauge_of, real_model

from safe_dtype.facts import Gauge, Move, Part, Rows
from safe_dtype.rescaling.discovery.discover import discover, gauges_for
from safe_dtype.rescaling.discovery.twin import make_twin


def pattern(gauge: Gauge) -> dict[str, int]:
    """Return the power of every move, layers and experts taken together; moves of modules are marked."""
    marks = {Part.WEIGHT: "", Part.NUMBER: "", Part.INPUT: "> ", Part.OUTPUT: "< "}
    return {marks[move.part] + re.sub(r"\b\d+\b", "*", move.target): move.power for move in gauge.moves}


_LAYER = "model.layers.*"
PRE_NORM = {
    f"> {_LAYER}": -1,
    f"{_LAYER}.input_layernorm.variance_epsilon": -2,
    f"{_LAYER}.self_attn.o_proj.weight": -1,
    f"{_LAYER}.post_attention_layernorm.variance_epsilon": -2,
    f"{_LAYER}.mlp.down_proj.weight": -1,
    "model.norm.variance_epsilon": -2,
}
RESIDUALS = {
    "llama": PRE_NORM,
    "qwen3": PRE_NORM,
    "phi3": PRE_NORM,
    "mixtral": {
        **{key: power for key, power in PRE_NORM.items() if "mlp" not in key}, f"{_LAYER}.mlp.experts.down_proj": -1,
    },
    "gpt_oss": {
        **{key: power for key, power in PRE_NORM.items() if "mlp" not in key},
        f"{_LAYER}.self_attn.o_proj.bias": -1,
        f"{_LAYER}.mlp.experts.down_proj": -1,
        f"{_LAYER}.mlp.experts.down_proj_bias": -1,
    },
    "gemma3": {  # its gains are 1 + weight
        f"> {_LAYER}": -1,
        f"{_LAYER}.input_layernorm.eps": -2,
        f"< {_LAYER}.post_attention_layernorm": -1,
        f"{_LAYER}.pre_feedforward_layernorm.eps": -2,
        f"< {_LAYER}.post_feedforward_layernorm": -1,
        "model.norm.eps": -2,
    },
    "olmo2": {  # nothing is normalised on its way in
        f"> {_LAYER}": -1,
        f"{_LAYER}.self_attn.q_norm.variance_epsilon": -2,
        f"{_LAYER}.self_attn.k_norm.variance_epsilon": -2,
        f"{_LAYER}.post_attention_layernorm.variance_epsilon": -2,
        f"{_LAYER}.post_attention_layernorm.weight": -1,
        f"{_LAYER}.mlp.gate_proj.weight": 1,
        f"{_LAYER}.post_feedforward_layernorm.variance_epsilon": -2,
        f"{_LAYER}.post_feedforward_layernorm.weight": -1,
        "model.norm.variance_epsilon": -2,
    },
    "olmo": {  # its eps is written into the code
        f"> {_LAYER}": -1,
        f"> {_LAYER}.input_layernorm": 1,
        f"{_LAYER}.self_attn.o_proj.weight": -1,
        f"> {_LAYER}.post_attention_layernorm": 1,
        f"{_LAYER}.mlp.down_proj.weight": -1,
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


INTERIORS = {
    "llama": {
        "self_attn.q_proj / self_attn.scaling": {"self_attn.q_proj.weight": -1, "self_attn.scaling": 1},
        "self_attn.v_proj / self_attn.o_proj": {"self_attn.v_proj.weight": -1, "self_attn.o_proj.weight": 1},
        "mlp.up_proj / mlp.down_proj": {"mlp.up_proj.weight": -1, "mlp.down_proj.weight": 1},
    },
    "qwen2": {
        "self_attn.q_proj / self_attn.scaling": {
            "self_attn.q_proj.weight": -1, "self_attn.q_proj.bias": -1, "self_attn.scaling": 1,
        },
    },
    "nemotron": {"mlp.up_proj / mlp.down_proj": {"mlp.up_proj.weight": -1, "mlp.down_proj.weight": 2}},  # relu ** 2
    "gpt_oss": {
        "self_attn.v_proj / self_attn.o_proj": {
            "self_attn.v_proj.weight": -1, "self_attn.v_proj.bias": -1, "self_attn.o_proj.weight": 1,
        },
    },
    "olmo": {"self_attn.v_proj / self_attn.o_proj": {"self_attn.v_proj.weight": -1, "self_attn.o_proj.weight": 1}},
}  # fmt: skip


@pytest.mark.parametrize(("name", "called"), [(name, called) for name, ones in INTERIORS.items() for called in ones])
def test_inside_of_blocks(name: str, called: str) -> None:
    """One weight becomes smaller with its bias, in every layer, and another thing makes up for it."""
    gauge = gauge_of(name, called)
    expected = {f"{_LAYER}.{key}": power for key, power in INTERIORS[name][called].items()}
    assert pattern(gauge) == expected
    layers = {move.target.split(".")[2] for move in gauge.moves}
    assert len(gauge.moves) == len(expected) * len(layers)


def test_idle_bias() -> None:
    """A bias of keys, which softmax forgets, goes with its weight: together they are what becomes smaller."""
    moves = pattern(gauge_of("opt", "self_attn.k_proj / self_attn.scaling"))
    assert moves["model.decoder.layers.*.self_attn.k_proj.bias"] == -1


@pytest.mark.parametrize(
    ("name", "weight", "rows", "partner"),
    [
        pytest.param("phi3", "self_attn.qkv_proj.weight", Rows(-2, 0.0, 0.5), "self_attn.scaling", id="queries"),
        pytest.param("phi3", "self_attn.qkv_proj.weight", Rows(-2, 0.75, 1.0), "self_attn.o_proj.weight", id="values"),
        pytest.param("phi3", "mlp.gate_up_proj.weight", Rows(-2, 0.5, 1.0), "mlp.down_proj.weight", id="up"),
        pytest.param("mixtral", "mlp.experts.gate_up_proj", Rows(-2, 0.5, 1.0), "mlp.experts.down_proj", id="experts"),
    ],
)
def test_part_of_a_weight(name: str, weight: str, rows: Rows, partner: str) -> None:
    """Of weights that are several in one, the rows of one of them are moved."""
    layer = "model.layers.0."
    expected = {Move(Part.WEIGHT, layer + weight, -1, rows)}
    expected.add(Move(Part.NUMBER if partner.endswith("scaling") else Part.WEIGHT, layer + partner, 1))
    in_first_layer = [
        {move for move in one.gauge.moves if move.target.startswith(layer)} for one in found_in(name).proved
    ]
    assert expected in in_first_layer


class Interleaved(torch.nn.Module):
    """An MLP that holds its gate in the even rows of a weight and the rest in the odd ones."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = torch.nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Multiply what the odd rows give by what the even rows gate."""
        both = self.gate_up_proj(given)
        returned: torch.Tensor = self.down_proj(torch.nn.functional.silu(both[..., ::2]) * both[..., 1::2])
        return returned


class InterleavedModel(tf.LlamaForCausalLM):
    """A Llama with such MLPs."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Interleaved(config)


def test_every_other_row() -> None:
    """Weights may also be several in one by taking turns, row by row, and so may their biases."""
    found = discover(make_twin(InterleavedModel, config_of("llama")))
    up = next(one.gauge for one in found.proved if "gate_up_proj" in one.gauge.name)
    mlp = "model.layers.0.mlp"
    assert {move for move in up.moves if move.target.startswith(f"{mlp}.")} == {
        Move(Part.WEIGHT, f"{mlp}.gate_up_proj.weight", -1, Rows(-2, 0.0, 1.0, 1, 2)),
        Move(Part.WEIGHT, f"{mlp}.gate_up_proj.bias", -1, Rows(-1, 0.0, 1.0, 1, 2)),
        Move(Part.WEIGHT, f"{mlp}.down_proj.weight", 1),
    }


def test_clamps() -> None:
    """No gauge goes through a clamp, though weights of ordinary size hardly reach it."""
    moved = {name for one in found_in("olmo-clipped").proved for name in pattern(one.gauge)}
    assert f"{_LAYER}.mlp.up_proj.weight" in moved  # it has nothing to do with the clamp
    assert not moved & {f"{_LAYER}.self_attn.{name}_proj.weight" for name in "qkv"}


def test_gated_experts_of_gpt_oss() -> None:
    """There is no gauge inside of experts that clamp, and add one to what they multiply by."""
    inside = [one.gauge for one in found_in("gpt_oss").proved if one.stack is None]
    assert inside
    assert not [move for gauge in inside for move in gauge.moves if "experts" in move.target]


def test_hybrid_layers() -> None:
    """Layers of different kinds, with attention or a state space, with experts or without, are moved each in its way."""
    moves = pattern(gauge_of("jamba", "residual"))
    assert {moves[f"{_LAYER}.{name}.weight"] for name in ("self_attn.o_proj", "mamba.out_proj")} == {-1}
    assert moves[f"{_LAYER}.feed_forward.down_proj.weight"] == moves[f"{_LAYER}.feed_forward.experts.down_proj"] == -1


def test_twin_stays() -> None:
    """A twin comes back as it was: weights, eps, hooks, gradients."""
    twin = make_twin(tf.LlamaForCausalLM, config_of("llama"))
    before = {name: one.clone() for name, one in twin.model.state_dict().items()}
    discover(twin)
    assert all(torch.equal(one, before[name]) for name, one in twin.model.state_dict().items())
    assert not any(one.requires_grad or one.grad is not None for one in twin.model.parameters())
    assert twin.model.model.norm.variance_epsilon == config_of("llama").rms_norm_eps
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.model.modules())


def test_what_makes_no_difference() -> None:
    """What was found depends on no random state, and leaves it alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = discover(make_twin(tf.LlamaForCausalLM, config_of("llama")))
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.gauge for one in found.proved] == [one.gauge for one in found_in("llama").proved]


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


def test_gauges_of_a_model() -> None:
    """A model gets the gauges of its twin, for all of its own layers: hidden states first."""
    found = gauges_for(real_model("llama", num_hidden_layers=7, hidden_size=128))
    assert found.problem == ""
    assert found.gauges[0].name == "residual"
    assert pattern(found.gauges[0]) == PRE_NORM
    assert {move.target.split(".")[2] for move in found.gauges[0].moves if "layers" in move.target} == set("0123456")
    assert {one.name for one in found.gauges[1:]} >= set(INTERIORS["llama"])


def test_on_the_meta_device() -> None:
    """Only names and shapes are looked at: the model may have no weights yet, and the caller be about to load."""
    with torch.device("meta"), torch.inference_mode():
        model = tf.LlamaForCausalLM(config_of("llama"))
        found = gauges_for(model)
    assert [one.name for one in found.gauges] == [one.gauge.name for one in found_in("llama").proved]


def test_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is kept on disk, and comes back the same, in no time."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    model = real_model("phi3")
    first = gauges_for(model)
    started = time.perf_counter()
    assert gauges_for(model) == first
    assert time.perf_counter() - started < 0.1
    assert len(list(tmp_path.glob("*.json"))) == 1
    gauges_for(real_model("phi3", num_hidden_layers=4))
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_what_did_not_run() -> None:
    """An image encoder does not run on the twin's text: that nothing is proved with images is said."""
    text, image = (
        config_of("qwen3").to_dict(),
        {"hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 64},
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    config = tf.Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope}, vision_config={**image, "out_hidden_size": 64, "num_position_embeddings": 16},
    )  # fmt: skip
    with torch.device("meta"):
        found = gauges_for(tf.Qwen3VLForConditionalGeneration(config))
    assert found.gauges[0].name == "residual"
    assert found.not_run == ("model.visual",)
    assert "model.visual" in found.problem


def test_no_model_of_transformers() -> None:
    """A module that is no model of transformers gets no gauges, and the reason."""
    found = gauges_for(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    assert found.gauges == ()
    assert "Linear" in found.problem


def test_unsuitable_model() -> None:
    """A model without a twin gets no gauges, and the reason."""
    model = real_model("llama")
    model.config.num_attention_heads = 0
    found = gauges_for(model)
    assert found.gauges == ()
    assert "LlamaForCausalLM" in found.problem
