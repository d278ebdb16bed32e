"""Tiny, random, seeded models: some capture whole, some cannot, and each that cannot has another line to blame.

No test may conclude anything about accuracy from `lightglue` (its scores are around 4e-7 with random weights) or from
`vilt` (it draws random patches, so that eager does not repeat itself): they are here for the lines they fail at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import transformers as tf
from optimizing.zoo_images import (
    POINTMAP_SCALE,
    image_pairs,
    lightglue,
    mask2former,
    sapiens2,
    segformer,
    superpoint,
    text_and_image,
    upernet,
    vilt,
    vit,
)
from optimizing.zoo_inputs import Inputs, image, masked_text_pair, text, text_pair
from optimizing.zoo_modules import Branch, Patches, channels, plain
from optimizing.zoo_texts import dbrx, jetmoe, longformer, mixtral, qwen3, speech, switch, text_and_global, whisper
from torch import nn


@dataclass(frozen=True)
class Specimen:
    """One model of the zoo. `batch` makes keyword arguments of `forward` from a seed, a batch size and a size.

    A size is the length of a text, or the side of an image in units of 32 pixels.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int, int, int], Inputs]
    size: int
    other_size: int  # the same as `size` where the architecture takes no other
    other_batch: int = 3

    def model(self) -> nn.Module:
        """Return the model in float32 and in eval mode; the same weights every time."""
        torch.manual_seed(0)
        model = self.make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training, not the identity
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        if hasattr(getattr(model, "config", None), "use_cache"):
            model.config.use_cache = False  # tensors in, tensors out
        return model

    def inputs(self) -> Inputs:
        """Return the inputs that a capture sees."""
        return self.batch(1, 2, self.size)

    def held_out(self) -> Inputs:
        """Return inputs that a capture does not see: other values, another batch size, another size where it can be."""
        return self.batch(2, self.other_batch, self.other_size)


ZOO: Mapping[str, Specimen] = {
    "branch": Specimen(Branch, plain, 5, 8),
    "patches": Specimen(Patches, channels, 1, 2),
    "sapiens2": Specimen(sapiens2(tf.Sapiens2ForSemanticSegmentation), image, 2, 3),
    "sapiens2_pose": Specimen(sapiens2(tf.Sapiens2ForPoseEstimation), image, 2, 3),
    "sapiens2_normal": Specimen(sapiens2(tf.Sapiens2ForNormalEstimation, use_pixel_shuffle=True), image, 2, 3),
    "sapiens2_pointmap": Specimen(sapiens2(tf.Sapiens2ForPointmapEstimation, **POINTMAP_SCALE), image, 2, 2),
    "sapiens2_matting": Specimen(sapiens2(tf.Sapiens2ForImageMatting), image, 2, 3),
    "segformer": Specimen(segformer, image, 2, 3),
    "upernet": Specimen(upernet, image, 2, 3),
    "mask2former": Specimen(mask2former, image, 2, 3),
    "vit": Specimen(vit, image, 2, 2),
    "superpoint": Specimen(superpoint, image, 1, 2),
    "lightglue": Specimen(lightglue, image_pairs, 1, 1, other_batch=2),
    "vilt": Specimen(vilt, text_and_image, 6, 8),
    "qwen3": Specimen(qwen3, text, 9, 12),
    "whisper": Specimen(whisper, speech, 5, 7),
    "mixtral_eager": Specimen(lambda: mixtral("eager"), text, 9, 12),
    "mixtral": Specimen(lambda: mixtral("grouped_mm"), text, 9, 12),
    "dbrx": Specimen(dbrx, text, 9, 12),
    "jetmoe": Specimen(jetmoe, text, 9, 12),
    "switch": Specimen(switch, masked_text_pair, 9, 12),
    "switch_unmasked": Specimen(switch, text_pair, 9, 12),  # it makes its own mask only where it is not traced
    "longformer": Specimen(longformer, text_and_global, 12, 16),
}
