"""How the models of the zoo are made, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5, "num_labels": 3,
}  # fmt: skip
SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
}  # fmt: skip
SERIES = {
    "prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip


def ids(length: int = 7, rows: int = 2) -> dict[str, Any]:
    """Return tokens."""
    return {"input_ids": torch.arange(3, 3 + rows * length).reshape(rows, length)}


def padded() -> dict[str, Any]:
    """Return tokens of two rows, of which one is padded."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return ids() | {"attention_mask": mask}


def noise(*shape: int) -> torch.Tensor:
    """Return normal numbers of this shape, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def pixels(side: int = 32, rows: int = 2) -> dict[str, Any]:
    """Return pictures."""
    return {"pixel_values": noise(rows, 3, side, side)}


def sound() -> dict[str, Any]:
    """Return sound."""
    return {"input_values": noise(2, 400)}


def pair() -> dict[str, Any]:
    """Return tokens and pictures."""
    return padded() | pixels()


def decoded() -> dict[str, Any]:
    """Return tokens for an encoder and a decoder."""
    return padded() | {"decoder_input_ids": torch.arange(3, 13).reshape(2, 5)}


def spans() -> dict[str, Any]:
    """Return tokens with the boxes that they stand in."""
    return padded() | {"bbox": torch.arange(2 * 7 * 4).reshape(2, 7, 4).clamp_max(90)}


def backbone(*stages: str) -> Any:
    """Return the config of a tiny backbone with these stages."""
    return tf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def bert(head: str, **more: Any) -> Callable[[], Any]:
    """Return a maker of a tiny BERT with a head."""
    return lambda: getattr(tf, f"Bert{head}")(tf.BertConfig(**TEXT, **more))


def detr() -> Any:
    """Return a tiny detr model."""
    return tf.DetrForObjectDetection(
        tf.DetrConfig(
            **DETR, backbone_config=backbone("stage4"), use_timm_backbone=False, use_pretrained_backbone=False
        )
    )


def detr_masks() -> Any:
    """Return a tiny detr masks model."""
    return tf.DetrForSegmentation(
        tf.DetrConfig(
            **DETR | {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
            backbone_config=backbone("stage1", "stage2", "stage3", "stage4"), use_timm_backbone=False,
            use_pretrained_backbone=False,
        )
    )  # fmt: skip


def conditional_detr() -> Any:
    """Return a tiny conditional detr model."""
    return tf.ConditionalDetrForObjectDetection(
        tf.ConditionalDetrConfig(
            **DETR, backbone_config=backbone("stage4"), use_timm_backbone=False, use_pretrained_backbone=False
        )
    )


def deformable_detr(*, two_stage: bool = False) -> Any:
    """Return a tiny deformable detr model."""
    return tf.DeformableDetrForObjectDetection(
        tf.DeformableDetrConfig(
            **DETR, backbone_config=backbone("stage2", "stage3", "stage4"), use_timm_backbone=False, use_pretrained_backbone=False,
            num_feature_levels=3, two_stage=two_stage, with_box_refine=two_stage, encoder_n_points=2, decoder_n_points=2,
            two_stage_num_proposals=5,
        )
    )  # fmt: skip


def rt_detr() -> Any:
    """Return a tiny rt detr model."""
    backbone = tf.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return tf.RTDetrForObjectDetection(
        tf.RTDetrConfig(
            backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=32,
            d_model=32, num_queries=5, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=2,
            decoder_attention_heads=4, encoder_attention_heads=4, num_denoising=0, num_labels=3, anchor_image_size=None,
        )
    )  # fmt: skip


def grounding_dino() -> Any:
    """Return a tiny grounding dino model."""
    swin = tf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4,
        out_features=["stage2", "stage3"], out_indices=[2, 3],
    )  # fmt: skip
    return tf.GroundingDinoForObjectDetection(
        tf.GroundingDinoConfig(
            backbone_config=swin, use_pretrained_backbone=False, text_config=tf.BertConfig(**TEXT), num_queries=5,
            encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=32,
            encoder_attention_heads=4, decoder_attention_heads=4, num_feature_levels=3, max_text_len=16,
        )
    )  # fmt: skip


def mask2former() -> Any:
    """Return a tiny mask2former model."""
    swin = tf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return tf.Mask2FormerForUniversalSegmentation(
        tf.Mask2FormerConfig(
            backbone_config=swin, use_pretrained_backbone=False, feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=32,
            num_queries=5, num_labels=3,
        )
    )  # fmt: skip


def maskformer() -> Any:
    """Return a tiny maskformer model."""
    swin = tf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return tf.MaskFormerForInstanceSegmentation(
        tf.MaskFormerConfig(
            backbone_config=swin, use_pretrained_backbone=False, fpn_feature_size=32, mask_feature_size=32,
            decoder_config=tf.DetrConfig(**DETR, use_timm_backbone=False, backbone_config=backbone("stage4")),
            num_labels=3,
        )
    )  # fmt: skip


def sam() -> Any:
    """Return a tiny sam model."""
    return tf.SamModel(
        tf.SamConfig(
            vision_config=tf.SamVisionConfig(
                hidden_size=32, output_channels=16, num_hidden_layers=1, num_attention_heads=4, image_size=32,
                patch_size=8, window_size=2, global_attn_indexes=[0], mlp_dim=32, num_pos_feats=8,
            ).to_dict(),
            prompt_encoder_config=tf.SamPromptEncoderConfig(
                hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4
            ).to_dict(),
            mask_decoder_config=tf.SamMaskDecoderConfig(
                hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, num_hidden_layers=1,
            ).to_dict(),
        )
    )  # fmt: skip


def dpt() -> Any:
    """Return a tiny dpt model."""
    return tf.DPTForDepthEstimation(
        tf.DPTConfig(
            **VISION | {"num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16, is_hybrid=False,
        )
    )  # fmt: skip


def depth_anything() -> Any:
    """Return a tiny depth anything model."""
    backbone = tf.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    return tf.DepthAnythingForDepthEstimation(
        tf.DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16, head_hidden_size=8, patch_size=8,
        )
    )  # fmt: skip


def glpn() -> Any:
    """Return a tiny glpn model."""
    return tf.GLPNForDepthEstimation(
        tf.GLPNConfig(
            num_encoder_blocks=4, depths=[1, 1, 1, 1], sr_ratios=[2, 2, 1, 1], hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=16,
        )
    )  # fmt: skip


def zoedepth() -> Any:
    """Return a tiny zoedepth model."""
    backbone = tf.BeitConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        use_relative_position_bias=True,
    )  # fmt: skip
    return tf.ZoeDepthForDepthEstimation(
        tf.ZoeDepthConfig(
            backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, bottleneck_features=16,
            num_relative_features=8, bin_embedding_dim=8, num_attractors=[4, 2, 2, 1], patch_transformer_hidden_size=16,
            patch_transformer_intermediate_size=16, patch_transformer_num_attention_heads=2,
            bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        )
    )  # fmt: skip


def wav2vec2(head: str, family: str = "Wav2Vec2", **more: Any) -> Callable[[], Any]:
    """Return a maker of a tiny Wav2Vec2, or of another family like it, with a head."""

    def make() -> Any:
        return getattr(tf, f"{family}{head}")(getattr(tf, f"{family}Config")(**SPEECH, **more))

    return make


def speecht5() -> Any:
    """Return a tiny speecht5 model."""
    return tf.SpeechT5ForTextToSpeech(
        tf.SpeechT5Config(
            vocab_size=96, hidden_size=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=32, num_mel_bins=8,
            speech_decoder_prenet_units=16, speech_decoder_postnet_units=16, speech_decoder_postnet_layers=2,
            speaker_embedding_dim=8, positional_dropout=0.0, speech_decoder_prenet_dropout=0.0,
        )
    )  # fmt: skip


def vits() -> Any:
    """Return a tiny vits model."""
    return tf.VitsModel(
        tf.VitsConfig(
            vocab_size=38, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
            spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
            resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], prior_encoder_num_flows=1,
            duration_predictor_num_flows=1, posterior_encoder_num_wavenet_layers=1, prior_encoder_num_wavenet_layers=1,
            duration_predictor_filter_channels=16, depth_separable_num_layers=1,
        )
    )  # fmt: skip


def encodec() -> Any:
    """Return a tiny encodec model."""
    return tf.EncodecModel(
        tf.EncodecConfig(
            hidden_size=16, num_filters=4, num_lstm_layers=1, codebook_size=16, codebook_dim=16, upsampling_ratios=[4, 2],
            target_bandwidths=[1.5, 3.0], sampling_rate=240,
        )
    )  # fmt: skip


def dac() -> Any:
    """Return a tiny dac model."""
    return tf.DacModel(
        tf.DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=2, codebook_size=16,
            codebook_dim=4, sampling_rate=400,
        )
    )  # fmt: skip


def series(*, past: int = 14) -> dict[str, Any]:
    """Return a time series."""
    return {
        "past_values": noise(2, past), "past_time_features": noise(2, past, 1),
        "past_observed_mask": torch.ones(2, past), "future_values": noise(2, 4), "future_time_features": noise(2, 4, 1),
    }  # fmt: skip


def patches(model_class: str, config_class: str = "PatchTSTConfig", **more: Any) -> Callable[[], Any]:
    """Return a maker of a tiny model of time series."""
    sizes: dict[str, Any] = {
        "num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4,
        "d_model": 16, "num_hidden_layers": 1, "num_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
    }  # fmt: skip
    return lambda: getattr(tf, model_class)(getattr(tf, config_class)(**sizes, **more))


def two_towers(family: str, head: str = "Model") -> Callable[[], Any]:
    """Return a maker of a tiny model with a tower for texts and one for pictures."""

    def make() -> Any:
        text = getattr(tf, f"{family}TextConfig")(**TEXT, projection_dim=32, eos_token_id=16)
        vision = getattr(tf, f"{family}VisionConfig")(**VISION, projection_dim=32)
        towers = {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": 32}
        return getattr(tf, f"{family}{head}")(getattr(tf, f"{family}Config")(**towers))

    return make


def llava() -> Any:
    """Return a tiny llava model."""
    text = tf.LlamaConfig(**TEXT, num_key_value_heads=2)
    vision = tf.CLIPVisionConfig(**VISION | {"image_size": 16})
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=95, image_seq_length=4)
    )


def table() -> dict[str, Any]:
    """Return a table with a question."""
    types = torch.zeros(2, 7, 7, dtype=torch.long)
    types[:, 2:, 0] = 1  # cells, after the question
    types[:, 2:, 1:3] = torch.tensor([[1, 1], [2, 1], [1, 2], [2, 2], [1, 3]])  # column and row
    return ids() | {"token_type_ids": types}


def visual_features() -> dict[str, Any]:
    """Return tokens with features of pictures."""
    return padded() | {"visual_feats": noise(2, 3, 16), "visual_pos": torch.rand(2, 3, 4)}


def trajectory() -> dict[str, Any]:
    """Return states, actions and rewards."""
    return {
        "states": noise(2, 5, 6), "actions": noise(2, 5, 3), "rewards": noise(2, 5, 1),
        "returns_to_go": noise(2, 5, 1), "timesteps": torch.arange(5)[None].expand(2, 5),
        "attention_mask": torch.ones(2, 5),
    }  # fmt: skip
