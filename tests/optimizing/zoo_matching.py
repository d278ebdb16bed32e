"""Models that find matches between two pictures: their answers are indices, and theirs are real ones."""

from __future__ import annotations

import torch
import transformers as tf
from optimizing.zoo_inputs import Inputs, seeded
from torch import nn


def keypoints() -> tf.SuperPointConfig:
    """Return the config of a SuperPoint that finds 48 keypoints in every picture."""
    return tf.SuperPointConfig(
        encoder_hidden_sizes=[16] * 4, decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=16,
        max_keypoints=48,
    )  # fmt: skip


def lightglue() -> nn.Module:
    """Return a LightGlue that is sure of what it matches: with weights as they are drawn it matches nothing."""
    sizes = {"descriptor_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = tf.LightGlueForKeypointMatching(tf.LightGlueConfig(keypoint_detector_config=keypoints(), **sizes))
    for layer in model.match_assignment_layers:
        nn.init.normal_(layer.final_projection.weight, std=6.0)
        nn.init.constant_(layer.matchability.bias, 6.0)
    return model


def superglue() -> nn.Module:
    """Return a SuperGlue that is as sure."""
    config = tf.SuperGlueConfig(
        keypoint_detector_config=keypoints(), hidden_size=16, keypoint_encoder_sizes=[16, 16],
        gnn_layers_types=["self", "cross"], num_attention_heads=2, sinkhorn_iterations=5,
    )  # fmt: skip
    model = tf.SuperGlueForKeypointMatching(config)
    model.final_projection.final_proj.weight.data *= 300
    return model


def near_pairs(seed: int, batch: int, size: int) -> Inputs:
    """Return pictures with copies that have a little noise on them, shape (batch, 2, 3, 32 size, 32 size)."""
    first = torch.rand(batch, 1, 3, 32 * size, 32 * size, generator=seeded(seed))
    second = first + 0.02 * torch.randn(first.shape, generator=seeded(seed + 1))
    return {"pixel_values": torch.cat([first, second.clamp(0, 1)], 1)}


MATCHING = {"lightglue": lightglue, "superglue": superglue}
