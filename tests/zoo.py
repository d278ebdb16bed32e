"""Models of transformers of every kind of task, tiny and random: what they return is looked at, and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf

_TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_SEQ2SEQ = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
_DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5, "num_labels": 3,
}  # fmt: skip
_SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
}  # fmt: skip
_SERIES = {
    "prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Animal:
    """How to make a model, and inputs for one call."""

    make: Callable[[], Any]
    inputs: Callable[[], dict[str, torch.Tensor]]

    def born(self, dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return a model in `dtype`, of the same weights every time, and inputs in that dtype."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for weight in model.parameters():  # as made some say the same to everybody
                weight += 0.1 * torch.randn_like(weight)
        model = model.to(dtype)
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in self.inputs().items()
        }
        return model, inputs


def _ids(length: int = 7, rows: int = 2) -> dict[str, Any]:
    return {"input_ids": torch.arange(3, 3 + rows * length).reshape(rows, length)}


def _padded() -> dict[str, Any]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return _ids() | {"attention_mask": mask}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _pixels(side: int = 32, rows: int = 2) -> dict[str, Any]:
    return {"pixel_values": _noise(rows, 3, side, side)}


def _sound() -> dict[str, Any]:
    return {"input_values": _noise(2, 400)}


def _pair() -> dict[str, Any]:
    return _padded() | _pixels()


def _decoded() -> dict[str, Any]:
    return _padded() | {"decoder_input_ids": torch.arange(3, 13).reshape(2, 5)}


def _spans() -> dict[str, Any]:
    return _padded() | {"bbox": torch.arange(2 * 7 * 4).reshape(2, 7, 4).clamp_max(90)}


def _resnet() -> Any:
    return tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def _backbone(*stages: str) -> Any:
    return tf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def _bert(head: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, f"Bert{head}")(tf.BertConfig(**_TEXT, **more))


def _detr() -> Any:
    return tf.DetrForObjectDetection(
        tf.DetrConfig(
            **_DETR, backbone_config=_backbone("stage4"), use_timm_backbone=False, use_pretrained_backbone=False
        )
    )


def _detr_masks() -> Any:
    return tf.DetrForSegmentation(
        tf.DetrConfig(
            **_DETR | {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
            backbone_config=_backbone("stage1", "stage2", "stage3", "stage4"), use_timm_backbone=False,
            use_pretrained_backbone=False,
        )
    )  # fmt: skip


def _conditional_detr() -> Any:
    return tf.ConditionalDetrForObjectDetection(
        tf.ConditionalDetrConfig(
            **_DETR, backbone_config=_backbone("stage4"), use_timm_backbone=False, use_pretrained_backbone=False
        )
    )


def _deformable_detr(*, two_stage: bool = False) -> Any:
    return tf.DeformableDetrForObjectDetection(
        tf.DeformableDetrConfig(
            **_DETR, backbone_config=_resnet(), use_timm_backbone=False, use_pretrained_backbone=False,
            num_feature_levels=3, two_stage=two_stage, with_box_refine=two_stage, encoder_n_points=2, decoder_n_points=2,
            two_stage_num_proposals=5,
        )
    )  # fmt: skip


def _rt_detr() -> Any:
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


def _grounding_dino() -> Any:
    swin = tf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4,
        out_features=["stage2", "stage3"], out_indices=[2, 3],
    )  # fmt: skip
    return tf.GroundingDinoForObjectDetection(
        tf.GroundingDinoConfig(
            backbone_config=swin, use_pretrained_backbone=False, text_config=tf.BertConfig(**_TEXT), num_queries=5,
            encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=32,
            encoder_attention_heads=4, decoder_attention_heads=4, num_feature_levels=3, max_text_len=16,
        )
    )  # fmt: skip


def _mask2former() -> Any:
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


def _maskformer() -> Any:
    swin = tf.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return tf.MaskFormerForInstanceSegmentation(
        tf.MaskFormerConfig(
            backbone_config=swin, use_pretrained_backbone=False, fpn_feature_size=32, mask_feature_size=32,
            decoder_config=tf.DetrConfig(**_DETR, use_timm_backbone=False, backbone_config=_backbone("stage4")),
            num_labels=3,
        )
    )  # fmt: skip


def _sam() -> Any:
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


def _dpt() -> Any:
    return tf.DPTForDepthEstimation(
        tf.DPTConfig(
            **_VISION | {"num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16, is_hybrid=False,
        )
    )  # fmt: skip


def _depth_anything() -> Any:
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


def _glpn() -> Any:
    return tf.GLPNForDepthEstimation(
        tf.GLPNConfig(
            num_encoder_blocks=4, depths=[1, 1, 1, 1], sr_ratios=[2, 2, 1, 1], hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=16,
        )
    )  # fmt: skip


def _zoedepth() -> Any:
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


def _wav2vec2(head: str, family: str = "Wav2Vec2", **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        return getattr(tf, f"{family}{head}")(getattr(tf, f"{family}Config")(**_SPEECH, **more))

    return make


def _speecht5() -> Any:
    return tf.SpeechT5ForTextToSpeech(
        tf.SpeechT5Config(
            vocab_size=96, hidden_size=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=32, num_mel_bins=8,
            speech_decoder_prenet_units=16, speech_decoder_postnet_units=16, speech_decoder_postnet_layers=2,
            speaker_embedding_dim=8, positional_dropout=0.0, speech_decoder_prenet_dropout=0.0,
        )
    )  # fmt: skip


def _vits() -> Any:
    return tf.VitsModel(
        tf.VitsConfig(
            vocab_size=38, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
            spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
            resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], prior_encoder_num_flows=1,
            duration_predictor_num_flows=1, posterior_encoder_num_wavenet_layers=1, prior_encoder_num_wavenet_layers=1,
            duration_predictor_filter_channels=16, depth_separable_num_layers=1,
        )
    )  # fmt: skip


def _encodec() -> Any:
    return tf.EncodecModel(
        tf.EncodecConfig(
            hidden_size=16, num_filters=4, num_lstm_layers=1, codebook_size=16, codebook_dim=16, upsampling_ratios=[4, 2],
            target_bandwidths=[1.5, 3.0], sampling_rate=240,
        )
    )  # fmt: skip


def _dac() -> Any:
    return tf.DacModel(
        tf.DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=2, codebook_size=16,
            codebook_dim=4, sampling_rate=400,
        )
    )  # fmt: skip


def _series(*, past: int = 14) -> dict[str, Any]:
    return {
        "past_values": _noise(2, past), "past_time_features": _noise(2, past, 1),
        "past_observed_mask": torch.ones(2, past), "future_values": _noise(2, 4), "future_time_features": _noise(2, 4, 1),
    }  # fmt: skip


def _patches(model_class: str, config_class: str = "PatchTSTConfig", **more: Any) -> Callable[[], Any]:
    sizes: dict[str, Any] = {
        "num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4,
        "d_model": 16, "num_hidden_layers": 1, "num_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
    }  # fmt: skip
    return lambda: getattr(tf, model_class)(getattr(tf, config_class)(**sizes, **more))


def _two_towers(family: str, head: str = "Model") -> Callable[[], Any]:
    def make() -> Any:
        text = getattr(tf, f"{family}TextConfig")(**_TEXT, projection_dim=32, eos_token_id=16)
        vision = getattr(tf, f"{family}VisionConfig")(**_VISION, projection_dim=32)
        towers = {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": 32}
        return getattr(tf, f"{family}{head}")(getattr(tf, f"{family}Config")(**towers))

    return make


def _llava() -> Any:
    text = tf.LlamaConfig(**_TEXT, num_key_value_heads=2)
    vision = tf.CLIPVisionConfig(**_VISION | {"image_size": 16})
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=95, image_seq_length=4)
    )


def _table() -> dict[str, Any]:
    types = torch.zeros(2, 7, 7, dtype=torch.long)
    types[:, 2:, 0] = 1  # cells, after the question
    types[:, 2:, 1:3] = torch.tensor([[1, 1], [2, 1], [1, 2], [2, 2], [1, 3]])  # column and row
    return _ids() | {"token_type_ids": types}


def _visual_features() -> dict[str, Any]:
    return _padded() | {"visual_feats": _noise(2, 3, 16), "visual_pos": torch.rand(2, 3, 4)}


def _trajectory() -> dict[str, Any]:
    return {
        "states": _noise(2, 5, 6), "actions": _noise(2, 5, 3), "rewards": _noise(2, 5, 1),
        "returns_to_go": _noise(2, 5, 1), "timesteps": torch.arange(5)[None].expand(2, 5),
        "attention_mask": torch.ones(2, 5),
    }  # fmt: skip


ZOO: dict[str, Animal] = {
    # text
    "bert": Animal(_bert("Model"), _padded),
    "bert-masked": Animal(_bert("ForMaskedLM"), _padded),
    "bert-pretraining": Animal(_bert("ForPreTraining"), _padded),
    "bert-span": Animal(_bert("ForQuestionAnswering"), _padded),
    "bert-tokens": Animal(_bert("ForTokenClassification"), _padded),
    "bert-regression": Animal(_bert("ForSequenceClassification", num_labels=1), _padded),
    "roberta": Animal(lambda: tf.RobertaModel(tf.RobertaConfig(**_TEXT | {"pad_token_id": 1})), _padded),
    "distilbert": Animal(
        lambda: tf.DistilBertModel(tf.DistilBertConfig(vocab_size=96, dim=32, hidden_dim=64, n_layers=2, n_heads=4)),
        _padded,
    ),
    "electra": Animal(lambda: tf.ElectraForPreTraining(tf.ElectraConfig(**_TEXT, embedding_size=16)), _padded),
    "albert": Animal(lambda: tf.AlbertForPreTraining(tf.AlbertConfig(**_TEXT, embedding_size=16)), _padded),
    "deberta": Animal(
        lambda: tf.DebertaV2Model(
            tf.DebertaV2Config(**_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16)
        ),
        _padded,
    ),
    "mpnet": Animal(lambda: tf.MPNetModel(tf.MPNetConfig(**_TEXT)), _padded),
    "modernbert": Animal(
        lambda: tf.ModernBertModel(
            tf.ModernBertConfig(**_TEXT, local_attention=4, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
        ),
        _padded,
    ),
    "funnel": Animal(
        lambda: tf.FunnelModel(
            tf.FunnelConfig(
                vocab_size=96, d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1], num_decoder_layers=1
            )
        ),
        _padded,
    ),
    "xlnet": Animal(lambda: tf.XLNetModel(tf.XLNetConfig(vocab_size=96, d_model=32, n_layer=2, n_head=4, d_inner=64)), _padded),
    "longformer": Animal(
        lambda: tf.LongformerModel(tf.LongformerConfig(**_TEXT | {"pad_token_id": 1}, attention_window=4)), _padded
    ),
    "big-bird": Animal(
        lambda: tf.BigBirdModel(tf.BigBirdConfig(**_TEXT, attention_type="original_full")), _padded
    ),
    "luke": Animal(
        lambda: tf.LukeModel(tf.LukeConfig(**_TEXT, entity_vocab_size=8, entity_emb_size=16)),
        lambda: _padded() | {
            "entity_ids": torch.tensor([[1, 2], [3, 0]]), "entity_attention_mask": torch.tensor([[1, 1], [1, 0]]),
            "entity_position_ids": torch.tensor([[[1, 2, -1], [3, -1, -1]], [[1, -1, -1], [-1, -1, -1]]]),
        },
    ),
    "layoutlm": Animal(lambda: tf.LayoutLMModel(tf.LayoutLMConfig(**_TEXT, max_2d_position_embeddings=100)), _spans),
    "gpt2": Animal(
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)), _padded
    ),
    "gpt2-double-heads": Animal(
        lambda: tf.GPT2DoubleHeadsModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        lambda: {"input_ids": torch.arange(3, 31).reshape(2, 2, 7), "mc_token_ids": torch.tensor([[6, 5], [6, 6]])},
    ),
    "llama": Animal(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, num_key_value_heads=2)), _padded),
    "llama-classes": Animal(
        lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**_TEXT, num_key_value_heads=2, num_labels=3)), _padded
    ),
    "mixtral": Animal(
        lambda: tf.MixtralForCausalLM(
            tf.MixtralConfig(**_TEXT, num_key_value_heads=2, num_local_experts=4, output_router_logits=True)
        ),
        _padded,
    ),
    "bloom": Animal(
        lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)), _padded
    ),
    "opt": Animal(
        lambda: tf.OPTForCausalLM(
            tf.OPTConfig(
                vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=64, word_embed_proj_dim=32,
            )
        ),
        _padded,
    ),
    "mamba": Animal(
        lambda: tf.MambaForCausalLM(
            tf.MambaConfig(vocab_size=96, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4)
        ),
        _ids,
    ),
    "rwkv": Animal(
        lambda: tf.RwkvForCausalLM(
            tf.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=64)
        ),
        _ids,
    ),
    "t5": Animal(
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
        ),
        _decoded,
    ),
    "bart": Animal(lambda: tf.BartForConditionalGeneration(tf.BartConfig(**_SEQ2SEQ, pad_token_id=0)), _decoded),
    "prophetnet": Animal(
        lambda: tf.ProphetNetForConditionalGeneration(
            tf.ProphetNetConfig(
                vocab_size=96, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_encoder_layers=1,
                num_decoder_layers=1, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
                max_position_embeddings=64, pad_token_id=0, ngram=2,
            )
        ),
        _decoded,
    ),
    "tapas": Animal(
        lambda: tf.TapasForQuestionAnswering(
            tf.TapasConfig(
                **_TEXT, num_aggregation_labels=3, type_vocab_sizes=[4, 8, 8, 2, 8, 8, 4], average_logits_per_cell=False,
                select_one_column=True,
            )
        ),
        _table,
    ),
    # pictures
    "vit": Animal(lambda: tf.ViTForImageClassification(tf.ViTConfig(**_VISION, num_labels=3)), _pixels),
    "vit-mae": Animal(
        lambda: tf.ViTMAEForPreTraining(
            tf.ViTMAEConfig(
                **_VISION, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
                decoder_intermediate_size=16,
            )
        ),
        lambda: _pixels() | {"noise": torch.rand(2, 16, generator=torch.Generator().manual_seed(0))},
    ),
    "swin": Animal(
        lambda: tf.SwinModel(tf.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)),
        _pixels,
    ),
    "swin2sr": Animal(
        lambda: tf.Swin2SRForImageSuperResolution(
            tf.Swin2SRConfig(image_size=16, patch_size=1, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
        ),
        lambda: _pixels(16),
    ),
    "dinov2": Animal(lambda: tf.Dinov2Model(tf.Dinov2Config(**_VISION)), _pixels),
    "resnet": Animal(lambda: tf.ResNetBackbone(_resnet()), lambda: _pixels(64)),
    "convnext": Animal(
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
        ),
        _pixels,
    ),
    "detr": Animal(_detr, lambda: _pixels(64)),
    "detr-masks": Animal(_detr_masks, lambda: _pixels(64)),
    "conditional-detr": Animal(_conditional_detr, lambda: _pixels(64)),
    "deformable-detr": Animal(_deformable_detr, lambda: _pixels(64)),
    "deformable-detr-two-stages": Animal(
        lambda: _deformable_detr(two_stage=True),
        lambda: _pixels(64) | {"pixel_mask": (torch.arange(64) < 40).long().expand(2, 64, 64)},
    ),
    "rt-detr": Animal(_rt_detr, lambda: _pixels(64)),
    "yolos": Animal(
        lambda: tf.YolosForObjectDetection(
            tf.YolosConfig(**_VISION | {"image_size": [32, 32]}, num_detection_tokens=5, num_labels=3)
        ),
        _pixels,
    ),
    "grounding-dino": Animal(_grounding_dino, lambda: _padded() | _pixels(64)),
    "mask2former": Animal(_mask2former, lambda: _pixels(64)),
    "maskformer": Animal(_maskformer, lambda: _pixels(64)),
    "segformer": Animal(
        lambda: tf.SegformerForSemanticSegmentation(
            tf.SegformerConfig(
                num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
                strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=3,
            )
        ),
        lambda: _pixels(64),
    ),
    "sam": Animal(_sam, lambda: _pixels(32) | {"input_points": torch.full((2, 1, 1, 2), 9.0)}),
    "dpt": Animal(_dpt, _pixels),
    "depth-anything": Animal(_depth_anything, _pixels),
    "glpn": Animal(_glpn, lambda: _pixels(64)),
    "zoedepth": Animal(_zoedepth, _pixels),
    # sounds
    "wav2vec2": Animal(_wav2vec2("Model"), _sound),
    "wav2vec2-ctc": Animal(_wav2vec2("ForCTC"), _sound),
    "wav2vec2-pretraining": Animal(
        _wav2vec2("ForPreTraining", num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=16), _sound
    ),
    "wav2vec2-speakers": Animal(
        _wav2vec2("ForXVector", tdnn_dim=(16, 16, 32), tdnn_kernel=(3, 2, 1), tdnn_dilation=(1, 1, 1), xvector_output_dim=8),
        _sound,
    ),
    "hubert": Animal(_wav2vec2("Model", "Hubert"), _sound),
    "wavlm": Animal(_wav2vec2("Model", "WavLM"), _sound),
    "whisper": Animal(
        lambda: tf.WhisperForConditionalGeneration(
            tf.WhisperConfig(
                **{name: value for name, value in _SEQ2SEQ.items() if name != "max_position_embeddings"}, num_mel_bins=16,
                max_source_positions=10, max_target_positions=20, decoder_start_token_id=1, pad_token_id=0,
                bos_token_id=1, eos_token_id=2,
            )
        ),
        lambda: {"input_features": _noise(2, 16, 20), "decoder_input_ids": torch.arange(3, 13).reshape(2, 5)},
    ),
    "audio-spectrogram": Animal(
        lambda: tf.ASTForAudioClassification(
            tf.ASTConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, patch_size=4,
                frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8, num_labels=3,
            )
        ),
        lambda: {"input_values": _noise(2, 16, 8)},
    ),
    "speecht5": Animal(
        _speecht5, lambda: _padded() | {"decoder_input_values": _noise(2, 6, 8), "speaker_embeddings": _noise(2, 8)}
    ),
    "vits": Animal(_vits, _padded),
    "encodec": Animal(_encodec, lambda: {"input_values": _noise(2, 1, 400)}),
    "dac": Animal(_dac, lambda: {"input_values": _noise(2, 1, 400)}),
    "clap": Animal(
        lambda: tf.ClapAudioModelWithProjection(
            tf.ClapAudioConfig(
                window_size=2, num_mel_bins=16, spec_size=64, patch_size=4, patch_stride=(4, 4), depths=[1, 1],
                num_attention_heads=[2, 2], patch_embeds_hidden_size=16, hidden_size=32, projection_dim=16,
                num_hidden_layers=2,
            )
        ),
        lambda: {"input_features": _noise(2, 1, 64, 16)},
    ),
    # times
    "patchtst": Animal(_patches("PatchTSTForPrediction"), lambda: {"past_values": _noise(2, 16, 2)}),
    "patchtst-regression": Animal(
        _patches("PatchTSTForRegression", num_targets=1), lambda: {"past_values": _noise(2, 16, 2)}
    ),
    "patchtsmixer": Animal(
        _patches("PatchTSMixerForPrediction", "PatchTSMixerConfig"), lambda: {"past_values": _noise(2, 16, 2)}
    ),
    "informer": Animal(lambda: tf.InformerForPrediction(tf.InformerConfig(**_SERIES)), _series),
    "time-series": Animal(
        lambda: tf.TimeSeriesTransformerForPrediction(tf.TimeSeriesTransformerConfig(**_SERIES)), _series
    ),
    "decision": Animal(
        lambda: tf.DecisionTransformerModel(
            tf.DecisionTransformerConfig(state_dim=6, act_dim=3, hidden_size=16, n_layer=1, n_head=2, max_ep_len=16)
        ),
        _trajectory,
    ),
    # several senses
    "clip": Animal(_two_towers("CLIP"), _pair),
    "siglip": Animal(_two_towers("Siglip"), lambda: _ids() | _pixels()),
    "clipseg": Animal(
        lambda: tf.CLIPSegForImageSegmentation(
            tf.CLIPSegConfig(
                text_config=tf.CLIPSegTextConfig(**_TEXT, eos_token_id=16).to_dict(),
                vision_config=tf.CLIPSegVisionConfig(**_VISION).to_dict(), projection_dim=16, reduce_dim=16,
                extract_layers=[0, 1], decoder_num_attention_heads=2, decoder_intermediate_size=16,
            )
        ),
        _pair,
    ),
    "owlvit": Animal(_two_towers("OwlViT", "ForObjectDetection"), _pair),
    "owlv2": Animal(_two_towers("Owlv2", "ForObjectDetection"), _pair),
    "vilt": Animal(
        lambda: tf.ViltForMaskedLM(
            tf.ViltConfig(**_TEXT, image_size=32, patch_size=8, num_channels=3, max_image_length=-1)
        ),
        _pair,
    ),
    "lxmert": Animal(
        lambda: tf.LxmertForPreTraining(
            tf.LxmertConfig(
                vocab_size=96, hidden_size=32, num_attention_heads=4, intermediate_size=64, l_layers=1, x_layers=1,
                r_layers=1, visual_feat_dim=16, num_object_labels=3, num_attr_labels=3, num_qa_labels=3,
            )
        ),
        _visual_features,
    ),
    "flava": Animal(
        lambda: tf.FlavaModel(
            tf.FlavaConfig(
                text_config=tf.FlavaTextConfig(**_TEXT).to_dict(), image_config=tf.FlavaImageConfig(**_VISION).to_dict(),
                multimodal_config=tf.FlavaMultimodalConfig(
                    hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
                ).to_dict(),
                hidden_size=32, projection_dim=16,
            )
        ),
        _pair,
    ),
    "llava": Animal(
        _llava, lambda: {"input_ids": torch.tensor([[1, 95, 95, 95, 95, 7, 8]]), **_pixels(16, rows=1)}
    ),
}  # fmt: skip
