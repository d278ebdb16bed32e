"""What the keys of configs mean: sizes of a kind go by one of few names, whatever stands before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

HIDDEN = (
    "hidden_size", "d_model", "n_embd", "emb_dim", "embed_dim", "embedding_dim", "model_dim", "dim", "hidden_dim",
)  # fmt: skip

# In these three group 1 is what stands before: "" or encoder_, decoder_, swa_, t2u_encoder_, ...
HEADS = re.compile(
    r"(?!linear_num_(?:key|value)|mamba|index|n_mamba)"
    r"(\w+?_)??(?:num_attention_heads|attention_heads|num_heads|n_heads?)"
)
KV_HEADS = re.compile(r"(\w+?_)??(?:num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|num_query_groups)")
HEAD_DIM = re.compile(
    r"(?!linear_(?:key|value)|mamba|index|qk_|v_head)"
    r"(\w+?_)??(?:kv_channels|(?:attention_)?head_dim|head_size|d_kv|d_head|dim_head)"
)
LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim")  # parts of a latent attention's head
MAMBA_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
MAMBA_HEAD_DIM = ("mamba_d_head", "mamba_head_dim", "mamba_headdim")

WIDTH = re.compile(
    r"(?!index|qk_|v_|mamba_head|rotary|conv_kernel|linear_)\w*?"
    r"(?:hidden_size|hidden_size_global|d_model|n_embd|n_embed|embedding_size|dim|intermediate_size\w*|ffn_hidden_size|"
    r"d_ff|dim_ff|dff|n_inner|d_inner|feed_forward_size|rank|lru_width|output_size|input_size|channels|d_ssm|"
    r"dim_model_base|proj_size|out_channel|final_size)"
)
VOCABULARY = re.compile(r"\w*(?:vocab_size\w*|_vocab|vocab_offset)")
TOKEN = re.compile(r"\w*(?:token_id|token_index|lang_id)")
LAYERS = re.compile(
    r"(\w+_)?(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_blocks|num_layers_per_stack|depth)"
)
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
EXPERT_GROUPS = ("n_group", "num_expert_group")

# Keys whose tiny value is at most this.
AT_MOST = {
    # how far a position sees, and how many positions there are
    "sliding_window": 8, "sliding_window_size": 8, "attention_window": 8, "attention_window_size": 8,
    "attention_chunk_size": 8, "local_attention": 8, "window_size": 8, "local_attention_window_len": 8,
    "block_size": 8, "context_size": 8, "chunk_size": 8, "mamba_chunk_size": 8, "index_block_size": 4,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "original_max_position_embeddings": 32,
    "max_seq_len": 64, "model_max_length": 64, "max_target_positions": 64, "max_source_positions": 16,
    "context_length": 64, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64,
    "t2u_max_position_embeddings": 64, "max_pos_emb": 64, "rel_extent": 16, "num_mel_bins": 16,
    # states, and groups of them
    "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8, "n_groups": 2, "mamba_n_groups": 2, "mamba_ngroups": 2,
    # experts, and how they are chosen
    **dict.fromkeys(EXPERTS, 4), **dict.fromkeys(EXPERT_GROUPS, 2), "topk_group": 1, "zero_expert_num": 2,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2, "moe_top_k": 2,
    # how keys are chosen
    "index_topk": 8, "index_n_heads": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
    "indexer_budget": 8, "indexer_compress_ratio": 2, "compress_rates": 8,
    # others
    "num_nextn_predict_layers": 0, "num_codebooks": 2, "codebook_size": 64, "block_multiple_of": 8,
}  # fmt: skip

# What a config leaves open though the modelling code needs it: the default configs of a few classes are like that.
WHEN_MISSING = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2,
    "clip_qkv": 8.0,
}  # fmt: skip


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value of a config is a whole number, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def first_count(values: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Return the first of the `keys` that has a whole number, else ''."""
    return next((key for key in keys if is_count(values.get(key))), "")


def hidden_size(values: Mapping[str, Any]) -> int:
    """Return what a config says is the width of its hidden states, else 0."""
    key = first_count(values, HIDDEN)
    return int(values[key]) if key else 0
