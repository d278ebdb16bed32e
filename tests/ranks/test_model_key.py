"""What ranks call a model, and whether one holds all of it."""

from __future__ import annotations

import torch
import transformers as tf
from torch import nn

from safe_dtype.ranks.model_key import is_whole, model_key

SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_copies_have_one_name() -> None:
    """Values, dtypes and devices are not in it."""
    config = tf.LlamaConfig(**SIZES)
    one, other = tf.LlamaForCausalLM(config), tf.LlamaForCausalLM(config).to(torch.bfloat16)
    assert model_key(one) == model_key(other)
    assert model_key(one).startswith("LlamaForCausalLM ")


def test_other_models_have_other_names() -> None:
    """Another class, other shapes and other names of parameters make another one."""
    config = tf.LlamaConfig(**SIZES)
    others = (
        tf.LlamaForCausalLM(config),
        tf.LlamaModel(config),
        tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES | {"vocab_size": 17})),
    )
    assert len({model_key(other) for other in others}) == 3
    assert model_key(nn.Sequential(nn.Linear(2, 2))) != model_key(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def test_what_is_spread_over_ranks_is_not_whole() -> None:
    """DTensor, ZeRO-3 and FSDP1 leave their marks on parameters."""
    model = nn.Linear(2, 2)
    assert is_whole(model)
    for name in ("_local_tensor", "ds_id", "_is_flat_param"):
        spread = nn.Linear(2, 2)
        setattr(spread.weight, name, 1)
        assert not is_whole(nn.Sequential(model, spread))
