"""Tiny models of every kind, and the ways into each beside a call: by name, as other libraries and users take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from tiny_models import TINY

_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SMALL, "vocab_size": 60, "max_position_embeddings": 32}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VISION = {**_SMALL, "image_size": 16, "patch_size": 8}
_LLAMA = {**_TEXT, **_TOKENS, "num_key_value_heads": 2}
_WAV = {
    "conv_dim": (16, 16), "conv_kernel": (4, 3), "conv_stride": (4, 2), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip

IDS = torch.tensor([[5, 6, 7, 8]])


def _image(side: int = 16) -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)


def _sound(length: int = 640) -> torch.Tensor:
    return torch.linspace(-20, 20, length).sin()[None, None]


@dataclass(frozen=True)
class Door:
    """One way into a model: a method, its arguments, and a module that it runs."""

    make: Callable[[], Any]
    method: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    module: str = ""
    inner: str = ""  # the model inside the guarded one whose method it is

    def made(self) -> Any:
        """Return the model in bfloat16, the same weights every time."""
        torch.manual_seed(0)
        model = self.make().eval()
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and "inv_freq" not in name:
                    setattr(module, name, buffer.to(torch.bfloat16))
        return model

    def through(self, model: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
        """Go in by this door, with floating inputs in `dtype` that hold bfloat16 numbers."""

        def typed(value: Any) -> Any:
            floats = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.to(torch.bfloat16).to(dtype) if floats else value

        method = getattr(model.get_submodule(self.inner), self.method)
        torch.manual_seed(1)
        return method(*map(typed, self.args), **{name: typed(value) for name, value in self.kwargs})


def _named(**kwargs: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(kwargs.items())


def _clip() -> Any:
    return tf.CLIPModel(tf.CLIPConfig(text_config={**_TEXT, **_TOKENS}, vision_config=_VISION, projection_dim=16))


def _siglip() -> Any:
    return tf.SiglipModel(tf.SiglipConfig(text_config={**_TEXT, **_TOKENS}, vision_config=_VISION))


def _blip() -> Any:
    return tf.BlipModel(
        tf.BlipConfig(
            text_config={**_TEXT, **_TOKENS, "encoder_hidden_size": 32}, vision_config=_VISION, projection_dim=16
        )
    )


def _align() -> Any:
    vision = {
        "image_size": 16, "depthwise_padding": [], "kernel_sizes": [3], "in_channels": [32], "out_channels": [16],
        "strides": [1], "num_block_repeats": [1], "expand_ratios": [1], "hidden_dim": 64, "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    }  # fmt: skip
    return tf.AlignModel(tf.AlignConfig(text_config=_TEXT, vision_config=vision, projection_dim=64))


def _clap() -> Any:
    audio = {
        "num_mel_bins": 16, "spec_size": 32, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4], "depths": [1, 1],
        "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32, "num_hidden_layers": 2,
        "enable_fusion": False, "projection_dim": 16, "drop_path_rate": 0.0,
    }  # fmt: skip
    text = {**_TEXT, **_TOKENS, "projection_dim": 16}
    return tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=16))


def _blip2() -> Any:
    return tf.Blip2Model(
        tf.Blip2Config(
            vision_config=_VISION, qformer_config={**_TEXT, "encoder_hidden_size": 32, "cross_attention_frequency": 2},
            text_config={
                "model_type": "opt", "vocab_size": 60, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 32,
            },
            num_query_tokens=2, image_token_index=59,
        )
    )  # fmt: skip


def _sam() -> Any:
    return tf.SamModel(
        tf.SamConfig(
            vision_config={
                **_SMALL, "mlp_dim": 64, "image_size": 32, "patch_size": 8, "output_channels": 16, "window_size": 2,
                "global_attn_indexes": [1], "num_pos_feats": 8,
            },
            prompt_encoder_config={
                "hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 8,
            },
            mask_decoder_config={
                "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
                "num_hidden_layers": 1,
            },
        )
    )  # fmt: skip


def _qwen2_vl() -> Any:
    return tf.Qwen2VLForConditionalGeneration(
        tf.Qwen2VLConfig(
            text_config={**_LLAMA, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
            vision_config={
                "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2,
                "spatial_merge_size": 2, "temporal_patch_size": 1,
            },
            image_token_id=59, video_token_id=58, vision_start_token_id=57,
        )
    )  # fmt: skip


def _encodec() -> Any:
    return tf.EncodecModel(
        tf.EncodecConfig(
            sampling_rate=640, num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=16, upsampling_ratios=[4, 2],
            num_residual_layers=1, kernel_size=3, last_kernel_size=3, num_lstm_layers=1, target_bandwidths=[1.5],
        )
    )  # fmt: skip


def _dac() -> Any:
    return tf.DacModel(
        tf.DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[2, 4], decoder_hidden_size=32, upsampling_ratios=[4, 2],
            n_codebooks=2, codebook_size=16, codebook_dim=4, hidden_size=32, sampling_rate=640,
        )
    )  # fmt: skip


def _mimi() -> Any:
    return tf.MimiModel(
        tf.MimiConfig(
            sampling_rate=640, frame_rate=40, num_filters=4, hidden_size=32, upsampling_ratios=[4, 2], kernel_size=3,
            last_kernel_size=3, num_residual_layers=1, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, head_dim=8, intermediate_size=64, codebook_size=16, codebook_dim=16,
            vector_quantization_hidden_dimension=16, num_quantizers=4, num_semantic_quantizers=1,
            upsample_groups=32, sliding_window=16,
        )
    )  # fmt: skip


def _wav2vec2() -> Any:
    return tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**_SMALL, **_WAV, vocab_size=20))


def _vits() -> Any:
    return tf.VitsModel(
        tf.VitsConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, flow_size=16,
            spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4], upsample_kernel_sizes=[8],
            resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], prior_encoder_num_flows=1,
            prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1, duration_predictor_num_flows=1,
            duration_predictor_filter_channels=16, use_stochastic_duration_prediction=False,
        )
    )  # fmt: skip


def _bert() -> Any:
    return tf.BertModel(tf.BertConfig(**_TEXT))


def _classifier() -> Any:
    return tf.BertForSequenceClassification(tf.BertConfig(**_TEXT, num_labels=1))


def _owlvit() -> Any:
    return tf.OwlViTForObjectDetection(
        tf.OwlViTConfig(text_config={**_TEXT, **_TOKENS}, vision_config=_VISION, projection_dim=32)
    )


def _dpr() -> Any:
    return tf.DPRQuestionEncoder(tf.DPRConfig(**_TEXT, projection_dim=16))


DOORS: dict[str, Door] = {
    "bert.forward": Door(_bert, "forward", (IDS,), module="encoder.layer.1.output.dense"),
    "cross_encoder.forward": Door(_classifier, "forward", (IDS,), module="classifier"),
    "modernbert.forward": Door(
        lambda: tf.ModernBertModel(tf.ModernBertConfig(**_TEXT, **_TOKENS, reference_compile=False)),
        "forward", (IDS,), module="layers.1.mlp.Wo",
    ),
    "mpnet.forward": Door(
        lambda: tf.MPNetModel(tf.MPNetConfig(**_TEXT)), "forward", (IDS,), module="encoder.layer.1.output.dense"
    ),
    "dpr.forward": Door(_dpr, "forward", (IDS,), module="question_encoder.encode_proj"),
    "t5_encoder.forward": Door(
        lambda: tf.T5EncoderModel(tf.T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
        "forward", (IDS,), module="encoder.block.1.layer.1.DenseReluDense.wi",
    ),
    "qwen3.forward": Door(
        TINY["qwen3"].make, "forward", (), _named(input_ids=IDS, use_cache=True), "model.layers.1.mlp.down_proj"
    ),
    "qwen3.model.forward": Door(
        TINY["qwen3"].make, "forward", (IDS,), _named(use_cache=False), "model.layers.1.mlp.down_proj", inner="model"
    ),
    "mixtral.model.forward": Door(
        TINY["mixtral"].make, "forward", (IDS,), _named(use_cache=False), "model.layers.1.self_attn.o_proj", "model"
    ),
    "mamba.forward": Door(TINY["mamba"].make, "forward", (IDS,), (), "backbone.layers.1.mixer.out_proj"),
    "t5.encoder.forward": Door(
        TINY["t5"].make, "forward", (IDS,), (), "encoder.block.1.layer.1.DenseReluDense.wi", "encoder"
    ),
    "whisper.encoder.forward": Door(
        TINY["whisper"].make, "forward", (torch.linspace(-1, 1, 320).reshape(1, 16, 20),), (),
        "model.encoder.layers.1.fc2", "model.encoder",
    ),
    "vit.forward": Door(
        lambda: tf.ViTModel(tf.ViTConfig(**_VISION)), "forward", (_image(),), module="layers.1.mlp.fc2"
    ),
    "segformer.forward": Door(TINY["segformer"].make, "forward", (_image(64),), (), "decode_head.classifier"),
    "resnet_backbone.forward_with_filtered_kwargs": Door(
        lambda: tf.ResNetBackbone(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "forward_with_filtered_kwargs", (_image(32),), (), "encoder.stages.1.layers.0.layer.0.convolution",
    ),
    "clip.get_text_features": Door(_clip, "get_text_features", (IDS,), module="text_projection"),
    "clip.get_image_features": Door(_clip, "get_image_features", (_image(),), module="visual_projection"),
    "siglip.get_image_features": Door(_siglip, "get_image_features", (_image(),), module="vision_model.head.mlp.fc2"),
    "siglip.get_text_features": Door(_siglip, "get_text_features", (IDS,), module="text_model.head"),
    "blip.get_text_features": Door(_blip, "get_text_features", (IDS,), module="text_projection"),
    "blip.get_image_features": Door(_blip, "get_image_features", (_image(),), module="visual_projection"),
    "align.get_image_features": Door(_align, "get_image_features", (_image(),), module="vision_model.embeddings.convolution"),
    "align.get_text_features": Door(_align, "get_text_features", (IDS,), module="text_projection"),
    "clap.get_text_features": Door(_clap, "get_text_features", (IDS,), module="text_projection.linear2"),
    "clap.get_audio_features": Door(
        _clap, "get_audio_features", (torch.linspace(-1, 1, 64 * 16).reshape(1, 1, 64, 16),), (), "audio_projection.linear2"
    ),
    "blip2.get_image_features": Door(_blip2, "get_image_features", (_image(),), module="vision_model.post_layernorm"),
    "blip2.get_qformer_features": Door(
        _blip2, "get_qformer_features", (_image(),), module="qformer.encoder.layer.1.output_query.dense"
    ),
    "blip2.get_text_features": Door(
        _blip2, "get_text_features", (IDS,), (), "language_model.model.decoder.layers.1.fc2"
    ),
    "sam.get_image_embeddings": Door(_sam, "get_image_embeddings", (_image(32),), module="vision_encoder.neck.conv2"),
    "owlvit.image_embedder": Door(_owlvit, "image_embedder", (_image(),), (), "layer_norm"),
    "owlvit.box_predictor": Door(
        _owlvit, "box_predictor", (torch.linspace(-1, 1, 4 * 32).reshape(1, 4, 32), torch.zeros(1, 2, 2, 32)), (),
        "box_head.dense2",
    ),
    "llava.get_image_features": Door(
        TINY["llava"].make, "get_image_features", (_image(),), (), "model.multi_modal_projector.linear_2"
    ),
    "llava.model.get_image_features": Door(
        TINY["llava"].make, "get_image_features", (_image(),), (), "model.multi_modal_projector.linear_2", "model"
    ),
    "qwen2_vl.get_image_features": Door(
        _qwen2_vl, "get_image_features",
        (torch.linspace(-1, 1, 16 * 48).reshape(16, 48), torch.tensor([[1, 4, 4]])), (), "model.visual.merger.mlp.2",
    ),
    "encodec.encode": Door(_encodec, "encode", (_sound(),), _named(bandwidth=1.5), "encoder.layers.0.conv"),
    "encodec.decode": Door(
        _encodec, "decode", (torch.arange(8).reshape(1, 1, 1, 8), [None]), (), "decoder.layers.0.conv"
    ),
    "dac.encode": Door(_dac, "encode", (_sound(),), (), "encoder.conv1"),
    "dac.decode": Door(_dac, "decode", (torch.linspace(-1, 1, 32 * 8).reshape(1, 32, 8),), (), "decoder.conv1"),
    "mimi.encode": Door(_mimi, "encode", (_sound(),), (), "encoder_transformer.layers.1.mlp.fc2"),
    "mimi.decode": Door(
        _mimi, "decode", (torch.arange(16).reshape(1, 4, 4) % 16,), (), "decoder_transformer.layers.1.mlp.fc2"
    ),
    "wav2vec2.forward": Door(_wav2vec2, "forward", (_sound()[0],), module="lm_head"),
    "vits.forward": Door(_vits, "forward", (IDS,), module="decoder.conv_pre"),
}  # fmt: skip
