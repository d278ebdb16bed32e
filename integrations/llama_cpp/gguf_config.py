"""A config of transformers by what a GGUF file says of its model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from .gguf_file import gguf_package

_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}


def config_by_file(file: Path, config: Any) -> Any:
    """Return `config`, that of the checkpoint, with every number that `file` holds in place of its own.

    Transformers' own reader of these files takes a head of 128 for every qwen3, and no scaled rotary frequencies: with
    this as `config=` it makes of the weights what llama.cpp does.
    """
    fields = gguf_package().GGUFReader(file).fields
    architecture = fields["general.architecture"].contents()
    by_file = copy.deepcopy(config)
    for name, key in _KEYS.items():
        setattr(by_file, name, fields[f"{architecture}.{key}"].contents())
    base = fields[f"{architecture}.rope.freq_base"].contents()
    by_file.rope_parameters = {**by_file.rope_parameters, "rope_theta": base}
    return by_file
