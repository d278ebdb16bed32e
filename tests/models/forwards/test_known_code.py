"""Forwards are known by their code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.phi3 import modeling_phi3 as phi3
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from safe_dtype.models.forwards import known_attention, known_code
from safe_dtype.models.forwards.known_code import is_known


@pytest.mark.parametrize(
    ("function", "known"),
    [
        pytest.param(llama.LlamaRMSNorm.forward, known_code.norm, id="norm"),
        pytest.param(qwen3.Qwen3RMSNorm.forward, known_code.norm, id="norm-of-another"),
        pytest.param(llama.LlamaMLP.forward, known_code.gated, id="gate"),
        pytest.param(SiLUActivation.forward, known_code.silu, id="silu"),
        pytest.param(qwen3.apply_rotary_pos_emb, known_code.apply_rotary_pos_emb, id="rotation"),
        pytest.param(phi3.rotate_half, known_code.rotate_half, id="half"),
        pytest.param(llama.LlamaAttention.forward, known_attention.llama_attention, id="attention"),
        pytest.param(qwen2.Qwen2Attention.forward, known_attention.qwen2_attention, id="attention-in-a-window"),
        pytest.param(mistral.MistralAttention.forward, known_attention.mistral_attention, id="window-of-the-config"),
        pytest.param(qwen3.Qwen3Attention.forward, known_attention.qwen3_attention, id="attention-of-norms"),
    ],
)
def test_known(function: Any, known: Any) -> None:
    """What transformers has under many names."""
    assert is_known(function, known)


class OtherConstant(nn.Module):
    """A norm that squares by another power."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Divide rows by something else."""
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(4).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 2) -> Any:
    """Have another default."""
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (llama.rotate_half(q) * sin)
    k_embed = (k * cos) + (llama.rotate_half(k) * sin)
    return q_embed, k_embed


@pytest.mark.parametrize(
    ("function", "known"),
    [
        pytest.param(GemmaRMSNorm.forward, known_code.norm, id="another-norm"),
        pytest.param(phi3.Phi3Attention.forward, known_attention.llama_attention, id="another-attention"),
        pytest.param(qwen2.Qwen2Attention.forward, known_attention.mistral_attention, id="another-window"),
        pytest.param(OtherConstant.forward, known_code.norm, id="another-constant"),
        pytest.param(GELUActivation.forward, known_code.silu, id="another-activation"),
        pytest.param(phi3.apply_rotary_pos_emb, known_code.apply_rotary_pos_emb, id="a-part-of-the-width"),
        pytest.param(apply_rotary_pos_emb, known_code.apply_rotary_pos_emb, id="another-default"),
        pytest.param(len, known_code.norm, id="no-function-of-python"),
        pytest.param(None, known_code.norm, id="nothing"),
    ],
)
def test_not_known(function: Any, known: Callable[..., Any]) -> None:
    """What computes something else, or may."""
    assert not is_known(function, known)


def test_what_a_function_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function is known with those that it calls by name: another one of that name, and it is not known any more."""
    monkeypatch.setattr(qwen3, "rotate_half", lambda x: x)
    assert not is_known(qwen3.apply_rotary_pos_emb, known_code.apply_rotary_pos_emb)
