"""Big models, planned from their configs and headers alone: the files have the real shapes, and no bytes on the disk."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from safe_dtype import make_plan, prior_facts, read_checkpoint
from safe_dtype.facts import BFLOAT16, FLOAT16, Dtype
from safe_dtype.loading import Request, plan_request

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", "hidden_size": 4096,
    "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": 8192,
    "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3_4B_TEXT = {
    "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "dtype": "bfloat16",
    "text_config": GEMMA3_4B_TEXT, "tie_word_embeddings": True,
}  # fmt: skip


def shapes(config: dict[str, Any], prefix: str = "model") -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a decoder's tensors."""
    text = config.get("text_config", config)
    hidden, inner, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    tensors = {f"{prefix}.embed_tokens.weight": (text["vocab_size"], hidden), f"{prefix}.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (text["vocab_size"], hidden)
    for layer in range(text["num_hidden_layers"]):
        at = f"{prefix}.layers.{layer}"
        tensors |= {
            f"{at}.self_attn.q_proj.weight": (queries, hidden), f"{at}.self_attn.k_proj.weight": (keys, hidden),
            f"{at}.self_attn.v_proj.weight": (keys, hidden), f"{at}.self_attn.o_proj.weight": (hidden, queries),
            f"{at}.mlp.gate_proj.weight": (inner, hidden), f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner), f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }  # fmt: skip
    return tensors


def saved(folder: Path, config: dict[str, Any], dtype: str = "BF16") -> Path:
    """Write a checkpoint with its real header and a hole in the place of its weights."""
    header, end = {}, 0
    for name, shape in shapes(config).items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + 2 * prod(shape)]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "device", "storage", "spread", "fitting"),
    [
        pytest.param(GEMMA3_4B, "NVIDIA Tesla T4", FLOAT16, None, (), id="gemma3-4b-t4"),
        pytest.param(QWEN3_8B, "NVIDIA Tesla T4", FLOAT16, "auto", ("int8", "int4", "2 devices"), id="qwen3-8b-t4"),
        pytest.param(QWEN3_8B, "V100 32GB", FLOAT16, None, (), id="qwen3-8b-v100"),
        pytest.param(QWEN3_8B, "RTX 4090", BFLOAT16, None, (), id="qwen3-8b-4090"),
        pytest.param(LLAMA_70B, "H100", BFLOAT16, "auto", ("int8", "int4", "2 devices"), id="llama-70b-h100"),
        pytest.param(LLAMA_70B, "RTX 3090", BFLOAT16, "auto", ("7 devices",), id="llama-70b-3090"),
        pytest.param(LLAMA_70B, "H200", BFLOAT16, "auto", ("int8",), id="llama-70b-h200"),
    ],
)
def test_plan(
    config: dict[str, Any], device: str, storage: Dtype, spread: str | None, fitting: tuple[str, ...], tmp_path: Path
) -> None:
    """What an expert would choose for the model on that card, by the pure planner and by that of the command."""
    folder = saved(tmp_path, config)
    facts = prior_facts(device)
    for plan in (make_plan(facts, read_checkpoint(folder)), plan_request(Request(str(folder), {}), device=facts)):
        assert (plan.storage, plan.compute, plan.device_map) == (storage, storage, spread)
        assert plan.pending is (storage == FLOAT16)
        for name in fitting:
            assert any(way.fits and name in way.name for way in plan.ways), name


def test_saved_in_float16(tmp_path: Path) -> None:
    """An 8B model made in float16 stays in it on a card whose float16 no source describes."""
    folder = saved(tmp_path, {**QWEN3_8B, "dtype": "float16"}, "F16")
    plan = make_plan(prior_facts("AMD Radeon RX 7900 XTX"), read_checkpoint(folder))
    assert (plan.storage, plan.pending, plan.device_map) == (FLOAT16, False, None)
