"""Small models whose forwards are compiled, and what tests look at in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from safe_dtype.models.forwards.compiled_products import compile_products
from safe_dtype.models.forwards.gated_forward import compile_gates
from safe_dtype.models.forwards.norm_forward import compile_norms
from safe_dtype.models.forwards.rotary_forward import compile_rotations

BF16 = torch.bfloat16
SIZES: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 8,
}  # fmt: skip
MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 64}),
}
IDS = torch.arange(3, 23)[None]


def model_of(name: str, dtype: torch.dtype = BF16) -> PreTrainedModel:
    """Return a seeded model in evaluation."""
    kind, config, options = MODELS[name]
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config(**SIZES, **options))
    return model.to(dtype).eval().requires_grad_(False)


def compile_all(model: nn.Module, dtype: torch.dtype = BF16) -> tuple[int, int, int, int]:
    """Compile what can be; return of how many modules: norms, rotations, products, gates."""
    norms, rotations = compile_norms(model, dtype), compile_rotations(model, dtype)
    return norms, rotations, compile_products(model, dtype, 8), compile_gates(model)


def greedy(model: Any, ids: Tensor = IDS, new_tokens: int = 8, **options: Any) -> list[int]:
    """Return the tokens that a model goes on with."""
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        do_sample=False, pad_token_id=0, **options,
    )  # fmt: skip
    return output[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def counted(monkeypatch: Any, owner: Any, name: str) -> list[Any]:
    """Have calls of a function of ours listed, by their first argument."""
    calls: list[Any] = []
    original: Callable[..., Any] = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls
