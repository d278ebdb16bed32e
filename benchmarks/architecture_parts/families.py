"""What tiny configs of a family need besides: parts whose sizes depend on each other, and what a default config leaves out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from safe_dtype.rescaling.discovery.config_keys import hidden_size, is_count
from safe_dtype.rescaling.discovery.tiny_config import VOCABULARY_SIZE
from safe_dtype.rescaling.discovery.twin import configs_in

_SHARED_ROTATION = (
    "glm4v",
    "glm_ocr",
    "glm_image",
    "glm46v",
    "paddleocr_vl",
    "qwen2_vl",
    "qwen2_5_vl",
    "hunyuan_vl",
    "qwen2_5_omni",
)
_MARK = 90  # an id of the tiny vocabularies that nothing else stands for
_ALTERNATING = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
_WINDOWED = {"window_size": 56}  # pixels: two by two merged patches
_AT_MOST = {"num_queries": 12, "num_denoising": 0, "frames_per_clip": 4, "crop_size": 64}
# Settings of tiny configs by the type of the model, those of their parts within.
_ASKED = {
    "image_token_id": _MARK, "image_token_index": _MARK, "video_token_id": _MARK, "video_token_index": _MARK,
    "num_query_tokens": 4,
}  # fmt: skip
_PINNED = {"image_grid_pinpoints": [[28, 28]], "vision_config": {"image_size": 28, "patch_size": 14}}
_FOUR_BY_FOUR = {"vision_config": {"image_size": 56, "patch_size": 14}}
_THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
_STARTS = {"vision_start_token_id": _MARK + 1, "audio_start_token_id": _MARK + 2}
_OF_POINTS = {"prompt_encoder_config": {"image_embedding_size": 2}}  # patches to a side
_SETTINGS: dict[str, dict[str, Any]] = {
    "align": {
        "projection_dim": 8,
        "vision_config": {
            "image_size": 32, "kernel_sizes": [3, 3, 5], "in_channels": [32, 16, 24], "out_channels": [16, 24, 20],
            "strides": [1, 1, 2], "num_block_repeats": [1, 1, 2], "expand_ratios": [1, 6, 6], "depthwise_padding": [],
            "width_coefficient": 0.05, "hidden_dim": 64,
        },
    },
    "aria": {"projector_patch_to_query_dict": {4: 4}},
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "blenderbot": {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2},
    "blip-2": _ASKED,
    "chameleon": {"vocabulary_map": {"<image>": _MARK}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_hidden_layers": 2}},
    "dia": {"decoder_config": {"num_channels": 9}},  # as many as its delay pattern is long
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "ernie4_5_vl_moe": {
        "text_config": {
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "moe_intermediate_size": [16, 16], "moe_num_experts": 4, "moe_k": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
        },
        "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
    },
    "exaone4_5": {"vision_config": _WINDOWED},
    "exaone4_5_vision": _WINDOWED,
    "glm5_next": {"text_config": {"index_topk": 8, "index_kpool": 4}},
    "glm5_next_text": {"index_topk": 8, "index_kpool": 4},
    "granite4_vision": _PINNED,
    "granitemoehybrid": _ALTERNATING,
    "hunyuan_vl": {"text_config": _THREE_AXES},
    "hunyuan_vl_text": _THREE_AXES,
    "hyperclovax_vision_v2": {"vision_config": _WINDOWED},
    "instructblip": _ASKED,
    "instructblipvideo": _ASKED,
    "kosmos-2": {"latent_query_num": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lighton_ocr": _FOUR_BY_FOUR,
    "llava_next": _PINNED,
    "llava_next_video": _PINNED,
    "llava_onevision": _PINNED,
    "lw_detr_vit": {"image_size": 64, "patch_size": 16, "num_windows": 4},
    "mistral3": _FOUR_BY_FOUR,
    "mistral_large4": _FOUR_BY_FOUR,
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "moonshine_streaming": {"num_key_value_heads": 4, "num_attention_heads": 4},
    "pix2struct": {"vision_config": {"patch_embed_hidden_size": 768}},  # pixels of a patch, in three colours
    "qwen2_vl": {"vision_config": {"embed_dim": 32, "num_heads": 4}},
    "siglip2": {"text_config": {"projection_size": 64}},
    "rf_detr": {"backbone_config": {"image_size": 56, "patch_size": 14, "num_windows": 2}},
    **dict.fromkeys(("sam", "sam_hq", "sam3_tracker"), _OF_POINTS),
    "sapiens2": {
        "head_config": {
            "upsample_out_channels": [16, 16], "upsample_kernel_sizes": [4, 4], "conv_out_channels": [16],
            "conv_kernel_sizes": [1],
        }
    },
    "shieldgemma2": {"yes_token_index": 5, "no_token_index": 6},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "qwen2_5_vl": {"vision_config": _WINDOWED},
    "qwen2_5_vl_vision": _WINDOWED,
    "qwen2_5_omni_thinker": _STARTS | {"vision_config": {"hidden_size": 32, "num_heads": 2} | _WINDOWED},
    "qwen3_omni_moe": {"talker_config": {"text_config": {"shared_expert_intermediate_size": 32}}},
    "qwen3_omni_moe_thinker": _STARTS,
}  # fmt: skip


def fit(model_type: str, config: PreTrainedConfig) -> None:
    """Have the parts of a tiny config agree with each other, in place."""
    _set(config, _SETTINGS.get(model_type, {}))
    for part in configs_in(config):
        part.__dict__.pop("quantization_config", None)
        for key, most in _AT_MOST.items():
            if is_count(vars(part).get(key)):
                vars(part)[key] = min(vars(part)[key], most)
        _name_stages(part)
        _share_rotation(part)
        if "upsample_groups" in vars(part):  # of a codec: one for each channel
            part.__dict__["upsample_groups"] = part.hidden_size
    if "vocab_size" in vars(config) and config.vocab_size is None:
        vars(config)["vocab_size"] = VOCABULARY_SIZE
    _join_text_and_vision(config)


def _set(config: PreTrainedConfig, settings: Mapping[str, Any]) -> None:
    values = vars(config)
    for key, value in settings.items():
        if isinstance(values.get(key), PreTrainedConfig):
            _set(values[key], value)
        else:
            values[key] = copy.deepcopy(value)  # past __setattr__, which validates one key at a time


def _join_text_and_vision(config: PreTrainedConfig) -> None:
    """Have images arrive as wide as the text is, as many of them as there are places for."""
    text, vision = (vars(config).get(part) for part in ("text_config", "vision_config"))
    if not isinstance(text, PreTrainedConfig) or not isinstance(vision, PreTrainedConfig):
        return
    width, values = hidden_size(vars(text)), vars(vision)
    if width and "out_hidden_size" in values:
        values["out_hidden_size"] = width
    if is_count(vars(config).get("mm_tokens_per_image")) and is_count(values.get("image_size")):
        vars(config)["mm_tokens_per_image"] = (values["image_size"] // values["patch_size"]) ** 2


def _share_rotation(config: PreTrainedConfig) -> None:
    """Give time, height and width of an image their shares of what is rotated, also where the code knows them alone."""
    values = vars(config)
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict) or not (
        "mrope_section" in rope or str(config.model_type).startswith(_SHARED_ROTATION)
    ):
        return
    dim = values.get("head_dim") or values.get("hidden_size", 0) // (values.get("num_attention_heads") or 1)
    half = int(dim * rope.get("partial_rotary_factor", values.get("partial_rotary_factor") or 1.0)) // 2
    if not is_count(rope.get("mrope_section")) and sum(rope.get("mrope_section") or ()) != half:
        rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]


def _name_stages(config: PreTrainedConfig) -> None:
    """Have a backbone of as many stages as layers give its last ones, as many as it gives with all of its layers."""
    values = vars(config)
    layers, wanted = values.get("num_hidden_layers"), values.get("_out_features") or ()
    if not is_count(layers) or not layers or set(wanted) <= {f"stage{number}" for number in range(1, layers + 1)}:
        return
    layers = max(layers, len(wanted))
    stages = ["stem", *(f"stage{number}" for number in range(1, layers + 1))]
    values |= {"num_hidden_layers": layers, "stage_names": stages}
    values |= {"_out_features": stages[-len(wanted) :], "_out_indices": list(range(len(stages)))[-len(wanted) :]}
