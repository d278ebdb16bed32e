"""What an embedding is multiplied by before the first block is found, in whatever way a model does it."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from rescaling.architectures import found_in
from rescaling.discovery.patterns import pattern
from torch import nn

from safe_dtype.facts import Gauge
from safe_dtype.rescaling.discovery.discover import discover
from safe_dtype.rescaling.discovery.twin import make_twin

_SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
_BART = {
    "vocab_size": 96, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
}  # fmt: skip


def scales_of(model_class: type[tf.PreTrainedModel], config: tf.PreTrainedConfig) -> list[Gauge]:
    """Return what is found of the kind."""
    found = discover(make_twin(model_class, config))
    return [one.gauge for one in found.proved if one.gauge.name.endswith("embedding scale")]


@pytest.mark.parametrize(
    ("model_class", "config", "moved"),
    [
        pytest.param(
            tf.GemmaForCausalLM, tf.GemmaConfig(**_SIZES, head_dim=16), "model.embed_tokens.embed_scale", id="gemma"
        ),
        pytest.param(
            tf.Gemma2ForCausalLM, tf.Gemma2Config(**_SIZES, head_dim=16), "model.embed_tokens.embed_scale", id="gemma2"
        ),
        pytest.param(
            tf.GraniteForCausalLM, tf.GraniteConfig(**_SIZES, embedding_multiplier=12.0),
            "model.embedding_multiplier", id="granite",
        ),
        pytest.param(
            tf.GraniteForCausalLM, tf.GraniteConfig(**_SIZES, embedding_multiplier=12), "< model.embed_tokens",
            id="a-whole-number",
        ),
    ],
)  # fmt: skip
def test_found(model_class: type[tf.PreTrainedModel], config: tf.PreTrainedConfig, moved: str) -> None:
    """A buffer or a number where there is one, else what the embedding returns; the first block gets it back."""
    (gauge,) = scales_of(model_class, config)
    assert pattern(gauge) == {moved: -1, "> model.layers.*": 1}


@pytest.mark.parametrize("name", ["llama", "t5", "opt"])
def test_nothing_to_find(name: str) -> None:
    """An embedding that is not multiplied reaches no further than its weight, which float16 holds."""
    assert not [one for one in found_in(name).proved if "embedding" in one.gauge.name]


def test_positions_are_added() -> None:
    """What is added between the embedding and the first block is in the way, and nothing is found."""
    config = tf.MBartConfig(**_BART, scale_embedding=True)
    assert scales_of(tf.MBartForConditionalGeneration, config) == []


class Squared(nn.Embedding):
    """An embedding with a buffer that it does not multiply by."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.register_buffer("exponent", torch.tensor(2.0), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (torch's own name for it)
        """Look up, and square."""
        return super().forward(input) ** self.exponent


class SquaredLlama(tf.LlamaForCausalLM):
    """A model with such an embedding."""

    def __init__(self, config: tf.LlamaConfig) -> None:
        super().__init__(config)
        self.model.embed_tokens = Squared(config.vocab_size, config.hidden_size)


def test_no_multiple() -> None:
    """A number that embeddings are not proportional to is none of their scale."""
    assert scales_of(SquaredLlama, tf.LlamaConfig(**_SIZES)) == []
