"""Models that people publish, tiny: the same classes and kinds of layers, random weights, inputs as their processors return them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

_TEXT = {
    "vocab_size": 160, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "vocab_size": 160, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A model: how to make one, what its processor returns, and a module of each of its parts."""

    make: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    parts: tuple[str, ...]  # names of modules: those that a fault is put into
    model_type: str = ""  # that of the published config, where transformers has no class by that name

    @property
    def speaks(self) -> bool:
        """Whether it generates."""
        return "input_ids" in self.inputs()

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Save one, the same weights every time."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for weight in model.parameters():  # as made, all of its tokens are alike
                weight += 0.1 * torch.randn_like(weight)
        model.to(dtype).save_pretrained(folder)
        if self.model_type:
            file = folder / "config.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(config | {"model_type": self.model_type}), encoding="utf-8")
        return folder


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _text() -> dict[str, Any]:
    return {"input_ids": torch.arange(3, 10)[None], "attention_mask": torch.ones(1, 7, dtype=torch.long)}


def _with_image(mark: int, count: int) -> dict[str, Any]:
    ids = torch.tensor([[3, 4, *[mark] * count, 5, 6]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _qwen3() -> Any:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_TEXT, head_dim=8))


def _qwen2() -> Any:
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**_TEXT))


def _minimax_m2() -> Any:
    return tf.MiniMaxM2ForCausalLM(tf.MiniMaxM2Config(**_TEXT, head_dim=8, num_local_experts=4, num_experts_per_tok=2))


def _kimi_k2() -> Any:
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**LATENT))


def _kimi_k25() -> Any:
    vision = {
        "patch_size": 14, "pos_emb_height": 4, "pos_emb_width": 4, "num_attention_heads": 2, "num_hidden_layers": 2,
        "hidden_size": 32, "intermediate_size": 64,
    }  # fmt: skip
    return tf.Kimi_K25ForConditionalGeneration(
        tf.Kimi_K25Config(
            text_config={"model_type": "deepseek_v3", **LATENT}, vision_config=vision, projection_hidden_size=32,
            image_token_id=150, video_token_id=151, vision_start_token_id=152, vision_end_token_id=153,
        )
    )  # fmt: skip


def _kimi_k25_inputs() -> dict[str, Any]:
    pictures = {"pixel_values": _noise(16, 3, 14, 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return _with_image(150, 4) | pictures


def _ernie_vl() -> Any:
    text = {
        "vocab_size": 160, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "moe_intermediate_size": [16, 16], "moe_k": 2, "moe_num_experts": 4,
        "moe_num_shared_experts": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    }  # fmt: skip
    return tf.Ernie4_5_VLMoeForConditionalGeneration(
        tf.Ernie4_5_VLMoeConfig(
            text_config=text, vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
            image_start_token_id=150, image_end_token_id=151, image_token_id=152, video_start_token_id=153,
            video_end_token_id=154, video_token_id=155,
        )
    )  # fmt: skip


def _ernie_vl_inputs() -> dict[str, Any]:
    pictures = {"pixel_values": _noise(16, 3 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    text = _with_image(152, 4)
    kinds = (text["input_ids"] == 152).long()
    around = torch.nn.functional.max_pool1d(kinds[:, None].float(), 3, 1, 1)[
        :, 0
    ].long()  # where the image begins and ends
    return text | pictures | {"mm_token_type_ids": kinds, "moe_mm_token_type_ids": around}


def _got_ocr2() -> Any:
    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
        "patch_size": 8, "global_attn_indexes": [1], "mlp_dim": 64, "window_size": 2,
    }  # fmt: skip
    return tf.GotOcr2ForConditionalGeneration(
        tf.GotOcr2Config(
            vision_config=vision,
            text_config={"model_type": "qwen2", **_TEXT},
            image_token_index=150,
            image_seq_length=4,
        )
    )


def _got_ocr2_inputs() -> dict[str, Any]:
    return _with_image(150, 4) | {"pixel_values": _noise(1, 3, 64, 64)}


def _minicpm_v(version: str, **marks: int) -> Callable[[], Any]:
    text = {
        "model_type": "qwen3_5_text", **_TEXT, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0,
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64,
        "patch_size": 8,
    }  # fmt: skip

    def make() -> Any:
        config = getattr(tf, f"MiniCPMV{version}Config")(
            text_config=text, vision_config=vision, insert_layer_id=1, image_size=64, image_token_id=150,
            video_token_id=151, **marks,
        )  # fmt: skip
        return getattr(tf, f"MiniCPMV{version}ForConditionalGeneration")(config)

    return make


def _minicpm_v_inputs() -> dict[str, Any]:
    pictures = {"pixel_values": _noise(1, 3, 8, 64 * 8), "target_sizes": torch.tensor([[8, 8]], dtype=torch.int32)}
    return _with_image(150, 4) | pictures


_MARKS = {"image_start_id": 152, "image_end_id": 153, "slice_start_id": 154, "slice_end_id": 155, "newline_id": 156}


def _sliced_inputs() -> dict[str, Any]:
    """Return a picture and a slice of it between their marks, by which their places are told."""
    ids = torch.tensor([[3, 4, 152, *[150] * 4, 153, 154, *[150] * 4, 155, 5, 6]])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 150).int(),
        "pixel_values": _noise(1, 3, 8, 2 * 64 * 8), "target_sizes": torch.tensor([[8, 8], [8, 8]], dtype=torch.int32),
    }  # fmt: skip


def _sapiens2(head: str, **settings: Any) -> Callable[[], Any]:
    layers = {
        "upsample_out_channels": [16, 16], "upsample_kernel_sizes": [4, 4], "conv_out_channels": [16],
        "conv_kernel_sizes": [1],
    }  # fmt: skip

    def make() -> Any:
        config = tf.Sapiens2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=[64, 48],
            num_register_tokens=2, num_key_value_attention_heads=2, num_first_full_attention_layers=1,
            num_last_full_attention_layers=1, num_labels=5, head_config=layers | settings,
        )  # fmt: skip
        return getattr(tf, f"Sapiens2For{head}")(config)

    return make


def _picture() -> dict[str, Any]:
    return {"pixel_values": _noise(1, 3, 64, 48)}


_LAYERS = ("model.layers.1.mlp.down_proj", "lm_head")
_SAPIENS = ("model.embeddings", "model.model.layer.1", "decode_head")
_MINICPM = ("model.vision_tower.encoder.layers.1", "model.merger", "model.language_model.layers.0", "lm_head")
_SCALE = {
    "scale_conv_out_channels": [16], "scale_conv_kernel_sizes": [1], "scale_final_hidden_sizes": [16, 8],
}  # fmt: skip

PUBLISHED: dict[str, Published] = {
    "qwen3": Published(_qwen3, _text, _LAYERS),
    "spark-formalizer": Published(_qwen2, _text, _LAYERS),
    "minimax-m2": Published(_minimax_m2, _text, ("model.layers.1.mlp.experts", "model.layers.1.mlp.gate", "lm_head")),
    "kimi-k2": Published(
        _kimi_k2, _text, ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts", "lm_head"), "kimi_k2"
    ),
    "kimi-k2.5": Published(
        _kimi_k25, _kimi_k25_inputs,
        ("model.vision_tower.layers.1", "model.mm_projector", "model.language_model.layers.1.mlp.experts", "lm_head"),
    ),
    "ernie-4.5-vl-moe": Published(
        _ernie_vl, _ernie_vl_inputs,
        (
            "model.vision_tower.blocks.1", "model.resampler_model", "model.language_model.layers.1.mlp.text_moe.experts",
            "model.language_model.layers.1.mlp.vision_moe.experts", "lm_head",
        ),
    ),
    "got-ocr2": Published(
        _got_ocr2, _got_ocr2_inputs,
        ("model.vision_tower.layers.1", "model.multi_modal_projector", "model.language_model.layers.1.mlp", "lm_head"),
    ),
    "minicpm-v-4.6": Published(_minicpm_v("4_6"), _minicpm_v_inputs, _MINICPM),
    **(
        {"minicpm-v-4.7": Published(_minicpm_v("4_7", **_MARKS), _sliced_inputs, _MINICPM)}
        if hasattr(tf, "MiniCPMV4_7Config")  # not in transformers 5.16
        else {}
    ),
    "sapiens2-segmentation": Published(_sapiens2("SemanticSegmentation"), _picture, _SAPIENS),
    "sapiens2-pose": Published(_sapiens2("PoseEstimation"), _picture, _SAPIENS),
    "sapiens2-normals": Published(_sapiens2("NormalEstimation", use_pixel_shuffle=True), _picture, _SAPIENS),
    "sapiens2-pointmap": Published(_sapiens2("PointmapEstimation", **_SCALE), _picture, (*_SAPIENS, "scale_head")),
    "sapiens2-matting": Published(_sapiens2("ImageMatting"), _picture, _SAPIENS),
}  # fmt: skip
