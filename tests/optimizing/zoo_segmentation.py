"""More models of transformers that segment images, tiny and random: what the job was first made for."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
import zoo_models
from optimizing.zoo_images import swin
from optimizing.zoo_inputs import VOCABULARY, Inputs, ids, image, seeded
from torch import nn

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16, "num_labels": 5, "initializer_range": 0.2,
}  # fmt: skip


def beit() -> nn.Module:
    """Return a BEiT with a pyramid of pooled features."""
    heads = {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 16, "pool_scales": [1, 2]}
    return tf.BeitForSemanticSegmentation(tf.BeitConfig(**_SIZES, **heads))


def data2vec() -> nn.Module:
    """Return a Data2Vec, which takes images of one size."""
    heads = {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 16, "pool_scales": [1, 2]}
    return tf.Data2VecVisionForSemanticSegmentation(tf.Data2VecVisionConfig(**_SIZES, **heads))


def dpt() -> nn.Module:
    """Return a DPT over a ViT."""
    heads = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
    return tf.DPTForSemanticSegmentation(tf.DPTConfig(**_SIZES, **heads, is_hybrid=False))


def mobilevit() -> nn.Module:
    """Return a MobileViT with atrous convolutions."""
    config = tf.MobileViTConfig(
        hidden_sizes=[16, 16, 32], neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32], num_attention_heads=2, image_size=64,
        num_labels=5, aspp_out_channels=16, atrous_rates=[1, 2, 3], initializer_range=0.2,
    )  # fmt: skip
    return tf.MobileViTForSemanticSegmentation(config)


def mobilenet() -> nn.Module:
    """Return a MobileNetV2 with a DeepLab head."""
    config = tf.MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=5, initializer_range=0.2)
    return tf.MobileNetV2ForSemanticSegmentation(config)


def mobilevitv2() -> nn.Module:
    """Return a MobileViTV2 with atrous convolutions."""
    config = tf.MobileViTV2Config(
        image_size=64, num_labels=5, width_multiplier=0.25, n_attn_blocks=[1, 1, 1], base_attn_unit_dims=[32, 48, 64],
        aspp_out_channels=16, atrous_rates=[1, 2, 3], initializer_range=0.2,
    )  # fmt: skip
    return tf.MobileViTV2ForSemanticSegmentation(config)


def conditional_detr() -> nn.Module:
    """Return a Conditional DETR with a head for masks."""
    config = tf.ConditionalDetrConfig(
        **zoo_models.DETR | {"encoder_attention_heads": 8, "decoder_attention_heads": 8}, use_timm_backbone=False,
        backbone_config=zoo_models.backbone("stage1", "stage2", "stage3", "stage4"),
    )  # fmt: skip
    return tf.ConditionalDetrForSegmentation(config)


def rf_detr() -> nn.Module:
    """Return an RF-DETR with a head for masks, over a DINOv2 with windows."""
    backbone = {
        "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "mlp_ratio": 2, "image_size": 64, "patch_size": 16, "num_windows": 2, "out_features": ["stage1", "stage2"],
        "initializer_range": 0.2,
    }  # fmt: skip
    config = tf.RfDetrConfig(
        backbone_config=backbone, d_model=32, decoder_ffn_dim=32, decoder_layers=2, decoder_n_points=2, num_queries=6,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=2, group_detr=1, intermediate_size=32,
        c2f_num_blocks=1, num_labels=5,
    )  # fmt: skip
    return tf.RfDetrForInstanceSegmentation(config)


def tipsv2_dpt() -> nn.Module:
    """Return a DPT over a TIPSv2."""
    sizes = {name: size for name, size in _SIZES.items() if name not in ("intermediate_size", "num_labels")}
    backbone = sizes | {
        "model_type": "tipsv2_vision_model", "mlp_ratio": 2, "out_indices": [1, 2, 3, 4], "apply_layernorm": True,
        "reshape_hidden_states": False,
    }  # fmt: skip
    config = tf.Tipsv2DptConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, num_labels=5
    )
    return tf.Tipsv2DptForSemanticSegmentation(config)


# One layer without queries and one with them: every layer is compiled on its own.
_QUERIES: dict[str, Any] = {"num_hidden_layers": 2, "num_blocks": 1, "num_queries": 6, "num_register_tokens": 1}


def eomt() -> nn.Module:
    """Return an EoMT: a ViT with queries among its tokens."""
    sizes = {name: size for name, size in _SIZES.items() if name != "intermediate_size"}
    return tf.EomtForUniversalSegmentation(tf.EomtConfig(**sizes | _QUERIES))


def eomt_dinov3() -> nn.Module:
    """Return an EoMT over a DINOv3."""
    return tf.EomtDinov3ForUniversalSegmentation(tf.EomtDinov3Config(**_SIZES | _QUERIES))


def videomt() -> nn.Module:
    """Return an EoMT for videos."""
    sizes = {name: size for name, size in _SIZES.items() if name != "intermediate_size"}
    return tf.VideomtForUniversalSegmentation(tf.VideomtConfig(**sizes | _QUERIES))


def oneformer() -> nn.Module:
    """Return a OneFormer over a Swin, which reads its task as a text."""
    config = tf.OneFormerConfig(
        backbone_config=swin(), is_training=False, num_queries=10, task_seq_len=7, text_encoder_width=32,
        text_encoder_context_length=7, text_encoder_num_layers=1, text_encoder_vocab_size=VOCABULARY,
        text_encoder_n_ctx=4, conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=3, dim_feedforward=32, num_attention_heads=4, num_labels=5,
    )  # fmt: skip
    return tf.OneFormerForUniversalSegmentation(config)


def clipseg() -> nn.Module:
    """Return a CLIPSeg, which segments what a text names."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text_config = tower | {
        "vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2
    }  # fmt: skip
    config = tf.CLIPSegConfig(
        text_config=text_config, vision_config=tower | {"image_size": 64, "patch_size": 16}, projection_dim=16,
        extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    return tf.CLIPSegForImageSegmentation(config)


def seggpt() -> nn.Module:
    """Return a SegGPT, which is shown by an example what to segment."""
    config = tf.SegGptConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=[64, 32], patch_size=16, mlp_dim=32,
        decoder_hidden_size=8, intermediate_hidden_state_indices=[1, 2, 3], merge_index=0, pretrain_image_size=32,
        initializer_range=0.2,
    )  # fmt: skip
    return tf.SegGptForImageSegmentation(config)


def video(seed: int, batch: int, size: int) -> Inputs:
    """Return videos of two pictures."""
    pictures = image(seed, 2 * batch, size)["pixel_values"]
    return {"pixel_values_videos": pictures.unflatten(0, (batch, 2))}


def task_and_image(seed: int, batch: int, size: int) -> Inputs:
    """Return images with a task of 7 tokens."""
    return image(seed, batch, size) | {"task_inputs": ids(seed, batch, 7)}


def text_and_picture(seed: int, batch: int, size: int) -> Inputs:
    """Return images with a text of 7 tokens."""
    return image(seed, batch, size) | {"input_ids": ids(seed, batch, 7)}


def example_and_image(seed: int, batch: int, size: int) -> Inputs:
    """Return images, each with an example and its mask."""
    return {
        "pixel_values": image(seed, batch, size)["pixel_values"],
        "prompt_pixel_values": image(seed + 1, batch, size)["pixel_values"],
        "prompt_masks": image(seed + 2, batch, size)["pixel_values"],
    }


def point_and_image(seed: int, batch: int, size: int) -> Inputs:
    """Return images, each with a point in it."""
    points = 32 * torch.rand(batch, 1, 1, 2, generator=seeded(seed))
    return image(seed, batch, size) | {"input_points": points}


SEGMENTATION = {
    "beit": beit,
    "data2vec": data2vec,
    "detr": zoo_models.detr_masks,
    "dpt": dpt,
    "maskformer": zoo_models.maskformer,
    "mobilenet": mobilenet,
    "mobilevit": mobilevit,
    "mobilevitv2": mobilevitv2,
    "rf_detr": rf_detr,
    "tipsv2_dpt": tipsv2_dpt,
    "conditional_detr": conditional_detr,
    "eomt": eomt,
    "eomt_dinov3": eomt_dinov3,
}
