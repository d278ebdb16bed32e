"""What comes with MiniCPM-V 4.5 in place of a class of transformers, in its shape: calls of parts, and a `generate` of its own."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel


class MiniCPMVConfig(PreTrainedConfig):
    """The sizes of the language model and of the vision tower."""

    model_type = "minicpmv"

    def __init__(self, llm_config: Any = None, vision_config: Any = None, query_num: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llm_config, self.vision_config, self.query_num = llm_config or {}, vision_config or {}, query_num


class Resampler(nn.Module):
    """As many features of a picture as there are queries."""

    def __init__(self, queries: int, width: int, vision_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.kv_proj = nn.Linear(vision_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, 4)
        self.ln_q, self.ln_kv, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return shape (pictures, queries, width)."""
        keys = self.ln_kv(self.kv_proj(features)).permute(1, 0, 2)
        query = self.ln_q(self.query)[:, None].expand(-1, keys.shape[1], -1)
        return self.ln_post(self.attn(query, keys, keys)[0].permute(1, 0, 2)) @ self.proj


class MiniCPMV(PreTrainedModel):
    """A model that speaks of pictures; its own `forward` takes one mapping."""

    config_class = MiniCPMVConfig

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        llm, vision = Qwen3Config(**config.llm_config), SiglipVisionConfig(**config.vision_config)
        self.llm = Qwen3ForCausalLM(llm)
        self.vpm = SiglipVisionModel(vision)
        self.resampler = Resampler(config.query_num, llm.hidden_size, vision.hidden_size)
        self.post_init()

    def get_vllm_embedding(self, data: dict[str, Any]) -> torch.Tensor:
        """Return the embeddings of the text, with what the pictures become in their places."""
        embedded = self.llm.model.embed_tokens(data["input_ids"]).clone()
        for row, (pictures, bounds) in enumerate(zip(data["pixel_values"], data["image_bound"], strict=True)):
            if len(pictures):
                seen = self.vpm(torch.stack(pictures).type(embedded.dtype)).last_hidden_state
                for features, (begin, end) in zip(self.resampler(seen), bounds, strict=True):
                    embedded[row, begin:end] = features
        return embedded

    def forward(self, data: dict[str, Any], **kwargs: Any) -> Any:
        """Return what the language model does."""
        return self.llm(inputs_embeds=self.get_vllm_embedding(data), attention_mask=data["attention_mask"], **kwargs)

    def generate(self, **data: Any) -> torch.Tensor:
        """Return new tokens alone."""
        picked = {name: data.pop(name) for name in ("input_ids", "pixel_values", "image_bound", "attention_mask")}
        with torch.inference_mode():
            embedded = self.get_vllm_embedding(picked)
            tokens: torch.Tensor = self.llm.generate(
                inputs_embeds=embedded, attention_mask=picked["attention_mask"], **data
            )
        return tokens
