"""Models of transformers that segment what a prompt shows or names, tiny and random."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from optimizing.zoo_inputs import VOCABULARY, Inputs, ids, image, seeded
from torch import nn

_PROMPTS: dict[str, Any] = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
_MASKS: dict[str, Any] = {
    "hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
}  # fmt: skip
# A ViT and a pyramid of its features for images of 64 pixels.
_VIT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
    "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 32,
    "initializer_range": 0.2,
}  # fmt: skip
_PYRAMID: dict[str, Any] = {
    "backbone_config": _VIT | {"model_type": "sam3_vit_model"}, "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "scale_factors": [4.0, 2.0, 1.0, 0.5],
}  # fmt: skip


def sam2() -> nn.Module:
    """Return a SAM 2 over a Hiera."""
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 2, 2], "global_attention_blocks": [3], "initializer_range": 0.2,
        "window_positional_embedding_background_size": [2, 2],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    return tf.Sam2Model(
        tf.Sam2Config(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_MASKS)
    )


def sam3_tracker() -> nn.Module:
    """Return the part of a SAM 3 that follows what a point shows, for one image."""
    vision = _PYRAMID | {"model_type": "sam3_vision_model"}
    return tf.Sam3TrackerModel(
        tf.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_MASKS)
    )


def sam_hq() -> nn.Module:
    """Return a SAM-HQ."""
    vision = {
        "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 16, "window_size": 2, "global_attn_indexes": [0, 1], "mlp_dim": 32, "num_pos_feats": 16,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = tf.SamHQConfig(
        vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_MASKS | {"vit_dim": 32}
    )
    return tf.SamHQModel(config)


def _concepts(model: Any, config: Any, **text: Any) -> nn.Module:
    layers = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "projection_dim": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16,
    }  # fmt: skip
    return model(
        config(
            vision_config=_PYRAMID | {"model_type": "sam3_vision_model"}, text_config=sizes | text,
            geometry_encoder_config=layers | {"roi_size": 2}, detr_encoder_config=layers,
            detr_decoder_config=layers | {"num_queries": 6},
            mask_decoder_config={"hidden_size": 32, "num_upsampling_stages": 2, "num_attention_heads": 2},
        )
    )  # fmt: skip


def sam3() -> nn.Module:
    """Return a SAM 3, which segments all that a text names."""
    return _concepts(tf.Sam3Model, tf.Sam3Config, model_type="clip_text_model", bos_token_id=0, eos_token_id=2)


def sam3_lite_text() -> nn.Module:
    """Return a SAM 3 with a smaller reader of texts."""
    return _concepts(tf.Sam3LiteTextModel, tf.Sam3LiteTextConfig)


def points_and_image(seed: int, batch: int, size: int) -> Inputs:
    """Return images, each with two points of one thing in it."""
    points = 64 * torch.rand(batch, 1, 2, 2, generator=seeded(seed))
    return image(seed, batch, size) | {
        "input_points": points,
        "input_labels": torch.ones(batch, 1, 2, dtype=torch.long),
    }


def concept_and_image(seed: int, batch: int, size: int) -> Inputs:
    """Return images with a text of 8 tokens, half of the positions as inputs made from a config have, and its mask."""
    text = {"input_ids": ids(seed, batch, 8), "attention_mask": torch.ones(batch, 8, dtype=torch.long)}
    return image(seed, batch, size) | text


POINTED = {"sam2": sam2, "sam3_tracker": sam3_tracker, "sam_hq": sam_hq}
NAMED = {"sam3": sam3, "sam3_lite_text": sam3_lite_text}
