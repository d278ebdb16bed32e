"""A gauge as the powers of what it moves."""

from __future__ import annotations

import re

from safe_dtype.facts import Gauge, Part

LAYER = "model.layers.*"

# Of hidden states where a norm comes before each sublayer, as in Llama.
PRE_NORM = {
    f"> {LAYER}": -1,
    f"{LAYER}.input_layernorm.variance_epsilon": -2,
    f"{LAYER}.self_attn.o_proj.weight": -1,
    f"{LAYER}.post_attention_layernorm.variance_epsilon": -2,
    f"{LAYER}.mlp.down_proj.weight": -1,
    "model.norm.variance_epsilon": -2,
}

# Inside of blocks: by architecture, each gauge with its moves in a layer.
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


def pattern(gauge: Gauge) -> dict[str, int]:
    """Return the power of every move, layers and experts taken together; moves of modules are marked."""
    marks = {Part.WEIGHT: "", Part.NUMBER: "", Part.INPUT: "> ", Part.OUTPUT: "< "}
    return {marks[move.part] + re.sub(r"\b\d+\b", "*", move.target): move.power for move in gauge.moves}
