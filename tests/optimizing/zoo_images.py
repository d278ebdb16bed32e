"""The models of the zoo that read images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from optimizing.zoo_inputs import VOCABULARY, Inputs, image, seeded, text
from torch import nn

POINTMAP_SCALE = {
    "scale_conv_out_channels": [16],
    "scale_conv_kernel_sizes": [1],
    "scale_final_hidden_sizes": [16, 8],
}


def sapiens2(model_class: Any, **head: Any) -> Callable[[], nn.Module]:
    """Return what makes a Sapiens2 of a class, with its own head."""
    layers = {"upsample_out_channels": [32, 32], "conv_out_channels": [32], "conv_kernel_sizes": [1]}

    def make() -> nn.Module:
        config = tf.Sapiens2Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            num_first_full_attention_layers=1,
            num_last_full_attention_layers=0,
            num_register_tokens=4,
            image_size=[64, 64],
            patch_size=16,
            num_labels=29,
            initializer_range=0.2,
            head_config=layers | head,
        )
        return model_class(config)

    return make


def segformer() -> nn.Module:
    """Return a SegFormer."""
    config = tf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 32, 64, 64],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=32,
        num_labels=19,
        initializer_range=0.2,
    )
    return tf.SegformerForSemanticSegmentation(config)


def swin() -> Any:
    """Return the config of a Swin of four stages."""
    return tf.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        initializer_range=0.2,
    )


def upernet() -> nn.Module:
    """Return an UPerNet over a Swin."""
    config = tf.UperNetConfig(
        backbone_config=swin(),
        hidden_size=32,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=19,
        initializer_range=0.2,
    )
    return tf.UperNetForSemanticSegmentation(config)


def mask2former() -> nn.Module:
    """Return a Mask2Former over a Swin."""
    config = tf.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=10,
        num_labels=19,
    )
    return tf.Mask2FormerForUniversalSegmentation(config)


def vit() -> nn.Module:
    """Return a classifier."""
    config = tf.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        num_labels=19,
        initializer_range=0.2,
    )
    return tf.ViTForImageClassification(config)


def keypoints() -> Any:
    """Return the config of a SuperPoint."""
    return tf.SuperPointConfig(
        encoder_hidden_sizes=[16] * 4, decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=16
    )


def superpoint() -> nn.Module:
    """Return what finds keypoints: how many depends on the image."""
    return tf.SuperPointForKeypointDetection(keypoints())


def lightglue() -> nn.Module:
    """Return what matches keypoints, and stops early where it may."""
    config = tf.LightGlueConfig(
        keypoint_detector_config=keypoints(), descriptor_dim=16, num_hidden_layers=2, num_attention_heads=2
    )
    return tf.LightGlueForKeypointMatching(config)


def image_pairs(seed: int, batch: int, size: int) -> Inputs:
    """Return pairs of images, shape (batch - 1, 2, 3, height, width)."""
    return {"pixel_values": torch.rand(batch - 1, 2, 3, 32 * size, 32 * size, generator=seeded(seed))}


def vilt() -> nn.Module:
    """Return what reads a text and an image, and draws patches at random."""
    config = tf.ViltConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        max_image_length=-1,
        max_position_embeddings=20,
    )
    return tf.ViltModel(config)


def text_and_image(seed: int, batch: int, length: int) -> Inputs:
    """Return a text with an image of 32 by 32 pixels."""
    mask = torch.ones(batch, 32, 32, dtype=torch.long)
    return text(seed, batch, length) | image(seed, batch, 1) | {"pixel_mask": mask}
