"""What the keys of configs mean, whatever stands before them."""

from __future__ import annotations

import re

import pytest

from safe_dtype.rescaling.discovery.config_keys import (
    AT_MOST,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    TOKEN,
    VOCABULARY,
    WIDTH,
    first_count,
    hidden_size,
    is_count,
)

MEANINGS = {
    "heads": HEADS, "kv-heads": KV_HEADS, "head-dim": HEAD_DIM, "width": WIDTH, "vocabulary": VOCABULARY, "token": TOKEN,
    "layers": LAYERS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "meanings"),
    [
        ("num_attention_heads", {"heads"}),
        ("n_head", {"heads"}),
        ("encoder_attention_heads", {"heads"}),
        ("num_key_value_heads", {"kv-heads"}),
        ("n_kv_heads", {"kv-heads"}),
        ("swa_num_key_value_heads", {"kv-heads"}),
        ("head_dim", {"head-dim", "width"}),
        ("global_head_dim", {"head-dim", "width"}),
        ("d_kv", {"head-dim"}),
        ("kv_channels", {"head-dim", "width"}),
        ("hidden_size", {"width"}),
        ("d_model", {"width"}),
        ("decoder_ffn_dim", {"width"}),
        ("intermediate_size_mlp", {"width"}),
        ("kv_lora_rank", {"width"}),
        ("vocab_size", {"vocabulary"}),
        ("t2u_vocab_size", {"vocabulary"}),
        ("vocab_size_per_layer_input", {"vocabulary"}),
        ("eos_token_id", {"token"}),
        ("image_token_index", {"token"}),
        ("num_hidden_layers", {"layers"}),
        ("encoder_layers", {"layers"}),
        ("n_layer", {"layers"}),
        # what only looks like one of them
        ("linear_num_key_heads", set()),
        ("mamba_n_heads", set()),
        ("index_n_heads", set()),
        ("linear_key_head_dim", set()),
        ("index_head_dim", set()),
        ("qk_rope_head_dim", set()),
        ("v_head_dim", set()),
        ("mamba_head_dim", set()),
        ("rotary_dim", set()),
        ("conv_kernel_dim", set()),
        ("max_position_embeddings", set()),
        ("layer_types", set()),
        ("rms_norm_eps", set()),
        ("tie_word_embeddings", set()),
    ],
)
def test_meanings(key: str, meanings: set[str]) -> None:
    """Every key means these, as a whole name, and nothing else."""
    assert {name for name, meaning in MEANINGS.items() if meaning.fullmatch(key)} == meanings


@pytest.mark.parametrize(
    ("meaning", "key", "before"),
    [
        (HEADS, "num_attention_heads", ""),
        (HEADS, "decoder_attention_heads", "decoder_"),
        (HEADS, "t2u_encoder_attention_heads", "t2u_encoder_"),
        (HEADS, "swa_num_attention_heads", "swa_"),
        (KV_HEADS, "num_key_value_heads", ""),
        (KV_HEADS, "swa_num_key_value_heads", "swa_"),
        (HEAD_DIM, "attention_head_dim", ""),
        (HEAD_DIM, "swa_head_dim", "swa_"),
    ],
)
def test_what_stands_before(meaning: re.Pattern[str], key: str, before: str) -> None:
    """Keys of one attention are told by what stands before."""
    match = meaning.fullmatch(key)
    assert match is not None
    assert (match[1] or "") == before


def test_counts() -> None:
    """Whole numbers are counts, truth values and all else are not."""
    assert [is_count(one) for one in (0, 7, -1)] == [True] * 3
    assert [is_count(one) for one in (True, False, 7.0, "7", None, [7])] == [False] * 6


def test_first_count() -> None:
    """The first key with a whole number is taken; one that is open, or a list with a number a layer, is passed over."""
    values = {"moe_num_experts": [4, 8], "num_local_experts": 8, "n_routed_experts": None}
    assert first_count(values, EXPERTS) == "num_local_experts"
    assert first_count({"num_experts": 2, **values}, EXPERTS) == "num_experts"
    assert first_count({}, EXPERTS) == ""


def test_hidden_size() -> None:
    """The width of the hidden states, by whatever name, is a number; 0 where the config names none."""
    assert hidden_size({"d_model": 512, "d_ff": 2048}) == 512
    assert hidden_size({"dim": 1, "n_embd": 768}) == 768
    assert hidden_size({"hidden_size": None, "hidden_dim": 64}) == 64
    assert hidden_size({"hidden_size": True}) == 0
    assert hidden_size({}) == 0


def test_fewer_are_chosen_than_there_are() -> None:
    """Of the experts of a twin not all are chosen, else no choice would be seen."""
    chosen = {AT_MOST[key] for key in ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k")}
    assert max(chosen) < min(AT_MOST[key] for key in EXPERTS)
