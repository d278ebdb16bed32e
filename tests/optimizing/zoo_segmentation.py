"""More models of transformers that segment images, tiny and random: what the job was first made for."""

from __future__ import annotations

from typing import Any

import transformers as tf
import zoo_models
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


SEGMENTATION = {
    "beit": beit,
    "data2vec": data2vec,
    "detr": zoo_models.detr_masks,
    "dpt": dpt,
    "maskformer": zoo_models.maskformer,
    "mobilenet": mobilenet,
    "mobilevit": mobilevit,
}
