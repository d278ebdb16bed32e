"""Tiny, random, seeded models: some capture whole, some cannot, and each that cannot has another line to blame.

No test may conclude anything about accuracy from `lightglue` (its scores are around 4e-7 with random weights) or from
`vilt` (it draws random patches, so that eager does not repeat itself): they are here for the lines they fail at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import nn

Inputs = dict[str, Any]
_VOCABULARY = 97


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


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ids(seed: int, batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, _VOCABULARY, (batch, length), generator=_seeded(seed))


def _text(seed: int, batch: int, length: int) -> Inputs:
    return {"input_ids": _ids(seed, batch, length)}


def _text_pair(seed: int, batch: int, length: int) -> Inputs:
    return _text(seed, batch, length) | {"decoder_input_ids": _ids(seed + 100, batch, 5)}


def _masked_text_pair(seed: int, batch: int, length: int) -> Inputs:
    masks = {
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "decoder_attention_mask": torch.ones(batch, 5, dtype=torch.long),
    }
    return _text_pair(seed, batch, length) | masks


def _image(seed: int, batch: int, size: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 32 * size, 32 * size, generator=_seeded(seed))}


# --- plain modules -----------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """Goes one way or the other, by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return shape (batch, length, 16)."""
        y = self.linear(x)
        if y.sum() > 0:
            return y.relu()
        return y - 1


class Patches(nn.Module):
    """The convolution that one CPU kernel computes wrongly in bfloat16: 16 channels, 4 x 4, stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(16, 16, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take shape (batch, 16, height, width) and return (batch, 16, height / 4, width / 4)."""
        return self.project(x)


def _plain(seed: int, batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, length, 16, generator=_seeded(seed))}


def _channels(seed: int, batch: int, size: int) -> Inputs:
    return {"x": torch.randn(batch, 16, 32 * size, 32 * size, generator=_seeded(seed))}


# --- images ------------------------------------------------------------------------------------------------------


def _sapiens2(model_class: Any, **head: Any) -> Callable[[], nn.Module]:
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


def _segformer() -> nn.Module:
    config = tf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 32, 64, 64],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=32,
        num_labels=19,
        initializer_range=0.2,
    )
    return tf.SegformerForSemanticSegmentation(config)


def _swin() -> Any:
    return tf.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        initializer_range=0.2,
    )


def _upernet() -> nn.Module:
    config = tf.UperNetConfig(
        backbone_config=_swin(),
        hidden_size=32,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=19,
        initializer_range=0.2,
    )
    return tf.UperNetForSemanticSegmentation(config)


def _mask2former() -> nn.Module:
    config = tf.Mask2FormerConfig(
        backbone_config=_swin(),
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


def _vit() -> nn.Module:
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


def _keypoints() -> Any:
    return tf.SuperPointConfig(
        encoder_hidden_sizes=[16] * 4, decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=16
    )


def _superpoint() -> nn.Module:
    return tf.SuperPointForKeypointDetection(_keypoints())


def _lightglue() -> nn.Module:
    config = tf.LightGlueConfig(
        keypoint_detector_config=_keypoints(), descriptor_dim=16, num_hidden_layers=2, num_attention_heads=2
    )
    return tf.LightGlueForKeypointMatching(config)


def _image_pairs(seed: int, batch: int, size: int) -> Inputs:
    return {"pixel_values": torch.rand(batch - 1, 2, 3, 32 * size, 32 * size, generator=_seeded(seed))}


def _vilt() -> nn.Module:
    config = tf.ViltConfig(
        vocab_size=_VOCABULARY,
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


def _text_and_image(seed: int, batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, 32, 32, dtype=torch.long)
    return _text(seed, batch, length) | _image(seed, batch, 1) | {"pixel_mask": mask}


# --- texts -------------------------------------------------------------------------------------------------------

_DECODER = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def _qwen3() -> nn.Module:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_DECODER, head_dim=8))


def mixtral(experts: str) -> nn.Module:
    """Return a Mixtral whose experts are called as `experts` says."""
    model = tf.MixtralForCausalLM(tf.MixtralConfig(**_DECODER, num_local_experts=4))
    model.set_experts_implementation(experts)
    return model


def _jetmoe() -> nn.Module:
    config = tf.JetMoeConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_key_value_heads=2,
        kv_channels=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
    )
    return tf.JetMoeForCausalLM(config)


def _dbrx() -> nn.Module:
    config = tf.DbrxConfig(
        vocab_size=_VOCABULARY,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        initializer_range=0.2,
    )
    return tf.DbrxForCausalLM(config)


def _switch() -> nn.Module:
    config = tf.SwitchTransformersConfig(
        vocab_size=_VOCABULARY,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_experts=4,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
    )
    return tf.SwitchTransformersForConditionalGeneration(config)


def _longformer() -> nn.Module:
    config = tf.LongformerConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_window=[4, 4],
        max_position_embeddings=64,
        pad_token_id=1,
    )
    return tf.LongformerForMaskedLM(config)


def _text_and_global(seed: int, batch: int, length: int) -> Inputs:
    """The held-out inputs take the other branch: they attend globally to their first token."""
    attends = torch.zeros(batch, length, dtype=torch.long)
    attends[:, 0] = seed > 1
    return _text(seed, batch, length) | {
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "global_attention_mask": attends,
    }


def _whisper() -> nn.Module:
    config = tf.WhisperConfig(
        vocab_size=_VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return tf.WhisperForConditionalGeneration(config)


def _speech(seed: int, batch: int, length: int) -> Inputs:
    return {
        "input_features": torch.randn(batch, 16, 40, generator=_seeded(seed)),
        "decoder_input_ids": _ids(seed, batch, length),
    }


_POINTMAP_SCALE = {
    "scale_conv_out_channels": [16],
    "scale_conv_kernel_sizes": [1],
    "scale_final_hidden_sizes": [16, 8],
}

ZOO: Mapping[str, Specimen] = {
    "branch": Specimen(Branch, _plain, 5, 8),
    "patches": Specimen(Patches, _channels, 1, 2),
    "sapiens2": Specimen(_sapiens2(tf.Sapiens2ForSemanticSegmentation), _image, 2, 3),
    "sapiens2_pose": Specimen(_sapiens2(tf.Sapiens2ForPoseEstimation), _image, 2, 3),
    "sapiens2_normal": Specimen(_sapiens2(tf.Sapiens2ForNormalEstimation, use_pixel_shuffle=True), _image, 2, 3),
    "sapiens2_pointmap": Specimen(_sapiens2(tf.Sapiens2ForPointmapEstimation, **_POINTMAP_SCALE), _image, 2, 2),
    "sapiens2_matting": Specimen(_sapiens2(tf.Sapiens2ForImageMatting), _image, 2, 3),
    "segformer": Specimen(_segformer, _image, 2, 3),
    "upernet": Specimen(_upernet, _image, 2, 3),
    "mask2former": Specimen(_mask2former, _image, 2, 3),
    "vit": Specimen(_vit, _image, 2, 2),
    "superpoint": Specimen(_superpoint, _image, 1, 2),
    "lightglue": Specimen(_lightglue, _image_pairs, 1, 1, other_batch=2),
    "vilt": Specimen(_vilt, _text_and_image, 6, 8),
    "qwen3": Specimen(_qwen3, _text, 9, 12),
    "whisper": Specimen(_whisper, _speech, 5, 7),
    "mixtral_eager": Specimen(lambda: mixtral("eager"), _text, 9, 12),
    "mixtral": Specimen(lambda: mixtral("grouped_mm"), _text, 9, 12),
    "dbrx": Specimen(_dbrx, _text, 9, 12),
    "jetmoe": Specimen(_jetmoe, _text, 9, 12),
    "switch": Specimen(_switch, _masked_text_pair, 9, 12),
    "switch_unmasked": Specimen(_switch, _text_pair, 9, 12),  # it makes its own mask only where it is not traced
    "longformer": Specimen(_longformer, _text_and_global, 12, 16),
}
